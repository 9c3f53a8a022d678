"""What a step drafts and decides, and what is learned from it: `decoding` as loops."""

from __future__ import annotations

from typing import Any

import numpy as np

from sglang_dspark.jit import njit
from sglang_dspark.policies import programs
from sglang_dspark.policies.loops.costs import followed_tier, tier_grains
from sglang_dspark.policies.loops.learning import corrected, corrected_lagged, followed
from sglang_dspark.policies.loops.order import SCALE, allocate_into, candidates, lengths_above, sort_descending
from sglang_dspark.policies.loops.rules import (
    admitted_below,
    best_budget_in,
    first_decline,
    foresight_tables,
    foresight_walk,
    lookahead_walk,
    table_lengths,
)
from simulator.engine.loops import layout as at

PRIOR_WEIGHT = 16  # of `Argmax`


@njit
def corrects(room: Any) -> bool:
    """Whether confidences are corrected in this step."""
    return bool(room.n[at.CALIBRATED]) and not (room.fit[0] == 1.0 and room.fit[1] == 0.0)


@njit
def decide(room: Any, inverse: Any, counts: Any) -> int:
    """Draft tokens to verify: of each request into `lengths`, and all together. inverse, counts: the rule's tables."""
    n, size, lengths = room.n, room.n[at.SIZE], room.lengths
    kind, floor, cap, gamma = n[at.KIND], n[at.FLOOR], n[at.CAP], n[at.GAMMA]
    if kind == programs.CONSTANT:
        lengths[:size] = floor
        return size * floor
    live, certain = _seen(room, kind == programs.LENGTH and inverse.size > 0)
    none = room.values[:0]  # no request has a cap of its own
    if kind == programs.LENGTH:
        table_lengths(certain[:size], live, inverse, counts, lengths)
        return lengths[:size].sum()
    if kind == programs.BUDGET or kind == programs.ARGMAX or kind == programs.GOODPUT:
        if kind == programs.BUDGET:
            budget = counts[0]
        elif kind == programs.ARGMAX:
            lagged = _look(room)
            budget = best_budget_in(lagged, inverse, floor, cap, none, n[at.LEAST], room.values, room.spare)
        else:
            budget = min(max(size * _goodput(room, inverse, gamma), size * floor), size * cap)
        allocate_into(live, budget, floor, cap, none, lengths, room.values, room.spare)
        return budget
    start, tau = admitted_below(live, floor, cap, none)
    if kind == programs.FORESIGHT:  # before the rooms to sort in are taken
        lagged, most = _look(room), size * cap
        found = candidates(lagged, floor, cap, none, room.values)
        sort_descending(room.values, found, room.spare)
        tops, summed, after = foresight_tables(room.values[:found], start, most, counts)
    count = candidates(live, floor, cap, none, room.values)
    sort_descending(room.values, count, room.spare)
    values = room.values[:count]
    if kind == programs.FORESIGHT:
        total = foresight_walk(tops, summed, after, inverse, start, tau, values)
    elif kind == programs.LOOKAHEAD:
        total = lookahead_walk(counts, inverse, start, tau, values)
    else:
        total = start + first_decline(values, tau, inverse[start:])
        if counts.size:
            total = min(max(counts[total], total), size * cap)
    if total == start:
        lengths[:size] = min(floor, cap)
    else:
        lengths_above(live, values[total - start - 1], total, floor, cap, none, lengths)
    return total


@njit
def _seen(room: Any, confidences: bool) -> Any:
    """The block as the rule sees it: survivals [R, gamma] and confidences, which are filled only where they are asked
    for."""
    n, size, certain = room.n, room.n[at.SIZE], room.certain
    fixed = corrects(room)
    if fixed or confidences:
        for i in range(size):
            row = room.columns[at.ROW, i]
            for j in range(n[at.GAMMA]):
                certain[i, j] = room.confidence[row, j]
    if not fixed:
        return room.live[:size], certain
    corrected(certain[:size], room.fit[0], room.fit[1], certain, room.corrected)
    return room.corrected[:size], certain


@njit
def look_at_blocks(room: Any) -> None:
    """This step's survivals as drafted, into `live`."""
    for i in range(room.n[at.SIZE]):
        row = room.columns[at.ROW, i]
        for j in range(room.n[at.GAMMA]):
            room.live[i, j] = room.units[row, j]


