"""Decode steps one after the other, as long as nothing outside can happen in between.

What a step is, stands in `replica` and `decoding`; here it stands a second time, as loops. Both work on the same arrays,
and tests run whole simulations through both.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sglang_dspark.cost.model import CONTEXT_STEP
from sglang_dspark.jit import njit
from simulator.engine.loops import layout
from simulator.engine.loops import layout as at
from simulator.engine.loops.decision import decide, learn, look_at_blocks, publish

cut = njit(layout.cut)


@njit
def advance(
    ints: Any, floats: Any, singles: Any, index: Any, entries: Any, prices: Any, counts: Any, times: Any, tokens: Any
) -> int:
    """Begin a step and go on until one must end before the eyes of others; why it came back (`ENDS` and so on).

    ints, floats, singles: see `layout`. index, entries, prices, counts: see `PriceTables`. times [2, n], tokens [n, gamma
    + 2]: where bursts go. The host has looked already at the moment at which the first step begins.
    """
    room = cut(ints, floats, singles)
    looked = True
    while True:
        if not looked:
            _look_again(room)
        looked = False
        why = _begin(room, index, entries, prices, counts)
        if why != at.ENDS or _must_end(room, tokens.shape[0]):
            return why
        _end(room, times, tokens)
        room.f[at.NOW] = room.f[at.END]


@njit
def finish(ints: Any, floats: Any, singles: Any, times: Any, tokens: Any) -> None:
    """The step under way ends."""
    _end(cut(ints, floats, singles), times, tokens)


@njit
def _look_again(room: Any) -> None:
    """What the host does between two steps when nobody waits: see `Engine.prefill_next` and `Memory.decode_step`."""
    n, f = room.n, room.f
    while n[at.LEAVING] and room.left[1, 0] <= n[at.STEPS] - n[at.LEAVE_LAG]:
        _leave(room, 0)
    while n[at.LEAVING]:
        foreseen = -1
        for k in range(n[at.LEAVING]):
            if room.left[2, k] and (foreseen < 0 or room.left[0, k] < room.left[0, foreseen]):
                foreseen = k
        if foreseen < 0:
            break
        _leave(room, foreseen)
    f[at.RATIO] = max(f[at.RATIO] - f[at.RATIO_STEP], f[at.RATIO_LEAST])


@njit
def _leave(room: Any, which: int) -> None:
    """A finished request leaves the batch; the last row moves into its place."""
    n, columns, slot = room.n, room.columns, room.left[0, which]
    for k in range(which, n[at.LEAVING] - 1):
        room.left[:, k] = room.left[:, k + 1]
    n[at.LEAVING] -= 1
    n[at.LEFT] += 1
    index = room.index_of[slot]
    n[at.CONTEXT] -= columns[at.WHOLE, index]
    room.free_slots[n[at.CAPACITY] - n[at.SIZE]] = slot
    n[at.SIZE] -= 1
    columns[:, index] = columns[:, n[at.SIZE]]
    room.index_of[columns[at.SLOT, index]] = index


@njit
def _begin(room: Any, index: Any, entries: Any, prices: Any, counts: Any) -> int:
    """Draft, decide, price; or what is missing for it."""
    n, f, size = room.n, room.f, room.n[at.SIZE]
    if not _blocks_at_hand(room):
        return at.NEEDS_BLOCKS
    steps = n[at.CONTEXT] / size / CONTEXT_STEP
    bucket = np.int64(np.rint(steps)) if n[at.RULE_CONTEXT] else 0
    n[at.NEED_REQUESTS], n[at.NEED_BUCKET] = size, bucket
    rule = index[0, size, bucket]
    if rule < 0 or entries[rule, at.E_VERSION] != n[at.VERSION]:
        return at.NEEDS_RULE
    low = np.int64(np.floor(steps)) if n[at.COST_CONTEXT] else 0
    for near in range(2 if n[at.COST_CONTEXT] else 1):
        if index[1, size, low + near] < 0:
            n[at.NEED_BUCKET] = low + near
            return at.NEEDS_COST
    if n[at.PUBLISHES] or n[at.KIND] != 0 or n[at.LEARNS]:
        look_at_blocks(room)
    begin = entries[rule, at.E_FLOATS]
    first = entries[rule, at.E_INTS]
    total = decide(
        room,
        prices[begin : begin + entries[rule, at.E_NUM_FLOATS]],
        counts[first : first + entries[rule, at.E_NUM_INTS]],
    )
    if n[at.PUBLISHES]:
        publish(room)
    draft, verify = _priced(room, total, steps - low, index[1, size, low], index[1, size, low + 1], entries, prices)
    committed = np.int64(0)
    for i in range(size):
        room.accepted[i] = min(room.lengths[i], room.depth[room.columns[at.ROW, i]])
        room.committed[i] = min(room.accepted[i] + 1, room.columns[at.REMAINING, i])
        committed += room.committed[i]
    seconds = _seconds(room, draft, verify)
    f[at.DRAFT], f[at.VERIFY], f[at.SECONDS], f[at.END] = draft, verify, seconds, f[at.NOW] + seconds
    n[at.TOTAL], n[at.COMMITTED] = total, committed
    if n[at.LEARNS]:
        executed, believed = np.int64(0), 1.0
        if n[at.REPRICED]:
            executed = counts[entries[rule, at.E_EXECUTED] + total]
            believed = prices[entries[rule, at.E_SECONDS] + total]
        learn(room, executed, believed)
    n[at.SUM_BEYOND] += _beyond_probes(f, size, size + total)
    return at.ENDS


@njit
def _blocks_at_hand(room: Any) -> bool:
    """See `DecodeBatch.refill`."""
    n = room.n
    if n[at.SAFE] > 0:
        n[at.SAFE] -= 1
        return True
    used = np.int64(0)
    for i in range(n[at.SIZE]):
        used = max(used, room.columns[at.ROW, i] - room.columns[at.SLOT, i] * at.BLOCKS_AHEAD)
    n[at.SAFE] = max((at.BLOCKS_AHEAD - 1 - used) // (n[at.GAMMA] + 1), 0)
    return used < at.BLOCKS_AHEAD


@njit
def _priced(room: Any, total: int, weight: float, low: int, high: int, entries: Any, prices: Any) -> Any:
    """(draft, verify) seconds; see `StepCost.decode_s` and `EngineModel.width_context_s`."""
    n, f, size = room.n, room.f, room.n[at.SIZE]
    begin = entries[low, at.E_FLOATS]
    draft = prices[begin]
    whole = prices[begin + 1 + total]
    if n[at.COST_CONTEXT]:
        begin = entries[high, at.E_FLOATS]
        draft = (1.0 - weight) * draft + weight * prices[begin]
        whole = (1.0 - weight) * whole + weight * prices[begin + 1 + total]
    verify = whole - draft
    if f[at.WIDTH_S] != 0.0:
        wide, contexts = np.int64(0), np.int64(0)
        for i in range(size):
            context = room.columns[at.WHOLE, i] - room.columns[at.REMAINING, i]
            wide += room.lengths[i] * context
            contexts += context
        verify += f[at.WIDTH_S] * (wide - total * (contexts / size))
    return (draft if n[at.DRAFTS] else 0.0), verify


@njit
def _seconds(room: Any, draft: float, verify: float) -> float:
    """See `EngineModel.decode_seconds`."""
    n, f = room.n, room.f
    host, verify = f[at.HOST_S], verify + f[at.ADAPTIVE_S]
    if n[at.SCHEDULE] == at.OVERLAPPED:
        return max(draft + verify, host)
    if n[at.SCHEDULE] == at.SYNCHRONOUS:
        return draft + f[at.COPY_S] + max(verify, host)
    return draft + (f[at.COPY_S] if n[at.LIVE] else 0.0) + verify + host


@njit
def _beyond_probes(f: Any, requests: int, tokens: int) -> bool:
    """See `StepCost.beyond_probes`."""
    low, high = f[at.LOW], f[at.HIGH]
    if tokens > f[at.LAST_CAPTURED] or requests > f[at.CAPTURED_REQUESTS]:
        low, high = f[at.EAGER_LOW], f[at.EAGER_HIGH]
    return tokens < low or tokens > high or requests < f[at.FEWEST] or requests > f[at.MOST_REQUESTS]


@njit
def _must_end(room: Any, bursts: int) -> bool:
    """Whether somebody must see the step under way end: what others do by then, or what it does to them."""
    n, f, size = room.n, room.f, room.n[at.SIZE]
    n[at.MOST] -= 1
    if n[at.MOST] <= 0 or n[at.BURSTS] + n[at.CAPACITY] + 2 > bursts:
        return True
    ending = 0
    for i in range(size):
        ending += room.committed[i] > 0 and room.committed[i] == room.columns[at.REMAINING, i]
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
def _end(room: Any, times: Any, tokens: Any) -> None:
    """What the step under way leaves behind; see `Engine.end_decode`."""
    n, f, size, columns = room.n, room.f, room.n[at.SIZE], room.columns
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
    _burst(room, times, tokens)
    n[at.CONTEXT] += n[at.COMMITTED]
    for i in range(size):
        committed = room.committed[i]
        columns[at.ROW, i] += committed
        columns[at.REMAINING, i] -= committed
        if committed > 0 and columns[at.REMAINING, i] == 0:
            k, ended = n[at.LEAVING], n[at.FINISHED]
            room.left[0, k], room.left[1, k], room.left[2, k] = columns[at.SLOT, i], n[at.STEPS], committed == 1
            room.finished[0, ended] = columns[at.REQUEST, i]
            room.finished[1, ended] = n[at.DECODE_STEPS] - columns[at.JOINED, i]
            room.finished_s[ended] = f[at.END]
            n[at.LEAVING] += 1
            n[at.FINISHED] += 1


@njit
def _burst(room: Any, times: Any, tokens: Any) -> None:
    """See `Gaps.decode`."""
    n, f, now = room.n, room.f, room.f[at.END]
    others = n[at.BURSTS] + n[at.JOINS]
    tokens[others] = 0
    for i in range(n[at.SIZE]):
        tokens[others, room.committed[i]] += 1
    for k in range(n[at.JOINS]):
        given = room.committed[room.index_of[room.joined_slots[k]]]
        row = n[at.BURSTS]
        tokens[others, given] -= 1
        tokens[row] = 0
        tokens[row, given] = 1
        times[0, row], times[1, row] = now, now - room.joined_s[k]
        n[at.BURSTS] += 1
    older = n[at.JOINS] == 0
    for given in range(1, tokens.shape[1]):
        older = older or tokens[others, given] > 0
    n[at.JOINS] = 0
    if older:
        times[0, others], times[1, others] = now, now - f[at.PREVIOUS]
        n[at.BURSTS] += 1
    f[at.PREVIOUS] = now
