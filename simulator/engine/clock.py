"""SimPy's clock with events at a moment instead of after a delay."""

from __future__ import annotations

from heapq import heappush

import simpy
from simpy.events import NORMAL


class Clock(simpy.Environment):
    """A delay that is the difference of two moments would not always lead from one to the other: it is rounded."""

    def at(self, time_s: float) -> simpy.Event:
        """An event that happens at `time_s`, not before now; placed as `timeout` places its own."""
        event = self.event()
        event._ok, event._value = True, None
        heappush(self._queue, (time_s, NORMAL, next(self._eid), event))
        return event
