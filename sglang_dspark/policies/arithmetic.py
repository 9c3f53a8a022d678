"""The one arithmetic of every policy: survivals as integers, the admission order, Theta in float64.

NumPy, the Triton interpreter and a GPU give the same bits: survival is a left-to-right float32 product rounded to a
multiple of 2^-24, sums are int64, and Theta is the float64 product tau * (1/T) (design.md 3).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from sglang_dspark.errors import InputError

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

SCALE = 1 << 24
"""Survival 1.0 in units of 2^-24."""


def survival_units(confidence: NDArray[np.float32]) -> Ints:
    """Survivals of a block as integers.

    confidence: [R, gamma] float32 in [0, 1], the chance that token j survives given that its predecessors did.
    Returns [R, gamma] int64 in 0..2^24, non-increasing along gamma.
    """
    survival = np.multiply.accumulate(confidence, axis=1, dtype=np.float32)
    return np.rint(survival * np.float32(SCALE)).astype(np.int64)


def check_confidence(confidence: NDArray[np.float32]) -> None:
    """Refuse confidences that are no probabilities; NaN would sort anywhere."""
    if not bool(np.all((confidence >= 0) & (confidence <= 1))):
        bad = confidence[~((confidence >= 0) & (confidence <= 1))].ravel()[0]
        raise InputError(f"a confidence is {bad}, expected a number in 0..1")


@lru_cache(maxsize=4096)
def _tie_break(num_requests: int, floor: int, cap: int) -> Ints:
    """Rank among equals: position first, then request. [R, cap - floor]."""
    position = np.arange(floor, cap, dtype=np.int64)[None, :]
    request = np.arange(num_requests, dtype=np.int64)[:, None]
    ties = position * num_requests + request
    ties.setflags(write=False)
    return ties


def admission_keys(units: Ints, floor: int, cap: int) -> Ints:
    """One sortable integer a candidate: ascending keys are the admission order.

    units: [R, gamma]; candidates are positions floor < j <= cap. Returns [R * (cap - floor)] int64.
    The key holds everything: `key % R` is the request, `SCALE - key // (R * gamma)` the survival.
    """
    num_requests, gamma = units.shape
    return ((SCALE - units[:, floor:cap]) * (num_requests * gamma) + _tie_break(num_requests, floor, cap)).ravel()


def allocate(units: Ints, budget: int, floor: int = 0, cap: int | None = None) -> Ints:
    """Verify the first `budget` draft tokens of the live admission order.

    units: [R, gamma] this step's survivals; every request gets its first `floor` positions before the walk (they count
    into the budget) and none beyond `cap`. Returns the admitted draft tokens of each request, [R] int64.
    """
    num_requests, gamma = units.shape
    cap = gamma if cap is None else cap
    walked = budget - num_requests * floor
    if walked <= 0 or num_requests == 0:
        return np.full(num_requests, floor, dtype=np.int64)
    if walked >= num_requests * (cap - floor):
        return np.full(num_requests, cap, dtype=np.int64)
    keys = admission_keys(units, floor, cap)
    first = np.partition(keys, walked - 1)[:walked]
    return np.bincount(first % num_requests, minlength=num_requests) + floor


def tau_along(survivals: Ints, start: int) -> Ints:
    """tau after 0, 1, .., n admissions, in units: [n + 1] from `start` and the sorted survivals [n]."""
    tau = np.empty(survivals.size + 1, dtype=np.int64)
    tau[0] = start
    np.cumsum(survivals, out=tau[1:])
    tau[1:] += start
    return tau
