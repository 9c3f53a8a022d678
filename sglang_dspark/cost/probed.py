"""Which steps a step-cost model was measured at, in whole numbers that are compared once a step."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sglang_dspark.cost.curves import Curve

Span = tuple[int, int]
"""(least, most), both included; nothing lies in `NOTHING`."""

NO_END = 1 << 62
NOTHING: Span = (NO_END, 0)


class Probed(NamedTuple):
    """Spans of measured steps. tokens: verified tokens B of a step in graphs; eager: of one outside them.

    A step is outside the graphs beyond `last_captured` tokens or `slots` requests (`NO_END`: there is no such end).
    """

    last_captured: int
    slots: int
    requests: Span
    tokens: Span
    eager: Span


def probed(
    form: str,
    draft: Curve,
    verify: Curve,
    eager: Curve | None,
    captured: NDArray[np.int64] | None,
    slots: int | None,
    diagonal_gamma: int | None = None,
) -> Probed:
    """The spans of a `StepCost` of these parts."""
    requests = _by_tokens(verify.span, diagonal_gamma) if form == "1-d" else draft.span
    tokens = verify.span if captured is None else _padded(captured, verify.span)
    last = NO_END if captured is None else int(captured[-1])
    if form != "tiered":  # SGLang's tables hold what was executed, in graphs or not
        return Probed(last, NO_END, requests, tokens, verify.span if eager is None else eager.span)
    outside = NOTHING if eager is None else eager.span
    return Probed(last, NO_END if slots is None else slots, requests, tokens, outside)


def _by_tokens(span: Span, diagonal_gamma: int | None) -> Span:
    """Requests of a table by tokens alone: whole blocks on a diagonal, else as many as the tokens hold anchors."""
    if diagonal_gamma is None:
        return 1, span[1]
    return span[0] // (1 + diagonal_gamma), span[1] // (1 + diagonal_gamma)


def _padded(captured: NDArray[np.int64], span: Span) -> Span:
    """Token counts whose graph (the first that holds them) was measured."""
    inside = np.flatnonzero((captured >= span[0]) & (captured <= span[1]))
    if not inside.size:
        return NOTHING
    below = int(captured[inside[0] - 1]) if inside[0] else 0
    return below + 1, int(captured[inside[-1]])
