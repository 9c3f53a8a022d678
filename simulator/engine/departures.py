"""Finished requests that are still in the batch: when the host learns of them, and whom it leaves out beforehand."""

from __future__ import annotations


class Departures:
    """By slot. Under the overlap loop the host chooses a step before it has seen what the last one finished."""

    def __init__(self, overlap: bool) -> None:
        self._lag = int(overlap)
        self._ended: dict[int, int] = {}  # slot -> step, in order
        self._sure: set[int] = set()

    def __len__(self) -> int:
        return len(self._ended)

    def add(self, slot: int, step: int, *, sure: bool) -> None:
        """A request ended in `step`. sure: it wanted one token, so that its end could be foreseen."""
        self._ended[slot] = step
        if sure:
            self._sure.add(slot)

    def take_known(self, steps: int) -> list[int]:
        """Slots of requests that the host knows to be finished when it chooses a step after `steps` others."""
        known = []
        for slot, step in self._ended.items():
            if step > steps - self._lag:
                break
            known.append(slot)
        return self._take(known)

    def take_foreseen(self) -> list[int]:
        """Slots that a decode step leaves out because their end was sure (SGLang's _reqs_finishing_inflight).

        A prefill is chosen before that, while they still hold their place.
        """
        return self._take(sorted(self._sure))

    def forget(self, slot: int) -> None:
        """It left another way."""
        self._take([slot] if slot in self._ended else [])

    def _take(self, slots: list[int]) -> list[int]:
        for slot in slots:
            del self._ended[slot]
            self._sure.discard(slot)
        return slots
