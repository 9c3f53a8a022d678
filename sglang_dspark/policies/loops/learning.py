"""What is learned from outcomes; see `calibration` for what it means."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from sglang_dspark.jit import njit
from sglang_dspark.policies import elementary
from sglang_dspark.policies.arithmetic import SCALE
from sglang_dspark.policies.calibration import BINS, KEPT, LEAST_SLOPE, MOST_SHIFT, MOST_SLOPE
from sglang_dspark.policies.elementary import LARGEST, LN2_HIGH, LN2_LOW, LOG2_E, SQRT_HALF

_MIDDLES = np.concatenate([[-LARGEST], elementary.logit(2 * np.arange(BINS) + 1, 2 * BINS)])
_exp_of_rest, _log_of_mantissa = njit(elementary.exp_of_rest), njit(elementary.log_of_mantissa)


@njit
def exp(x: float) -> float:
    """See `elementary.exp`."""
    times = np.rint(x * LOG2_E)
    return math.ldexp(_exp_of_rest((x - times * LN2_HIGH) - times * LN2_LOW), int(times))


@njit
def log(x: float) -> float:
    """See `elementary.log`."""
    mantissa, times = math.frexp(x)
    if mantissa < SQRT_HALF:
        mantissa, times = 2.0 * mantissa, times - 1
    return times * LN2_HIGH + (_log_of_mantissa(mantissa) + times * LN2_LOW)


@njit
def sigmoid(x: float) -> float:
    """1 / (1 + exp(-x))."""
    return 1.0 / (1.0 + exp(-x))


@njit
def logit(part: int, whole: int) -> float:
    """The logit of part / whole, of integers, clipped."""
    if part <= 0:
        return -LARGEST
    if part >= whole:
        return LARGEST
    return min(max(log(part / (whole - part)), -LARGEST), LARGEST)


@njit
def corrected_bin(number: int, slope: float, shift: float) -> Any:
    """The corrected confidence of one bin, float32; bin 0 is of confidence 0."""
    return np.float32(sigmoid(slope * _MIDDLES[number] + shift)) if number else np.float32(0.0)


@njit
def corrected(confidence: Any, slope: float, shift: float, out: Any, units: Any) -> None:
    """Corrected confidences [R, gamma] into `out`, their survivals into `units`."""
    for i in range(confidence.shape[0]):
        survival = np.float32(1.0)
        for j in range(confidence.shape[1]):
            given = confidence[i, j]
            number = min(int(given * np.float32(BINS)) + 1, BINS) if given > 0 else 0
            out[i, j] = corrected_bin(number, slope, shift)
            survival = np.float32(survival * out[i, j])
            units[i, j] = np.int64(np.rint(survival * np.float32(SCALE)))


@njit
def corrected_lagged(units: Any, slope: float, shift: float, out: Any) -> None:
    """Corrected survivals of an earlier step [R, gamma] into `out`."""
    for i in range(units.shape[0]):
        before, survival = SCALE, np.float32(1.0)
        for j in range(units.shape[1]):
            here = units[i, j]
            number = min(here * BINS // max(before, 1) + 1, BINS) if here > 0 else 0
            survival = np.float32(survival * corrected_bin(number, slope, shift))
            before = here
            out[i, j] = np.int64(np.rint(survival * np.float32(SCALE)))


@njit
def followed(state: Any, survival: Any, lengths: Any, accepted: Any) -> None:
    """See `calibration.followed`; state: [5], changed in place."""
    slope, shift = state[0], state[1]
    aa = ab = bb = ga = gb = 0.0
    tried = False
    for i in range(survival.shape[0]):
        before = SCALE
        for j in range(min(lengths[i], accepted[i] + 1)):
            x = logit(survival[i, j], max(before, 1))
            before = survival[i, j]
            p = sigmoid(slope * x + shift)
            weight, miss = p * (1.0 - p), (1.0 if j < accepted[i] else 0.0) - p
            aa += weight * x * x
            ab += weight * x
            bb += weight
            ga += miss * x
            gb += miss
            tried = True
    if not tried:
        return
    aa, ab, bb = KEPT * state[2] + aa, KEPT * state[3] + ab, KEPT * state[4] + bb
    state[2], state[3], state[4] = aa, ab, bb
    det = aa * bb - ab * ab
    if not det > 0.0:
        return
    slope += (bb * ga - ab * gb) / det
    shift += (aa * gb - ab * ga) / det
    state[0] = min(max(slope, LEAST_SLOPE), MOST_SLOPE)
    state[1] = min(max(shift, -MOST_SHIFT), MOST_SHIFT)
