"""What each kind of rule does with survivals and prices."""

from __future__ import annotations

from typing import Any

import numpy as np

from sglang_dspark.jit import njit, njit_making_arrays
from sglang_dspark.policies.loops.order import SCALE, SPARE, candidates, highest, sort_descending
from sglang_dspark.policies.rules.foresight import MOST_RATIO


@njit
def admitted_below(units: Any, floor: int, cap: int, caps: Any) -> Any:
    """(draft tokens, tau in units) of a batch before the walk begins."""
    start, tau = 0, np.int64(units.shape[0]) * SCALE
    for i in range(units.shape[0]):
        for j in range(min(floor, highest(caps, i, cap))):
            start += 1
            tau += units[i, j]
    return start, tau


@njit
def best_count(values: Any, count: int, start: int, tau: int, inverse: Any) -> int:
    """The first maximum of tau * inverse along sorted survivals, from `start` admitted with `tau`."""
    best, at = float(tau) * inverse[start], start
    for k in range(count):
        tau += values[k]
        theta = float(tau) * inverse[start + k + 1]
        if theta > best:
            best, at = theta, start + k + 1
    return at


@njit
def best_budget_in(
    units: Any, inverse: Any, floor: int, cap: int, caps: Any, least: int, values: Any, spare: Any
) -> int:
    """`best_budget`; values, spare: as for `allocate_into`."""
    start, tau = admitted_below(units, floor, cap, caps)
    count = candidates(units, floor, cap, caps, values)
    sort_descending(values, count, spare)
    while least and count and values[count - 1] < least:
        count -= 1
    return best_count(values, count, start, tau, inverse)


@njit_making_arrays
def best_budget(units: Any, inverse: Any, floor: int, cap: int, caps: Any, least: int) -> int:
    """See `classes.budget.best_budget`."""
    values, spare = np.empty(units.size, np.int64), np.empty(units.size + SPARE, np.int64)
    return best_budget_in(units, inverse, floor, cap, caps, least, values, spare)


@njit
def first_decline(values: Any, tau: int, inverse: Any) -> int:
    """How many of the sorted survivals are admitted before tau * inverse first fails to rise; inverse[0] is of none."""
    count = min(values.size, inverse.size - 1)
    theta = float(tau) * inverse[0] if count > 0 else 0.0
    for k in range(count):
        tau += values[k]
        further = float(tau) * inverse[k + 1]
        if not further > theta:
            return k
        theta = further
    return max(count, 0)


@njit
def lookahead_walk(tops: Any, inverse: Any, admitted: int, tau: int, values: Any) -> int:
    """See `Lookahead.walk`."""
    first = 0
    for k in range(values.size):
        here, survival = admitted + k, values[k]
        while first < tops.size and tops[first] <= here:
            first += 1
        best = 0.0
        for t in range(first, tops.size):
            best = max(best, float(tau + (tops[t] - here) * survival) * inverse[tops[t]])
        if not best > float(tau) * inverse[here]:
            return here
        tau += survival
    return admitted + values.size


@njit_making_arrays
def foresight_tables(lagged: Any, start: int, most: int, tier_tops: Any) -> Any:
    """See `Beyond`: (tops, summed, next) from sorted lagged survivals; tops beyond `most` count as it."""
    out = np.empty((3, tier_tops.size), dtype=np.int64)
    count = beyond(lagged, start, most, tier_tops, out)
    return out[0, :count], out[1, :count], out[2, :count]


@njit
def beyond(lagged: Any, start: int, most: int, tier_tops: Any, out: Any) -> int:
    """`foresight_tables` into `out` [3, n], and how many tops."""
    count, done, total = 0, 0, 0
    for k in range(tier_tops.size):
        top = min(tier_tops[k], most)
        if top < start or (count and out[0, count - 1] == top):
            continue
        while done < top - start:
            total += lagged[done]
            done += 1
        out[0, count], out[1, count] = top, total
        out[2, count] = lagged[done] if done < lagged.size else 0
        count += 1
    return count


@njit
def foresight_walk(tops: Any, summed: Any, after: Any, inverse: Any, admitted: int, tau: int, values: Any) -> int:
    """See `Foresight.walk`."""
    if tops.size == 0 or admitted > tops[-1]:
        return admitted
    done = 0
    for at in range(tops.size):
        here = tops[at]
        if here < admitted:
            continue
        if here >= admitted + values.size:
            break
        while done < here - admitted:
            tau += values[done]
            done += 1
        survival, best = values[done], 0.0
        for t in range(at + 1, tops.size):
            more = summed[t] - summed[at]
            gain = min(min(more * survival // max(after[at], 1), MOST_RATIO * more), (tops[t] - here) * survival)
            best = max(best, float(tau + gain) * inverse[tops[t]])
        if not best > float(tau) * inverse[here]:
            return here
    return min(tops[-1], admitted + values.size)


@njit
def table_lengths(confidence: Any, units: Any, least_confidence: Any, least_survival: Any, out: Any) -> None:
    """See `TableLength.lengths`; a table without entries is not asked for."""
    for i in range(units.shape[0]):
        length = 0
        while length < units.shape[1]:
            if least_survival.size and units[i, length] < least_survival[length]:
                break
            if least_confidence.size and not confidence[i, length] >= least_confidence[length]:
                break
            length += 1
        out[i] = length
