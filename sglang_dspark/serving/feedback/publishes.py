"""Survivals and outcomes of past steps as the host gets to know them (no torch, no sglang).

A step *publishes* when it ends: its confidences, verify lengths and accepted lengths start travelling to the host.
Lag is counted in these publishes on every device, whatever time a copy takes: before step n the host uses exactly the
publishes up to n - `visible_lag`, and when one of them has not arrived the step is *late*.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sglang_dspark.policies import SurvivalRing, survival_units
from sglang_dspark.policies.arithmetic import Ints

DEEPEST_LAG = 8
"""The largest lag that a policy may ask for; the ring keeps that many, so that a switched policy finds its history."""


@dataclass(frozen=True, slots=True)
class Published:
    """What one decode step left behind, on the host.

    confidence: [R, gamma] float32. lengths: [R] verified draft tokens. accepted: [R] accepted ones. uncapped: [R] how
    many the whole block would have had accepted, -1 where the verification was cut and it is not known.
    """

    slots: Ints
    generation: Ints
    confidence: NDArray[np.float32]
    lengths: Ints
    accepted: Ints
    uncapped: Ints

    @property
    def units(self) -> Ints:
        """Survivals [R, gamma] in units of 2^-24."""
        return survival_units(self.confidence)


class Copy(Protocol):
    """A publish on its way to the host."""

    def ready(self) -> bool:
        """Whether `fetch` would return at once."""
        ...

    def fetch(self) -> Published:
        """The values; waits for them when they are not there yet."""
        ...


class Publishes:
    """The queue of publishes in flight, and the ring of those that arrived."""

    def __init__(self, num_slots: int, gamma: int, visible_lag: int, *, waits: bool) -> None:
        """waits: a missing publish is waited for (synchronous schedule) instead of making the step late."""
        self.visible_lag = visible_lag
        self._waits = waits
        self._ring = SurvivalRing(num_slots, gamma, DEEPEST_LAG)
        self._in_flight: deque[Copy] = deque()

    def follow(self, visible_lag: int, *, waits: bool) -> None:
        """Another schedule from the next step on: what is in flight stays, and is taken in when that one may see it."""
        self.visible_lag, self._waits = visible_lag, waits

    @property
    def in_flight(self) -> int:
        """Publishes that have not been taken in."""
        return len(self._in_flight)

    def issue(self, copy: Copy) -> None:
        """One decode step has published."""
        self._in_flight.append(copy)

    def catch_up(self) -> tuple[list[Published], bool]:
        """Take in, in order, what the next step may see. Returns (arrived publishes, whether one is missing)."""
        arrived: list[Published] = []
        while len(self._in_flight) >= self.visible_lag:
            if not self._waits and not self._in_flight[0].ready():
                return arrived, True
            arrived.append(self._take())
        return arrived, False

    def drain(self) -> list[Published]:
        """Wait for everything in flight (idle engine, shutdown). The next steps then see more recent publishes."""
        return [self._take() for _ in range(len(self._in_flight))]

    def _take(self) -> Published:
        published = self._in_flight.popleft().fetch()
        self._ring.publish(published.slots, published.generation, published.units)
        return published

    def look(self, slots: Ints, generation: Ints, lag: int) -> tuple[Ints, NDArray[np.bool_]]:
        """Survivals published `lag` decode steps ago, see `Past.survival`; call `catch_up` first."""
        newest = len(self._in_flight) + 1  # the lag of the last publish that arrived
        return self._ring.look(slots, generation, lag - newest + 1)
