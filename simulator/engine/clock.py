"""SimPy's clock with events at a moment instead of after a delay."""

from __future__ import annotations

from heapq import heappush

import simpy
from simpy.events import NORMAL, URGENT


class Clock(simpy.Environment):
    """A delay that is the difference of two moments would not always lead from one to the other: it is rounded."""

    def at(self, time_s: float, *, first: bool = False) -> simpy.Event:
        """An event that happens at `time_s`, not before now; placed as `timeout` places its own.

        first: before all that `timeout` places at the same moment, whoever placed it when. Else it is the order of
        placing that counts, and runs of steps are placed earlier than the last of their steps would have been.
        """
        event = self.event()
        event._ok, event._value = True, None
        heappush(self._queue, (time_s, URGENT if first else NORMAL, next(self._eid), event))
        return event
