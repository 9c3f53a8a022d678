"""Decode steps one after the other, as long as nothing outside can happen in between.

What a step is, stands in `replica` and `decoding`; here it stands a second time, as loops. Both work on the same
arrays, and tests run whole simulations through both.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sglang_dspark.cost.model import CONTEXT_STEP
from sglang_dspark.jit import njit
from simulator.engine.loops import layout
from simulator.engine.loops import layout as at
from simulator.engine.loops.decision import decide, learn, publish

cut = njit(layout.cut)


@njit
def advance(
    ints: Any, floats: Any, singles: Any, index: Any, entries: Any, prices: Any, counts: Any, times: Any, tokens: Any
) -> int:
    """Begin a step and go on until one must end before the eyes of others; why it came back (`ENDS` and so on).

    ints, floats, singles: see `layout`. index, entries, prices, counts: see `PriceTables`. times [2, n], tokens [n,
    gamma + 2]: where bursts go. The host has looked already at the moment at which the first step begins.
    """
    room = cut(ints, floats, singles)
    n, f, columns = room.n, room.f, room.columns
    while True:
        why = _begin(room, index, entries, prices, counts)
        if why != at.ENDS or _must_end(n, f, columns, room.committed, tokens.shape[0]):
            return why
        _end(n, f, columns, room.committed, room.left, room.finished, room.finished_s)
        _burst(n, f, room.committed, room.index_of, room.joined_slots, room.joined_s, times, tokens)
        f[at.NOW] = f[at.END]
        _look_again(n, f, columns, room.index_of, room.free_slots, room.left)


@njit
def finish(ints: Any, floats: Any, singles: Any, times: Any, tokens: Any) -> None:
    """The step under way ends."""
    room = cut(ints, floats, singles)
    n, f = room.n, room.f
    _end(n, f, room.columns, room.committed, room.left, room.finished, room.finished_s)
    _burst(n, f, room.committed, room.index_of, room.joined_slots, room.joined_s, times, tokens)


@njit
def _look_again(n: Any, f: Any, columns: Any, index_of: Any, free_slots: Any, left: Any) -> None:
    """What the host does between two steps when nobody waits: see `Engine.prefill_next` and `Memory.decode_step`."""
    while n[at.LEAVING] and left[1, 0] <= n[at.STEPS] - n[at.LEAVE_LAG]:
        _leave(n, columns, index_of, free_slots, left, 0)
    while n[at.LEAVING]:
        foreseen = -1
        for k in range(n[at.LEAVING]):
            if left[2, k] and (foreseen < 0 or left[0, k] < left[0, foreseen]):
                foreseen = k
        if foreseen < 0:
            break
        _leave(n, columns, index_of, free_slots, left, foreseen)
    f[at.RATIO] = max(f[at.RATIO] - f[at.RATIO_STEP], f[at.RATIO_LEAST])


@njit
def _leave(n: Any, columns: Any, index_of: Any, free_slots: Any, left: Any, which: int) -> None:
    """A finished request leaves the batch; the last row moves into its place."""
    slot = left[0, which]
    n[at.LEAVING] -= 1
    n[at.LEFT] += 1
    n[at.BLOCKED] = 0
    for k in range(which, n[at.LEAVING]):
        for row in range(3):
            left[row, k] = left[row, k + 1]
    index = index_of[slot]
    n[at.CONTEXT] -= columns[at.WHOLE, index]
    free_slots[n[at.CAPACITY] - n[at.SIZE]] = slot
    n[at.SIZE] -= 1
    for row in range(columns.shape[0]):
        columns[row, index] = columns[row, n[at.SIZE]]
    index_of[columns[at.SLOT, index]] = index


@njit
def _begin(room: Any, index: Any, entries: Any, prices: Any, counts: Any) -> int:
    """Draft, decide, price; or what is missing for it."""
    n, f, columns, size = room.n, room.f, room.columns, room.n[at.SIZE]
    if not _blocks_at_hand(n, columns):
        return at.NEEDS_BLOCKS
    steps = n[at.CONTEXT] / size / CONTEXT_STEP
    low = int(np.floor(steps)) if n[at.COST_CONTEXT] else 0
    rule = _missing(n, steps, low, index, entries)
    if rule < 0:
        return -rule
    begin, first = entries[rule, at.E_FLOATS], entries[rule, at.E_INTS]
    inverse = prices[begin : begin + entries[rule, at.E_NUM_FLOATS]]
    total = decide(room, inverse, counts[first : first + entries[rule, at.E_NUM_INTS]])
    if n[at.PUBLISHES]:
        publish(n, columns, room.ring, room.owners, room.live)
    cheap = entries[index[1, size, low], at.E_FLOATS]
    dear = entries[index[1, size, low + 1], at.E_FLOATS] if n[at.COST_CONTEXT] else cheap
    draft, verify = _priced(n, f, columns, room.lengths, total, steps - low, cheap, dear, prices)
    n[at.TOTAL] = total
    n[at.COMMITTED] = _commit(size, columns, room.depth, room.lengths, room.accepted, room.committed)
    seconds = _seconds(n, f, draft, verify)
    f[at.DRAFT], f[at.VERIFY], f[at.SECONDS], f[at.END] = draft, verify, seconds, f[at.NOW] + seconds
    if n[at.LEARNS]:
        executed, believed = 0, 1.0
        if n[at.REPRICED]:
            executed = counts[entries[rule, at.E_EXECUTED] + total]
            believed = prices[entries[rule, at.E_SECONDS] + total]
        learn(room, executed, believed)
    n[at.SUM_BEYOND] += _beyond_probes(f, size, size + total)
    return at.ENDS


@njit
def _commit(size: int, columns: Any, depth: Any, lengths: Any, accepted: Any, committed: Any) -> int:
    """What the target makes of it, row by row; the tokens given in all."""
    total = 0
    for i in range(size):
        accepted[i] = min(lengths[i], depth[columns[at.ROW, i]])
        committed[i] = min(accepted[i] + 1, columns[at.REMAINING, i])
        total += committed[i]
    return total


@njit
def _blocks_at_hand(n: Any, columns: Any) -> bool:
    """See `DecodeBatch.refill`."""
    if n[at.SAFE] > 0:
        n[at.SAFE] -= 1
        return True
    used = 0
    for i in range(n[at.SIZE]):
        used = max(used, columns[at.ROW, i] - columns[at.SLOT, i] * at.BLOCKS_AHEAD)
    n[at.SAFE] = max((at.BLOCKS_AHEAD - 1 - used) // (n[at.GAMMA] + 1), 0)
    return used < at.BLOCKS_AHEAD


@njit
def _missing(n: Any, steps: float, low: int, index: Any, entries: Any) -> int:
    """The entry of the rule's tables for this batch; if a table is missing, less than 0: of which kind."""
    size = n[at.SIZE]
    bucket = int(np.rint(steps)) if n[at.RULE_CONTEXT] else 0
    n[at.NEED_REQUESTS], n[at.NEED_BUCKET] = size, bucket
    rule = index[0, size, bucket]
    if rule < 0 or entries[rule, at.E_VERSION] != n[at.VERSION]:
        return -at.NEEDS_RULE
    for near in range(2 if n[at.COST_CONTEXT] else 1):
        if index[1, size, low + near] < 0:
            n[at.NEED_BUCKET] = low + near
            return -at.NEEDS_COST
    return rule


