"""Every function once, with the types that the rules call it with."""

from __future__ import annotations

import numpy as np

from sglang_dspark.policies.loops import learning, order, rules


def warm() -> None:
    """Compile all of it, or load it: nothing does when a rule decides."""
    confidence = np.full((1, 2), 0.5, dtype=np.float32)
    units, few = np.empty((1, 2), dtype=np.int64), np.empty(1, dtype=np.int64)
    nothing, prices, tops = np.empty(0, dtype=np.int64), np.array([1.0, 0.9, 0.8]), np.array([1, 2])
    least = np.array([0.5, 0.5], dtype=np.float32)
    for table in (prices, tops, least):
        table.setflags(write=False)
    order.survival_units(confidence, units)
    order.highest(nothing, 0, 2)
    order.allocate(units, 1, 0, 2, nothing)
    survivals = order.sorted_survivals(units, 0, 2, nothing)
    rules.best_budget(units, prices, 0, 2, nothing, 0)
    rules.first_decline(survivals, order.SCALE, prices)
    rules.lookahead_walk(tops, prices, 0, order.SCALE, survivals)
    ends, summed, after = rules.foresight_tables(survivals, 0, 2, tops)
    rules.foresight_walk(ends, summed, after, prices, 0, order.SCALE, survivals)
    rules.table_lengths(confidence, units, least, nothing, few)
    learning.corrected(confidence, 1.0, 0.0, np.empty_like(confidence), units)
    learning.corrected_lagged(units, 1.0, 0.0, np.empty_like(units))
    learning.followed(np.array([1.0, 0.0, 1.0, 0.0, 1.0]), units, np.array([1]), np.array([1]))
