"""Where a replica keeps what compiled steps work on: three arrays, cut into named ones, and single numbers by place.

Handing over three arrays costs a fraction of handing over thirty. `cut` is plain NumPy; compiled code compiles it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from sglang_dspark.policies.arithmetic import SPARE
from sglang_dspark.policies.tier_costs import TIERS

BLOCKS_AHEAD = 256
"""Anchors whose blocks are at hand for a request."""

# Columns of the batch.
REQUEST, SLOT, GENERATION, ROW, REMAINING, JOINED, FIRST, WHOLE = range(8)

# Integers that are fixed.
CAPACITY, GAMMA, DEPTH, KIND, FLOOR, CAP, LAG, LEAST, COLD, CALIBRATED, REPRICED, LEARNS, OUTCOME_LAG = range(13)
LEAVE_LAG, PUBLISHES, DRAFTS, LIVE, SCHEDULE, RESERVE, STOP_AT_FINISH, STOP_AT_LEAVE, LATE = range(13, 22)
RULE_CONTEXT, COST_CONTEXT = range(22, 24)
# Integers that change.
SIZE, SAFE, STEPS, DECODE_STEPS, CONTEXT, HEAD, JOINS, LEAVING, LEFT, BURSTS, FINISHED, MOST, BLOCKED = range(24, 37)
ROOM, HIGH_SLOT, WANTED = range(37, 40)
# A replica's sums.
SUM_STEPS, SUM_VERIFIED, SUM_COMMITTED, SUM_REQUEST_STEPS, SUM_ROWS, SUM_BEYOND = range(40, 46)
# What stays between calls.
TOTAL, COMMITTED, NEED_REQUESTS, NEED_BUCKET, PENDING, PENDING_TOKENS, MET, VERSION = range(46, 54)
INTS = 54

# Seconds and ratios that are fixed, and those that change.
HOST_S, ADAPTIVE_S, COPY_S, WIDTH_S, RATIO_STEP, RATIO_LEAST = range(6)
LAST_CAPTURED, CAPTURED_REQUESTS, FEWEST, MOST_REQUESTS, LOW, HIGH, EAGER_LOW, EAGER_HIGH = range(6, 14)
NOW, HORIZON, RATIO, PREVIOUS, SUM_DRAFT, SUM_VERIFY, SUM_SECONDS = range(14, 21)
END, DRAFT, VERIFY, SECONDS, BELIEVED, MEASURED = range(21, 27)
FLOATS = 27

# Columns of `PriceTables.entries`.
E_FLOATS, E_NUM_FLOATS, E_INTS, E_NUM_INTS, E_SECONDS, E_EXECUTED, E_VERSION = range(7)

OVERLAPPED, SYNCHRONOUS, NO_OVERLAP = range(3)
SCHEDULES = {"overlapped": OVERLAPPED, "synchronous": SYNCHRONOUS, "no-overlap": NO_OVERLAP}

# Why a call comes back: a step is under way; a table for the rule, or for the costs, or further blocks are missing.
ENDS, NEEDS_RULE, NEEDS_COST, NEEDS_BLOCKS = range(4)


class Room(NamedTuple):
    """All of a replica's arrays; R rows are those of the batch, of `capacity`.

    n [INTS], f [FLOATS]: the numbers above. columns [8, capacity], index_of and free_slots [capacity], units [capacity
    * BLOCKS_AHEAD, gamma], depth, confidence: see `DecodeBatch`. joined_slots, joined_s: who joined since the last
    decode step; left [3, capacity]: slot, step, whether foreseen, of finished requests still in the batch. finished [2,
    capacity], finished_s: request and verify steps, and when, of those that ended in a call.

    ring [depth, slots, gamma], owners [depth, slots]: published survivals. What is learned: prior [gamma]; fit [5]; of
    goodput rates [4], accepted, tried, their prior and what is kept of them; met [2, TIERS], means [TIERS] and grains
    [2, TIERS] of step times. pending [2, capacity], pending_units: an outcome on its way.

    The step under way: lengths, accepted, committed [capacity]; lagged, live, corrected, certain [capacity, gamma].
    found [2, TIERS], values [capacity * gamma], spare (SPARE more), beyond [3, capacity * gamma + 1]: to work in.
    """

    n: Any
    f: Any
    columns: Any
    index_of: Any
    free_slots: Any
    units: Any
    depth: Any
    confidence: Any
    joined_slots: Any
    joined_s: Any
    left: Any
    finished: Any
    finished_s: Any
    ring: Any
    owners: Any
    prior: Any
    fit: Any
    rates: Any
    met: Any
    means: Any
    grains: Any
    found: Any
    pending: Any
    pending_units: Any
    lengths: Any
    accepted: Any
    committed: Any
    lagged: Any
    live: Any
    corrected: Any
    certain: Any
    values: Any
    spare: Any
    beyond: Any


def cut(ints: Any, floats: Any, singles: Any) -> Room:
    """The arrays of `Room` as views; ints, floats, singles as `new_room` makes them."""
    c, g, d = ints[CAPACITY], ints[GAMMA], ints[DEPTH]
    block, blocks = c * g, c * BLOCKS_AHEAD
    at = INTS
    columns = ints[at : at + 8 * c].reshape((8, c))
    at += 8 * c
    rows = ints[at : at + 13 * c].reshape((13, c))
    at += 13 * c
    wide = ints[at : at + 5 * block].reshape((5, block))
    at += 5 * block
    owners = ints[at : at + d * c].reshape((d, c))
    at += d * c
    ring = ints[at : at + d * block].reshape((d, c, g))
    at += d * block
    tiers = ints[at : at + 6 * TIERS].reshape((6, TIERS))
    at += 6 * TIERS
    beyond = ints[at : at + 3 * (block + 1)].reshape((3, block + 1))
    at += 3 * (block + 1)
    spare = ints[at : at + block + SPARE]
    at += block + SPARE
    prior = ints[at : at + g]
    at += g
    depth = ints[at : at + blocks]
    at += blocks
    units = ints[at : at + blocks * g].reshape((blocks, g))
    wide_singles = singles[: c * g].reshape((c, g))
    confidence = singles[c * g :].reshape((blocks if singles.size > c * g else 0, g))
    return Room(
        ints[:INTS],
        floats[:FLOATS],
        columns,
        rows[0],
        rows[1],
        units,
        depth,
        confidence,
        rows[2],
        floats[FLOATS : FLOATS + c],
        rows[3:6],
        rows[6:8],
        floats[FLOATS + c : FLOATS + 2 * c],
        ring,
        owners,
        prior,
        floats[FLOATS + 2 * c : FLOATS + 2 * c + 5],
        floats[FLOATS + 2 * c + 5 : FLOATS + 2 * c + 9],
        tiers[:2],
        floats[FLOATS + 2 * c + 9 : FLOATS + 2 * c + 9 + TIERS],
        tiers[2:4],
        tiers[4:],
        rows[8:10],
        wide[0].reshape((c, g)),
        rows[10],
        rows[11],
        rows[12],
        wide[1].reshape((c, g)),
        wide[2].reshape((c, g)),
        wide[3].reshape((c, g)),
        wide_singles,
        wide[4],
        spare,
        beyond,
    )


def new_room(capacity: int, gamma: int, depth: int, *, confidence: bool) -> tuple[Any, Any, Any]:
    """(ints, floats, singles) for `cut`, all 0. depth: publishes kept. confidence: whether blocks have any."""
    block, blocks = capacity * gamma, capacity * BLOCKS_AHEAD
    count = INTS + 21 * capacity + 9 * block + 3 + SPARE + depth * (capacity + block) + 6 * TIERS + gamma
    count += blocks * (gamma + 1)
    ints = np.zeros(count, dtype=np.int64)
    ints[[CAPACITY, GAMMA, DEPTH]] = capacity, gamma, depth
    floats = np.zeros(FLOATS + 2 * capacity + 9 + TIERS)
    singles = np.zeros(block + (blocks * gamma if confidence else 0), dtype=np.float32)
    return ints, floats, singles
