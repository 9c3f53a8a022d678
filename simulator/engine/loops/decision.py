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
    beyond,
    first_decline,
    foresight_walk,
    lookahead_walk,
    table_lengths,
)
from sglang_dspark.policies.rules.budget import PRIOR_WEIGHT
from simulator.engine.loops import layout as at


@njit
def identity(fit: Any) -> bool:
    """Whether a correction, see `Room.fit`, leaves confidences as they are."""
    return bool(fit[0] == 1.0 and fit[1] == 0.0)


@njit
def decide(room: Any, inverse: Any, counts: Any) -> int:
    """Draft tokens to verify: of each request into `lengths`, and all together. inverse, counts: the rule's tables."""
    n, lengths, values, spare = room.n, room.lengths, room.values, room.spare
    size, kind, floor, cap = n[at.SIZE], n[at.KIND], n[at.FLOOR], n[at.CAP]
    if kind == programs.CONSTANT:
        for i in range(size):
            lengths[i] = floor
        return size * floor
    gather(n, room.columns, room.units, room.live)
    live, certain = room.live[:size], room.certain
    corrects = n[at.CALIBRATED] and not identity(room.fit)
    if corrects or (kind == programs.LENGTH and inverse.size > 0):
        gather(n, room.columns, room.confidence, certain)
    if corrects:
        corrected(certain[:size], room.fit[0], room.fit[1], certain, room.corrected)
        live = room.corrected[:size]
    none = values[:0]  # no request has a cap of its own
    if kind == programs.LENGTH:
        table_lengths(certain[:size], live, inverse, counts, lengths)
        return lengths[:size].sum()
    if kind == programs.ARGMAX or kind == programs.FORESIGHT:
        look(n, room.columns, room.fit, room.prior, room.ring, room.owners, room.lagged)
    if kind == programs.BUDGET or kind == programs.ARGMAX or kind == programs.GOODPUT:
        if kind == programs.BUDGET:
            budget = counts[0]
        elif kind == programs.ARGMAX:
            budget = best_budget_in(room.lagged[:size], inverse, floor, cap, none, n[at.LEAST], values, spare)
        else:
            budget = min(max(size * goodput(room.rates, inverse, n[at.GAMMA]), size * floor), size * cap)
        allocate_into(live, budget, floor, cap, none, lengths, values, spare)
        return budget
    start, tau = admitted_below(live, floor, cap, none)
    if kind == programs.FORESIGHT:  # before the rooms to sort in are taken
        found = candidates(room.lagged[:size], floor, cap, none, values)
        sort_descending(values, found, spare)
        tiers = beyond(values[:found], start, size * cap, counts, room.beyond)
    count = candidates(live, floor, cap, none, values)
    sort_descending(values, count, spare)
    if kind == programs.FORESIGHT:
        tops, summed, after = room.beyond[0, :tiers], room.beyond[1, :tiers], room.beyond[2, :tiers]
        total = foresight_walk(tops, summed, after, inverse, start, tau, values[:count])
    elif kind == programs.LOOKAHEAD:
        total = lookahead_walk(counts, inverse, start, tau, values[:count])
    else:
        total = start + first_decline(values[:count], tau, inverse[start:])
        if counts.size:
            total = min(max(counts[total], total), size * cap)
    if total > start:
        lengths_above(live, values[total - start - 1], total, floor, cap, none, lengths)
    else:
        for i in range(size):
            lengths[i] = min(floor, cap)
    return total


@njit
def gather(n: Any, columns: Any, blocks: Any, out: Any) -> None:
    """What blocks at hand hold for this step's rows, into `out`."""
    for i in range(n[at.SIZE]):
        row = columns[at.ROW, i]
        for j in range(n[at.GAMMA]):
            out[i, j] = blocks[row, j]


