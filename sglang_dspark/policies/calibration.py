"""Correcting confidences by what earlier steps taught: two numbers, logit c' = a logit c + b, fitted while serving.

They are fitted to the outcomes of verified draft tokens of earlier steps, so they are past information: a corrected
confidence depends on no more than the confidence itself does, and order and tau on corrected survivals are as lossless
as on the raw ones (TV 4e-16; design.md 3). Two numbers a batch go most of the way; forgetting follows a drift.

The correction is applied by a table over 4,096 bins of the confidence, so that NumPy, the interpreter and a GPU agree
bit for bit (logarithms and exponentials would not).
"""

from __future__ import annotations

from functools import cache, lru_cache

import numpy as np
from numpy.typing import NDArray

from sglang_dspark.policies.arithmetic import SCALE, Ints, survival_units
from sglang_dspark.policies.state import LiveBlock, Outcome

BINS = 4096
KEPT = 0.99
"""Weight of the evidence so far after one more step: the memory is about a hundred steps, seconds of serving."""
PRIOR = 20.0
"""Weight of the identity at the start, in units of the fit's information: about eighty tokens of confidence 1/2."""
_LARGEST = 9.2  # |logit| of 1e-4
_LEAST_SLOPE, _MOST_SLOPE, _MOST_SHIFT = 0.2, 5.0, 4.0

State = tuple[float, float, float, float, float]
"""(a, b, and the information about them: aa, ab, bb)."""
START: State = (1.0, 0.0, PRIOR, 0.0, PRIOR)
"""The identity: before the first outcome nothing is corrected."""


def followed(state: State, outcome: Outcome) -> State:
    """The state after an earlier step's outcome: one Newton step of the logistic likelihood.

    Censored: a position counts where it was verified and everything before it was accepted.
    """
    slope, shift, aa, ab, bb = state
    position = np.arange(outcome.survival.shape[1])
    tried = (position < outcome.lengths[:, None]) & (position <= outcome.accepted[:, None])
    if not tried.any():
        return state
    x = _logit(conditional(outcome.survival)[tried])
    accepted = (position < outcome.accepted[:, None])[tried]
    p = 1.0 / (1.0 + np.exp(-(slope * x + shift)))
    weight, miss = p * (1.0 - p), accepted - p
    aa, ab, bb = (
        KEPT * aa + float((weight * x * x).sum()),
        KEPT * ab + float((weight * x).sum()),
        KEPT * bb + float(weight.sum()),
    )
    ga, gb, det = float((miss * x).sum()), float(miss.sum()), aa * bb - ab * ab
    if not det > 0.0:
        return slope, shift, aa, ab, bb
    slope += (bb * ga - ab * gb) / det
    shift += (aa * gb - ab * ga) / det
    within = min(max(slope, _LEAST_SLOPE), _MOST_SLOPE), min(max(shift, -_MOST_SHIFT), _MOST_SHIFT)
    return *within, aa, ab, bb


def conditional(units: Ints) -> NDArray[np.float64]:
    """Confidences [R, gamma] back from survivals [R, gamma] units."""
    before = np.concatenate([np.full((len(units), 1), SCALE), units[:, :-1]], axis=1)
    return units / np.maximum(before, 1)


def correction(state: State) -> tuple[float, float] | None:
    """(a, b) of a state, None for the identity."""
    return None if state[:2] == (1.0, 0.0) else (float(state[0]), float(state[1]))


@cache
def _middles() -> NDArray[np.float64]:
    """Logits of the middles of the bins, [BINS]."""
    return _logit((np.arange(BINS) + 0.5) / BINS)


@lru_cache(maxsize=64)
def table(slope: float, shift: float) -> NDArray[np.float32]:
    """Corrected confidence by bin, [BINS + 1] float32: entry 0 is of confidence 0 and stays 0."""
    corrected = 1.0 / (1.0 + np.exp(-(slope * _middles() + shift)))
    found = np.concatenate([[0.0], corrected]).astype(np.float32)
    found.setflags(write=False)
    return found


def corrected_block(live: LiveBlock, numbers: tuple[float, float] | None) -> LiveBlock:
    """This step's block with corrected confidences and their survivals."""
    if numbers is None:
        return live
    assert live.confidence is not None, "a correction is of confidences"
    bins = np.minimum((live.confidence * np.float32(BINS)).astype(np.int64) + 1, BINS)
    confidence = table(*numbers)[np.where(live.confidence > 0, bins, 0)]
    return LiveBlock(survival_units(confidence), confidence, live.invalid)


def corrected_units(units: Ints, numbers: tuple[float, float] | None) -> Ints:
    """Survivals [R, gamma] of an earlier step, corrected."""
    if numbers is None:
        return units
    before = np.concatenate([np.full((len(units), 1), SCALE, dtype=np.int64), units[:, :-1]], axis=1)
    bins = np.minimum(units * BINS // np.maximum(before, 1) + 1, BINS)
    return survival_units(table(*numbers)[np.where(units > 0, bins, 0)])


def _logit(p: NDArray[np.float64]) -> NDArray[np.float64]:
    with np.errstate(divide="ignore"):
        return np.clip(np.log(p) - np.log1p(-p), -_LARGEST, _LARGEST)