@njit
def _priced(
    n: Any, f: Any, columns: Any, lengths: Any, total: int, weight: float, low: int, high: int, prices: Any
) -> Any:
    """(draft, verify) seconds, from tables at `low` and `high`; see `StepCost.decode_s` and `width_context_s`."""
    draft, whole = prices[low], prices[low + 1 + total]
    if n[at.COST_CONTEXT]:
        draft = (1.0 - weight) * draft + weight * prices[high]
        whole = (1.0 - weight) * whole + weight * prices[high + 1 + total]
    verify = whole - draft
    if f[at.WIDTH_S] != 0.0:
        wide, contexts = 0, 0
        for i in range(n[at.SIZE]):
            context = columns[at.WHOLE, i] - columns[at.REMAINING, i]
            wide += lengths[i] * context
            contexts += context
        verify += f[at.WIDTH_S] * (wide - total * (contexts / n[at.SIZE]))
    return (draft if n[at.DRAFTS] else 0.0), verify


@njit
def _seconds(n: Any, f: Any, draft: float, verify: float) -> float:
    """See `EngineModel.decode_seconds`."""
    host, verify = f[at.HOST_S], verify + f[at.ADAPTIVE_S]
    if n[at.SCHEDULE] == at.OVERLAPPED:
        return max(draft + verify, host)
    if n[at.SCHEDULE] == at.SYNCHRONOUS:
        return draft + f[at.COPY_S] + max(verify, host)
    return draft + (f[at.COPY_S] if n[at.LIVE] else 0.0) + verify + host


@njit
def _beyond_probes(f: Any, requests: int, tokens: int) -> int:
    """See `StepCost.beyond_probes`."""
    low, high = f[at.LOW], f[at.HIGH]
    if tokens > f[at.LAST_CAPTURED] or requests > f[at.CAPTURED_REQUESTS]:
        low, high = f[at.EAGER_LOW], f[at.EAGER_HIGH]
    inside = low <= tokens <= high and f[at.FEWEST] <= requests <= f[at.MOST_REQUESTS]
    return 0 if inside else 1


