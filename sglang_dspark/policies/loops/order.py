"""Survivals, their admission order, and the first K of it."""

from __future__ import annotations

from typing import Any

import numpy as np

from sglang_dspark.jit import njit, njit_making_arrays
from sglang_dspark.policies.arithmetic import SCALE, SPARE

_FEW = 48  # up to so many values insertion beats counting
_DIGIT = SPARE // 3
_TOP = 14  # bits that the search for the K-th leaves to its second look


@njit
def survival_units(confidence: Any, out: Any) -> None:
    """Survivals of [R, gamma] float32 confidences in 0..1 into `out` [R, gamma] int64."""
    for i in range(confidence.shape[0]):
        survival = np.float32(1.0)
        for j in range(confidence.shape[1]):
            survival = np.float32(survival * confidence[i, j])
            out[i, j] = np.int64(np.rint(survival * np.float32(SCALE)))


@njit
def highest(caps: Any, request: int, cap: int) -> int:
    """The last position that may be verified of a request: `cap`, or its own of `caps` ([0]: none has one)."""
    return min(cap, caps[request]) if caps.size else cap


@njit
def sort_descending(values: Any, count: int, spare: Any) -> None:
    """Sort values[:count] in 0..2^24 in place; spare: [>= count + SPARE] int64."""
    if count <= _FEW:
        for i in range(1, count):
            value, k = values[i], i
            while k > 0 and values[k - 1] < value:
                values[k] = values[k - 1]
                k -= 1
            values[k] = value
        return
    ends = spare[count : count + SPARE]
    for k in range(SPARE):
        ends[k] = 0
    for i in range(count):
        value = values[i]
        ends[value & 511] += 1
        ends[512 + (value >> 9 & 511)] += 1
        ends[1024 + (value >> 18)] += 1
    for first in range(0, SPARE, _DIGIT):
        total = 0
        for k in range(first + _DIGIT - 1, first - 1, -1):
            number = ends[k]
            ends[k] = total
            total += number
    _by_digit(values, count, spare, ends, 0, 0)
    _by_digit(spare, count, values, ends, 9, 512)
    _by_digit(values, count, spare, ends, 18, 1024)
    for i in range(count):  # as a slice it takes seconds to compile
        values[i] = spare[i]


@njit
def _by_digit(source: Any, count: int, target: Any, ends: Any, shift: int, first: int) -> None:
    """Sort by one digit, which keeps the order of what is equal in it."""
    for i in range(count):
        value = source[i]
        k = first + (value >> shift & 511)
        target[ends[k]] = value
        ends[k] += 1


@njit
def candidates(units: Any, floor: int, cap: int, caps: Any, out: Any) -> int:
    """The survivals that a walk may meet, in no order, into `out`; how many."""
    count = 0
    for i in range(units.shape[0]):
        for j in range(floor, highest(caps, i, cap)):
            out[count] = units[i, j]
            count += 1
    return count


@njit_making_arrays
def sorted_survivals(units: Any, floor: int, cap: int, caps: Any) -> Any:
    """Survivals along the admission order, [n] int64."""
    out = np.empty(units.size, dtype=np.int64)
    count = candidates(units, floor, cap, caps, out)
    sort_descending(out, count, np.empty(count + SPARE, dtype=np.int64))
    return out[:count]


@njit
def _kth(values: Any, count: int, k: int, spare: Any) -> int:
    """The k-th largest (1-based) of values[:count], which lose their order."""
    if count <= _FEW:
        sort_descending(values, count, spare)
        return values[k - 1]
    tally = spare[: (SCALE >> _TOP) + 1]
    for bucket in range(tally.size):
        tally[bucket] = 0
    for i in range(count):
        tally[values[i] >> _TOP] += 1
    bucket, before = tally.size - 1, 0
    while before + tally[bucket] < k:
        before += tally[bucket]
        bucket -= 1
    inside: Any = np.int64(0)  # a literal 0 would be a type of its own, and `sort_descending` compile twice
    for i in range(count):
        if values[i] >> _TOP == bucket:
            values[inside] = values[i]
            inside += 1
    sort_descending(values, inside, spare)
    return values[k - before - 1]


@njit
def lengths_above(units: Any, least: int, total: int, floor: int, cap: int, caps: Any, out: Any) -> None:
    """Admitted tokens of each request into `out`, `total` in all, the last of which has the survival `least`."""
    left = total
    for i in range(units.shape[0]):
        high = highest(caps, i, cap)
        length = min(floor, high)
        left -= length
        for j in range(floor, high):
            if units[i, j] > least:
                length += 1
                left -= 1
        out[i] = length
    for j in range(floor, cap):
        if left <= 0:
            return
        for i in range(units.shape[0]):
            if left > 0 and j < highest(caps, i, cap) and units[i, j] == least:
                out[i] += 1
                left -= 1


@njit
def allocate_into(units: Any, budget: int, floor: int, cap: int, caps: Any, out: Any, values: Any, spare: Any) -> None:
    """`allocate`; values, spare: [R * gamma] and SPARE more, int64, to work in."""
    requests = units.shape[0]
    low = most = 0
    for i in range(requests):
        high = highest(caps, i, cap)
        low += min(floor, high)
        most += high
    if budget <= low or budget >= most:
        for i in range(requests):
            high = highest(caps, i, cap)
            out[i] = high if budget >= most and budget > low else min(floor, high)
        return
    count = candidates(units, floor, cap, caps, values)
    lengths_above(units, _kth(values, count, budget - low, spare), budget, floor, cap, caps, out)


@njit_making_arrays
def allocate(units: Any, budget: int, floor: int, cap: int, caps: Any) -> Any:
    """See `arithmetic.allocate`."""
    out = np.empty(units.shape[0], dtype=np.int64)
    spare = np.empty(units.size + SPARE, dtype=np.int64)
    allocate_into(units, budget, floor, cap, caps, out, np.empty(units.size, dtype=np.int64), spare)
    return out