@njit
def look(n: Any, columns: Any, fit: Any, prior: Any, ring: Any, owners: Any, out: Any) -> None:
    """Survivals [R, gamma] published `LAG` steps ago, as the rule sees them, into `out`."""
    size, gamma = n[at.SIZE], n[at.GAMMA]
    then = (n[at.HEAD] - n[at.LAG] + 1) % n[at.DEPTH]
    for i in range(size):
        slot = columns[at.SLOT, i]
        for j in range(gamma):
            out[i, j] = ring[then, slot, j]
    if n[at.CALIBRATED] and not identity(fit):
        corrected_lagged(out[:size], fit[0], fit[1], out)
    for i in range(size):
        if owners[then, columns[at.SLOT, i]] != columns[at.GENERATION, i]:
            for j in range(gamma):
                out[i, j] = prior[j] if n[at.COLD] else SCALE


@njit
def publish(n: Any, columns: Any, ring: Any, owners: Any, live: Any) -> None:
    """This step's survivals go into the ring."""
    head, gamma = n[at.HEAD], n[at.GAMMA]
    newest = (head + 1) % n[at.DEPTH]
    if newest != head and n[at.SIZE] < n[at.HIGH_SLOT]:  # else every slot that was ever used is written below
        for slot in range(n[at.HIGH_SLOT]):
            owners[newest, slot] = owners[head, slot]
            for j in range(gamma):
                ring[newest, slot, j] = ring[head, slot, j]
    for i in range(n[at.SIZE]):
        slot = columns[at.SLOT, i]
        owners[newest, slot] = columns[at.GENERATION, i]
        for j in range(gamma):
            ring[newest, slot, j] = live[i, j]
    n[at.HEAD] = newest


@njit
def goodput(rates: Any, inverse: Any, gamma: int) -> int:
    """The common k of `Goodput`."""
    rate = min(rates[0] / rates[1], 0.999) if rates[1] > 0.0 else rates[2]
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
        _learn(n, room.fit, room.prior, room.rates, room.live, room.lengths, room.accepted, size, room.corrected)
        if n[at.REPRICED]:
            _learn_price(n, room.met, room.means, room.grains, room.found, tokens, f[at.SECONDS] / believed)
        return
    pending, units = room.pending, room.pending_units
    if n[at.PENDING] >= 0:
        _learn(n, room.fit, room.prior, room.rates, units, pending[0], pending[1], n[at.PENDING], room.corrected)
        if n[at.REPRICED]:
            ratio = f[at.MEASURED] / f[at.BELIEVED]
            _learn_price(n, room.met, room.means, room.grains, room.found, n[at.PENDING_TOKENS], ratio)
    n[at.PENDING], n[at.PENDING_TOKENS] = size, tokens
    f[at.BELIEVED], f[at.MEASURED] = believed, f[at.SECONDS]
    for i in range(size):
        pending[0, i], pending[1, i] = room.lengths[i], room.accepted[i]
        for j in range(n[at.GAMMA]):
            units[i, j] = room.live[i, j]


@njit
def _learn(
    n: Any, fit: Any, prior: Any, rates: Any, units: Any, lengths: Any, accepted: Any, size: int, spare: Any
) -> None:
    """From the outcome of one step, of `size` requests."""
    if n[at.COLD]:
        survival = units[:size]
        if n[at.CALIBRATED] and not identity(fit):
            corrected_lagged(survival, fit[0], fit[1], spare)
            survival = spare[:size]
        for j in range(n[at.GAMMA]):
            total = np.int64(0)
            for i in range(size):
                total += survival[i, j]
            prior[j] += (total // size - prior[j]) // PRIOR_WEIGHT
    if n[at.KIND] == programs.GOODPUT:
        good, tried = np.int64(0), np.int64(0)
        for i in range(size):
            good += accepted[i]
            tried += min(accepted[i] + 1, lengths[i])
        rates[0] = rates[0] * rates[3] + float(good)
        rates[1] = rates[1] * rates[3] + float(tried)
    if n[at.CALIBRATED]:
        followed(fit, units[:size], lengths[:size], accepted[:size])


@njit
def _learn_price(n: Any, met: Any, means: Any, grains: Any, found: Any, tokens: int, ratio: float) -> None:
    """From the time of one step."""
    n[at.MET] = followed_tier(met, means, n[at.MET], tokens, ratio)
    if tier_grains(met, means, n[at.MET], grains, found):
        n[at.VERSION] += 1
