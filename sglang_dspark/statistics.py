"""Figures that several commands print, each computed in one place."""

from __future__ import annotations

import math


def accept_length(accepted: int, steps: int) -> float:
    """Tokens that a verify step gives a request, bonus included, so never above gamma + 1; NaN without steps.

    accepted: draft tokens accepted in `steps` (request, step) pairs. Output tokens would count what prefills gave.
    """
    return (accepted + steps) / steps if steps else math.nan