@njit
def _look(room: Any) -> Any:
    """Survivals [R, gamma] published `LAG` steps ago, as the rule sees them."""
    n, size, lagged = room.n, room.n[at.SIZE], room.lagged
    then = (n[at.HEAD] - n[at.LAG] + 1) % n[at.DEPTH]
    for i in range(size):
        slot = room.columns[at.SLOT, i]
        for j in range(n[at.GAMMA]):
            lagged[i, j] = room.ring[then, slot, j]
    if corrects(room):
        corrected_lagged(lagged[:size], room.fit[0], room.fit[1], lagged)
    for i in range(size):
        slot = room.columns[at.SLOT, i]
        if room.owners[then, slot] != room.columns[at.GENERATION, i]:
            for j in range(n[at.GAMMA]):
                lagged[i, j] = room.prior[j] if n[at.COLD] else SCALE
    return lagged[:size]


@njit
def publish(room: Any) -> None:
    """This step's survivals go into the ring."""
    n, size = room.n, room.n[at.SIZE]
    newest = (n[at.HEAD] + 1) % n[at.DEPTH]
    if newest != n[at.HEAD]:
        for slot in range(n[at.HIGH_SLOT]):
            room.owners[newest, slot] = room.owners[n[at.HEAD], slot]
            for j in range(n[at.GAMMA]):
                room.ring[newest, slot, j] = room.ring[n[at.HEAD], slot, j]
    for i in range(size):
        slot = room.columns[at.SLOT, i]
        room.owners[newest, slot] = room.columns[at.GENERATION, i]
        for j in range(n[at.GAMMA]):
            room.ring[newest, slot, j] = room.live[i, j]
    n[at.HEAD] = newest


@njit
def _goodput(room: Any, inverse: Any, gamma: int) -> int:
    """The common k of `Goodput`."""
    accepted, tried, prior, _ = room.rates
    rate = min(accepted / tried, 0.999) if tried > 0.0 else prior
    power, tokens, best, found = 1.0, 0.0, -1.0, 0
    for k in range(gamma + 1):
        tokens += power
        power *= rate
        if tokens * inverse[k] > best:
            best, found = tokens * inverse[k], k
    return found


@njit
def learn(room: Any, tokens: int, believed: float) -> None:
    """The step's outcome is on its way to the host, which learns from the one that arrives; see `Decoder`."""
    n, f, size = room.n, room.f, room.n[at.SIZE]
    if n[at.OUTCOME_LAG] == 1:
        _learned(room, room.live[:size], room.lengths[:size], room.accepted[:size])
        if n[at.REPRICED]:
            _priced(room, tokens, f[at.SECONDS] / believed)
        return
    if n[at.PENDING] >= 0:
        count = n[at.PENDING]
        _learned(room, room.pending_units[:count], room.pending[0, :count], room.pending[1, :count])
        if n[at.REPRICED]:
            _priced(room, n[at.PENDING_TOKENS], f[at.MEASURED] / f[at.BELIEVED])
    n[at.PENDING], n[at.PENDING_TOKENS] = size, tokens
    f[at.BELIEVED], f[at.MEASURED] = believed, f[at.SECONDS]
    room.pending_units[:size] = room.live[:size]
    room.pending[0, :size], room.pending[1, :size] = room.lengths[:size], room.accepted[:size]


@njit
def _learned(room: Any, survival: Any, lengths: Any, accepted: Any) -> None:
    n, size = room.n, survival.shape[0]
    if n[at.COLD] and size:
        seen = survival
        if corrects(room):
            seen = room.corrected[:size]  # this step has been decided
            corrected_lagged(survival, room.fit[0], room.fit[1], seen)
        for j in range(n[at.GAMMA]):
            mean = seen[:, j].sum() // size
            room.prior[j] += (mean - room.prior[j]) // PRIOR_WEIGHT
    if n[at.KIND] == programs.GOODPUT:
        tried = np.int64(0)
        for i in range(size):
            tried += min(accepted[i] + 1, lengths[i])
        room.rates[0] = room.rates[0] * room.rates[3] + float(accepted.sum())
        room.rates[1] = room.rates[1] * room.rates[3] + float(tried)
    if n[at.CALIBRATED]:
        followed(room.fit, survival, lengths, accepted)


@njit
def _priced(room: Any, tokens: int, ratio: float) -> None:
    n = room.n
    n[at.MET] = followed_tier(room.met, room.means, n[at.MET], tokens, ratio)
    if tier_grains(room.met, room.means, n[at.MET], room.grains):
        n[at.VERSION] += 1
