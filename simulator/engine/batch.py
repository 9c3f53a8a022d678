"""The decode batch of one engine as arrays: one row a request, rows kept dense."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from simulator.blocks.acceptance import AcceptanceSource, BlockTable
from simulator.engine.loops.layout import BLOCKS_AHEAD, Room

Ints = NDArray[np.int64]


class DecodeBatch:
    """Running requests. Columns are [capacity]; the first `size` rows are in use.

    request: index in the trace. slot: request slot (for published survivals and blocks at hand), generation: its owner.
    row: where the block of the present anchor stands in `blocks`. remaining: tokens still wanted, 0 once finished.
    joined: decode steps of the engine when it (last) joined. first: anchor of the first block at hand. whole: tokens
    that it holds once it has ended. index_of: the present row of every slot. high_slot: slots that were ever used.
    wanted: what remains of all rows together.
    """

    def __init__(self, room: Room, source: AcceptanceSource) -> None:
        self.size = 0
        self.source = source
        self.blocks = BlockTable(room.units, room.confidence if len(room.confidence) else None, room.depth)
        columns = self._columns = room.columns
        self.request, self.slot, self.generation, self.row, self.remaining = columns[:5]
        self.joined, self.first, self.whole = columns[5:]
        self.index_of, self._free_slots = room.index_of, room.free_slots
        capacity = len(self.index_of)
        self._free_slots[:] = np.arange(capacity - 1, -1, -1)
        self.capacity = capacity
        self._generations = 0
        self.high_slot = self.wanted = 0
        self.safe_steps = 0

    def add(self, request: int, remaining: int, anchor: int, joined: int, whole: int) -> int:
        """A request starts (or, retracted, resumes) decoding at output position `anchor`; returns its slot."""
        index = self.size
        slot = self._free_slots.item(self.capacity - index - 1)
        self._generations += 1
        self._columns[:, index] = (request, slot, self._generations, 0, remaining, joined, 0, whole)
        self.index_of[slot] = index
        self.high_slot = max(self.high_slot, slot + 1)
        self.size += 1
        self.wanted += remaining
        self._load(index, anchor, remaining)
        self.safe_steps = 0
        return slot

    def remove(self, index: int) -> None:
        """Take one row out; the last row moves into its place."""
        self.wanted -= self.remaining.item(index)
        self._free_slots[self.capacity - self.size] = self.slot[index]
        self.size -= 1
        self._columns[:, index] = self._columns[:, self.size]
        self.index_of[self.slot[index]] = index

    def refill(self) -> None:
        """Before a step: fetch further blocks for rows that might run past those at hand.

        Rows are looked at only when one could have run out.
        """
        if self.safe_steps > 0:
            self.safe_steps -= 1
            return
        used = self.row[: self.size] - self.slot[: self.size] * BLOCKS_AHEAD
        for index in np.flatnonzero(used >= BLOCKS_AHEAD).tolist():
            self._load(index, int(self.first[index] + used[index]), int(self.remaining[index]))
            used[index] = 0
        slack = BLOCKS_AHEAD - 1 - int(used.max(initial=0))
        self.safe_steps = slack // (self.source.gamma + 1)

    def _load(self, index: int, anchor: int, remaining: int) -> None:
        """Blocks from `anchor` to the request's end: a finished request may stay for the step after its last token."""
        begin = int(self.slot[index]) * BLOCKS_AHEAD
        self.first[index], self.row[index] = anchor, begin
        count = min(BLOCKS_AHEAD, remaining + 1)
        self.source.fill(int(self.request[index]), anchor, self.blocks.rows(begin, begin + count))
