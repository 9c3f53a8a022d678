"""The decode batch of one engine as arrays: one row a request, rows kept dense."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from simulator.acceptance import AcceptanceSource, BlockTable

Ints = NDArray[np.int64]

BLOCKS_AHEAD = 512  # anchors whose blocks are drawn at once for a request


class DecodeBatch:
    """Running requests. Columns are [capacity]; the first `size` rows are in use.

    request: index in the trace. slot: request slot (for published survivals and drawn blocks), generation: its owner.
    row: where the block of the present anchor stands in `blocks`. remaining: tokens still wanted, 0 once finished.
    context: prompt + generated tokens. joined: decode steps done when it (last) joined. left: engine step in which it
    finished.
    """

    def __init__(self, capacity: int, source: AcceptanceSource, *, confidence: bool) -> None:
        self.size = 0
        self.source = source
        self.blocks = BlockTable.empty(capacity * BLOCKS_AHEAD, source.gamma, confidence=confidence)
        columns = np.zeros((9, capacity), dtype=np.int64)
        self.request, self.slot, self.generation, self.row, self.remaining, self.context = columns[:6]
        self.joined, self.first, self.left = columns[6:]
        self._columns = columns
        self._free_slots = list(range(capacity - 1, -1, -1))
        self._generations = 0
        self._safe_steps = 0

    def add(self, request: int, remaining: int, context: int, anchor: int, joined: int) -> None:
        """A request starts (or, retracted, resumes) decoding at output position `anchor`."""
        index, slot = self.size, self._free_slots.pop()
        self._generations += 1
        self._columns[:, index] = (request, slot, self._generations, 0, remaining, context, joined, 0, 0)
        self.size += 1
        self._draw(index, anchor)
        self._safe_steps = 0

    def remove(self, index: int) -> None:
        """Take one row out; the last row moves into its place."""
        self._free_slots.append(int(self.slot[index]))
        self.size -= 1
        self._columns[:, index] = self._columns[:, self.size]

    def refill(self) -> None:
        """Before a step: draw further blocks for rows that might run past those drawn.

        `first` is the anchor of a slot's first block. Rows are looked at only when one could have run out.
        """
        if self._safe_steps > 0:
            self._safe_steps -= 1
            return
        size = self.size
        used = self.row[:size] - self.slot[:size] * BLOCKS_AHEAD
        for index in np.flatnonzero(used >= BLOCKS_AHEAD).tolist():
            self._draw(index, int(self.first[index] + used[index]))
            used[index] = 0
        slack = BLOCKS_AHEAD - 1 - int(used.max(initial=0))
        self._safe_steps = slack // (self.source.gamma + 1)

    def _draw(self, index: int, anchor: int) -> None:
        begin = int(self.slot[index]) * BLOCKS_AHEAD
        # Blocks are drawn in aligned runs, so that policies that stop at other anchors still meet the same ones.
        run = anchor // BLOCKS_AHEAD * BLOCKS_AHEAD
        self.first[index] = run
        self.row[index] = begin + anchor - run
        # A finished request may stay for one step more: one block past its last token.
        wanted = int(self.remaining[index]) + anchor - run + self.source.gamma + 2
        self.source.fill(int(self.request[index]), run, self.blocks.rows(begin, begin + min(BLOCKS_AHEAD, wanted)))
