"""The decode batch of one engine as arrays: one row a request, rows kept dense."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from simulator.blocks.acceptance import AcceptanceSource, BlockTable

Ints = NDArray[np.int64]

BLOCKS_AHEAD = 256  # anchors whose blocks are at hand for a request


class DecodeBatch:
    """Running requests. Columns are [capacity]; the first `size` rows are in use.

    request: index in the trace. slot: request slot (for published survivals and blocks at hand), generation: its owner.
    row: where the block of the present anchor stands in `blocks`. remaining: tokens still wanted, 0 once finished.
    joined: decode steps of the engine when it (last) joined. first: anchor of the first block at hand. index_of: the
    present row of every slot.
    """

    def __init__(self, capacity: int, source: AcceptanceSource, *, confidence: bool) -> None:
        self.size = 0
        self.source = source
        self.blocks = BlockTable.empty(capacity * BLOCKS_AHEAD, source.gamma, confidence=confidence)
        columns = np.zeros((7, capacity), dtype=np.int64)
        self.request, self.slot, self.generation, self.row, self.remaining = columns[:5]
        self.joined, self.first = columns[5:]
        self._columns = columns
        self.index_of = [0] * capacity
        self._free_slots = list(range(capacity - 1, -1, -1))
        self._generations = 0
        self._safe_steps = 0

    def add(self, request: int, remaining: int, anchor: int, joined: int) -> int:
        """A request starts (or, retracted, resumes) decoding at output position `anchor`; returns its slot."""
        index, slot = self.size, self._free_slots.pop()
        self._generations += 1
        self._columns[:, index] = (request, slot, self._generations, 0, remaining, joined, 0)
        self.index_of[slot] = index
        self.size += 1
        self._load(index, anchor)
        self._safe_steps = 0
        return slot

    def remove(self, index: int) -> None:
        """Take one row out; the last row moves into its place."""
        self._free_slots.append(int(self.slot[index]))
        self.size -= 1
        self._columns[:, index] = self._columns[:, self.size]
        self.index_of[int(self.slot[index])] = index

    def refill(self) -> None:
        """Before a step: fetch further blocks for rows that might run past those at hand.

        Rows are looked at only when one could have run out.
        """
        if self._safe_steps > 0:
            self._safe_steps -= 1
            return
        used = self.row[: self.size] - self.slot[: self.size] * BLOCKS_AHEAD
        for index in np.flatnonzero(used >= BLOCKS_AHEAD).tolist():
            self._load(index, int(self.first[index] + used[index]))
            used[index] = 0
        slack = BLOCKS_AHEAD - 1 - int(used.max(initial=0))
        self._safe_steps = slack // (self.source.gamma + 1)

    def _load(self, index: int, anchor: int) -> None:
        """Blocks from `anchor` to the request's end: a finished request may stay for the step after its last token."""
        begin = int(self.slot[index]) * BLOCKS_AHEAD
        self.first[index], self.row[index] = anchor, begin
        count = min(BLOCKS_AHEAD, int(self.remaining[index]) + 1)
        self.source.fill(int(self.request[index]), anchor, self.blocks.rows(begin, begin + count))
