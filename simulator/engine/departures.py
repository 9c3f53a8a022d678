"""Finished requests that are still in the batch: when the host learns of them, and whom it leaves out beforehand."""

from __future__ import annotations

from sglang_dspark.policies.arithmetic import Ints


class Departures:
    """Under the overlap loop the host chooses a step before it has seen what the last one finished.

    rows: [3, capacity] slot, step in which it ended, and whether that was foreseen, of the first `count`, in order.
    """

    def __init__(self, rows: Ints, overlap: bool) -> None:
        self.rows, self.count = rows, 0
        self._lag = int(overlap)

    def __len__(self) -> int:
        return self.count

    def add(self, slot: int, step: int, *, sure: bool) -> None:
        """A request ended in `step`. sure: it wanted one token, so that its end could be foreseen."""
        self.rows[:, self.count] = slot, step, sure
        self.count += 1

    def take_known(self, steps: int) -> list[int]:
        """Slots of requests that the host knows to be finished when it chooses a step after `steps` others."""
        ended = self.rows[1, : self.count].tolist()
        return self._take([index for index, step in enumerate(ended) if step <= steps - self._lag])

    def take_foreseen(self) -> list[int]:
        """Slots that a decode step leaves out because their end was sure (SGLang's _reqs_finishing_inflight).

        A prefill is chosen before that, while they still hold their place.
        """
        return sorted(self._take([index for index, sure in enumerate(self.rows[2, : self.count].tolist()) if sure]))

    def forget(self, slot: int) -> None:
        """It left another way."""
        self._take([index for index, other in enumerate(self.rows[0, : self.count].tolist()) if other == slot])

    def _take(self, which: list[int]) -> list[int]:
        if not which:
            return []
        slots = self.rows[0, : self.count].tolist()
        if len(which) == self.count:
            self.count = 0
            return slots
        kept = [index for index in range(self.count) if index not in which]
        self.rows[:, : len(kept)] = self.rows[:, kept]
        self.count = len(kept)
        return [slots[index] for index in which]
