"""Figures that several commands print, each computed in one place."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def accept_length(accepted: int, steps: int) -> float:
    """Tokens that a verify step gives a request, bonus included, so never above gamma + 1; NaN without steps.

    accepted: draft tokens accepted in `steps` (request, step) pairs. Output tokens would count what prefills gave.
    """
    return (accepted + steps) / steps if steps else math.nan


def t_interval(values: Sequence[float] | NDArray[np.float64], level: float = 0.95) -> tuple[float, float]:
    """(mean, half width) of Student's t interval around the mean of `values` [n]; the half width is NaN for one.

    level: the interval covers the expectation with this probability where the values are normal.
    """
    sample = np.asarray(values, dtype=np.float64)
    mean, count = float(sample.mean()), sample.size
    if count < 2:
        return mean, math.nan
    from scipy.special import stdtrit  # takes a quarter of a second, so only when it is needed

    quantile = float(stdtrit(count - 1, 0.5 + level / 2))
    return mean, quantile * float(sample.std(ddof=1)) / math.sqrt(count)