@njit
def _must_end(n: Any, f: Any, columns: Any, committed: Any, bursts: int) -> bool:
    """Whether somebody must see the step under way end: what others do by then, or what it does to them."""
    size = n[at.SIZE]
    n[at.MOST] -= 1
    if n[at.MOST] <= 0 or n[at.BURSTS] + n[at.CAPACITY] + 2 > bursts:
        return True
    ending = 0
    for i in range(size):
        ending += committed[i] > 0 and committed[i] == columns[at.REMAINING, i]
    if ending == size - n[at.LEAVING] or (ending and n[at.STOP_AT_FINISH]):
        return True
    leaves = ending > 0 or n[at.LEAVING] > 0
    if n[at.STOP_AT_LEAVE] and leaves:
        return True
    if n[at.CONTEXT] + n[at.COMMITTED] + size * n[at.RESERVE] > n[at.ROOM]:
        return True
    if n[at.BLOCKED] and not leaves:
        return False
    return f[at.NOW] > f[at.HORIZON] if n[at.LATE] else f[at.END] >= f[at.HORIZON]


@njit
def _end(n: Any, f: Any, columns: Any, committed: Any, left: Any, finished: Any, finished_s: Any) -> None:
    """What the step under way leaves behind; see `Engine.end_decode`."""
    size = n[at.SIZE]
    n[at.STEPS] += 1
    n[at.DECODE_STEPS] += 1
    n[at.SUM_STEPS] += 1
    n[at.SUM_VERIFIED] += size + n[at.TOTAL]
    n[at.SUM_COMMITTED] += n[at.COMMITTED]
    n[at.SUM_REQUEST_STEPS] += size - n[at.LEAVING]
    n[at.SUM_ROWS] += size
    f[at.SUM_DRAFT] += f[at.DRAFT]
    f[at.SUM_VERIFY] += f[at.VERIFY]
    f[at.SUM_SECONDS] += f[at.SECONDS]
    n[at.CONTEXT] += n[at.COMMITTED]
    n[at.WANTED] -= n[at.COMMITTED]
    for i in range(size):
        given = committed[i]
        columns[at.ROW, i] += given
        columns[at.REMAINING, i] -= given
        if given > 0 and columns[at.REMAINING, i] == 0:
            k, ended = n[at.LEAVING], n[at.FINISHED]
            left[0, k], left[1, k], left[2, k] = columns[at.SLOT, i], n[at.STEPS], given == 1
            finished[0, ended] = columns[at.REQUEST, i]
            finished[1, ended] = n[at.DECODE_STEPS] - columns[at.JOINED, i]
            finished_s[ended] = f[at.END]
            n[at.LEAVING] += 1
            n[at.FINISHED] += 1


@njit
def _burst(
    n: Any, f: Any, committed: Any, index_of: Any, joined_slots: Any, joined_s: Any, times: Any, tokens: Any
) -> None:
    """See `Gaps.decode`."""
    now, others = f[at.END], n[at.BURSTS] + n[at.JOINS]
    for given in range(tokens.shape[1]):
        tokens[others, given] = 0
    for i in range(n[at.SIZE]):
        tokens[others, committed[i]] += 1
    for k in range(n[at.JOINS]):
        row = n[at.BURSTS] + k
        given = committed[index_of[joined_slots[k]]]
        for number in range(tokens.shape[1]):
            tokens[row, number] = number == given
        tokens[others, given] -= 1
        times[0, row], times[1, row] = now, now - joined_s[k]
    older = n[at.JOINS] == 0
    for given in range(1, tokens.shape[1]):
        older = older or tokens[others, given] > 0
    n[at.BURSTS] = others
    n[at.JOINS] = 0
    if older:
        times[0, others], times[1, others] = now, now - f[at.PREVIOUS]
        n[at.BURSTS] += 1
    f[at.PREVIOUS] = now


def warm() -> None:
    """Compile all of it, or load it, with the types that `Stepper` calls it with: steps of an empty batch."""
    arrays = layout.new_room(1, 1, 1, confidence=True)
    times, tokens = np.empty((2, 4)), np.empty((4, 3), dtype=np.uint32)
    finish(*arrays, times, tokens)
    index, entries = np.full((2, 2, 1), -1, dtype=np.int64), np.zeros((1, 7), dtype=np.int64)
    advance(*arrays, index, entries, np.zeros(1), np.zeros(1, dtype=np.int64), times, tokens)
