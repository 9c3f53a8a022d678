"""Correcting confidences by what earlier steps taught: two numbers, logit c' = a logit c + b, fitted while serving.

They are fitted to the outcomes of verified draft tokens of earlier steps, so they are past information: a corrected
confidence depends on no more than the confidence itself does, and order and tau on corrected survivals are as lossless
as on the raw ones (TV 4e-16; design.md 3). Two numbers a batch go most of the way; forgetting follows a drift.

The correction is applied by bins of the confidence, 4,096 of them, so that NumPy, compiled code, the interpreter and a
GPU agree bit for bit: on a device as a table, since logarithms and exponentials would not agree.
"""

from __future__ import annotations

from functools import cache, lru_cache

import numpy as np
from numpy.typing import NDArray

from sglang_dspark.jit import policy_loops
from sglang_dspark.policies.arithmetic import SCALE, Ints, plain, survival_units
from sglang_dspark.policies.elementary import logit, sigmoid
from sglang_dspark.policies.state import LiveBlock, Outcome

BINS = 4096
KEPT = 0.99
"""Weight of the evidence so far after one more step: the memory is about a hundred steps, seconds of serving."""
PRIOR = 20.0
"""Weight of the identity at the start, in units of the fit's information: about eighty tokens of confidence 1/2."""
LEAST_SLOPE, MOST_SLOPE, MOST_SHIFT = 0.2, 5.0, 4.0

State = tuple[float, float, float, float, float]
"""(a, b, and the information about them: aa, ab, bb)."""
START: State = (1.0, 0.0, PRIOR, 0.0, PRIOR)
"""The identity: before the first outcome nothing is corrected."""


def followed(state: State, outcome: Outcome) -> State:
    """The state after an earlier step's outcome: one Newton step of the logistic likelihood.

    Censored: a position counts where it was verified and everything before it was accepted.
    """
    loops = policy_loops()
    if loops is not None:
        changed = np.array(state, dtype=np.float64)
        loops.followed(changed, plain(outcome.survival), plain(outcome.lengths), plain(outcome.accepted))
        return tuple(changed.tolist())
    slope, shift, aa, ab, bb = state
    position = np.arange(outcome.survival.shape[1])
    tried = (position < outcome.lengths[:, None]) & (position <= outcome.accepted[:, None])
    if not tried.any():
        return state
    x = logit(outcome.survival[tried], np.maximum(before(outcome.survival)[tried], 1))
    accepted = (position < outcome.accepted[:, None])[tried]
    p = sigmoid(slope * x + shift)
    weight, miss = p * (1.0 - p), accepted - p
    aa, ab, bb = (
        KEPT * aa + in_order(weight * x * x),
        KEPT * ab + in_order(weight * x),
        KEPT * bb + in_order(weight),
    )
    ga, gb, det = in_order(miss * x), in_order(miss), aa * bb - ab * ab
    if not det > 0.0:
        return slope, shift, aa, ab, bb
    slope += (bb * ga - ab * gb) / det
    shift += (aa * gb - ab * ga) / det
    within = min(max(slope, LEAST_SLOPE), MOST_SLOPE), min(max(shift, -MOST_SHIFT), MOST_SHIFT)
    return *within, aa, ab, bb


def in_order(values: NDArray[np.float64]) -> float:
    """Their sum, one after the other: NumPy's own pairs them up, which a loop does not."""
    return float(np.add.accumulate(values)[-1])


def before(units: Ints) -> Ints:
    """[R, gamma] survival at the position before each, 1 before the first."""
    return np.concatenate([np.full((len(units), 1), SCALE, dtype=np.int64), units[:, :-1]], axis=1)


def correction(state: State) -> tuple[float, float] | None:
    """(a, b) of a state, None for the identity."""
    return None if state[:2] == (1.0, 0.0) else (float(state[0]), float(state[1]))


@cache
def _middles() -> NDArray[np.float64]:
    """Logits of the middles of the bins, [BINS]."""
    return logit(2 * np.arange(BINS) + 1, 2 * BINS)


@lru_cache(maxsize=64)
def table(slope: float, shift: float) -> NDArray[np.float32]:
    """Corrected confidence by bin, [BINS + 1] float32: entry 0 is of confidence 0 and stays 0."""
    corrected = sigmoid(slope * _middles() + shift)
    found = np.concatenate([[0.0], corrected]).astype(np.float32)
    found.setflags(write=False)
    return found


def corrected_block(live: LiveBlock, numbers: tuple[float, float] | None) -> LiveBlock:
    """This step's block with corrected confidences and their survivals."""
    if numbers is None:
        return live
    assert live.confidence is not None, "a correction is of confidences"
    loops = policy_loops()
    if loops is not None:
        given = plain(live.confidence)
        units, confidence = np.empty(given.shape, dtype=np.int64), np.empty_like(given)
        loops.corrected(given, *numbers, confidence, units)
        return LiveBlock(units, confidence, live.invalid)
    bins = np.minimum((live.confidence * np.float32(BINS)).astype(np.int64) + 1, BINS)
    confidence = _of_bins(np.where(live.confidence > 0, bins, 0), *numbers)
    return LiveBlock(survival_units(confidence), confidence, live.invalid)


def corrected_units(units: Ints, numbers: tuple[float, float] | None) -> Ints:
    """Survivals [R, gamma] of an earlier step, corrected."""
    if numbers is None:
        return units
    loops = policy_loops()
    if loops is not None:
        out = np.empty(units.shape, dtype=np.int64)
        loops.corrected_lagged(plain(units), *numbers, out)
        return out
    bins = np.minimum(units * BINS // np.maximum(before(units), 1) + 1, BINS)
    return survival_units(_of_bins(np.where(units > 0, bins, 0), *numbers))


def _of_bins(bins: Ints, slope: float, shift: float) -> NDArray[np.float32]:
    """Corrected confidences of bins: off the table where it has fewer entries."""
    if bins.size > BINS // 2:
        return table(slope, shift)[bins]
    corrected = sigmoid(slope * _middles()[bins - 1] + shift)  # bin 0 is of confidence 0, which stays
    return np.where(bins > 0, corrected, 0.0).astype(np.float32)
