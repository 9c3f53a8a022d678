"""What compiled steps read of costs: tables by requests and context, made when they are first asked for."""

from __future__ import annotations

import numpy as np

from sglang_dspark.cost.model import CONTEXT_STEP, StepCost
from sglang_dspark.policies import tier_costs
from sglang_dspark.policies.arithmetic import Floats, Ints
from sglang_dspark.policies.programs import Program
from simulator.engine.loops import layout as at

_MOST_BYTES = 1 << 26  # of tables that are kept; beyond, all are made anew
_LARGEST_INDEX = 1 << 22


class PriceTables:
    """Tables of one replica.

    index: [2, capacity + 1, contexts] entry of the rule's and of the engine's own costs, -1 where there is none yet.
    entries: [n, 7] where it stands in `floats` and `ints`, see `layout`. A rule's entry holds its tables and, where it
    learns step times, believed seconds and executed tokens by admitted count; the engine's draft seconds, then those of
    the step by admitted count.
    """

    def __init__(
        self, cost: StepCost, belief: StepCost, program: Program, gamma: int, capacity: int, most: int
    ) -> None:
        """most: context tokens of the longest request."""
        self._cost, self._belief, self._program, self._gamma = cost, belief, program, gamma
        contexts = most // CONTEXT_STEP + 3 if cost.knows_context or belief.knows_context else 1
        self.index = np.full((2, capacity + 1, contexts), -1, dtype=np.int64)
        self._clear()

    @staticmethod
    def fits(cost: StepCost, capacity: int, most: int) -> bool:
        """Whether an index of so many requests and context tokens is of a reasonable size."""
        return not cost.knows_context or (capacity + 1) * (most // CONTEXT_STEP + 3) <= _LARGEST_INDEX

    def _clear(self) -> None:
        self.index[:] = -1
        self.entries = np.zeros((64, 7), dtype=np.int64)
        self.floats, self.ints = np.zeros(1024), np.zeros(1024, dtype=np.int64)
        self._used = [0, 0, 0]

    def add_rule(self, requests: int, bucket: int, version: int, by_tier: tuple[tuple[int, int], ...]) -> None:
        """Make the rule's table; `by_tier` are the corrections of that `version`."""
        prices = self._belief.prices(requests, self._gamma, float(bucket * CONTEXT_STEP * requests))
        floats, ints = self._program.tables(prices, requests, self._gamma, by_tier)
        row = [0, floats.size, 0, ints.size, 0, 0, version]
        if self._program.repriced:
            executed = tier_costs.executed_of(prices, requests)
            floats, ints = np.concatenate([floats, prices.seconds]), np.concatenate([ints, executed])
        row[at.E_FLOATS], row[at.E_INTS] = self._put(floats, ints)
        row[at.E_SECONDS] = row[at.E_FLOATS] + row[at.E_NUM_FLOATS]
        row[at.E_EXECUTED] = row[at.E_INTS] + row[at.E_NUM_INTS]
        self._enter(0, requests, bucket, row)

    def add_cost(self, requests: int, bucket: int) -> None:
        """Make the engine's table."""
        prices = self._cost.prices(requests, self._gamma, float(bucket * CONTEXT_STEP * requests))
        begin, _ = self._put(np.concatenate([[prices.draft_s], prices.seconds]), np.empty(0, dtype=np.int64))
        self._enter(1, requests, bucket, [begin, 0, 0, 0, 0, 0, 0])

    def _put(self, floats: Floats, ints: Ints) -> tuple[int, int]:
        """Copy the arrays of one entry, others go where there are too many; where the floats and integers begin."""
        if 8 * (self._used[0] + self._used[1] + floats.size + ints.size) > _MOST_BYTES:
            self._clear()
        begin_floats, begin_ints, _ = self._used
        self.floats = _grown(self.floats, begin_floats + floats.size)
        self.ints = _grown(self.ints, begin_ints + ints.size)
        self.floats[begin_floats : begin_floats + floats.size] = floats
        self.ints[begin_ints : begin_ints + ints.size] = ints
        self._used[0] += floats.size
        self._used[1] += ints.size
        return begin_floats, begin_ints

    def _enter(self, kind: int, requests: int, bucket: int, row: list[int]) -> None:
        number = self._used[2]
        if number == len(self.entries):
            self.entries = np.concatenate([self.entries, np.zeros_like(self.entries)])
        self.entries[number] = row
        self.index[kind, requests, bucket] = number
        self._used[2] += 1


def _grown(array: np.ndarray, size: int) -> np.ndarray:
    if size <= array.size:
        return array
    return np.concatenate([array, np.zeros(max(size, array.size), dtype=array.dtype)])
