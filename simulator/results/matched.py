"""Two frontiers of a server, compared where they give the same: throughput at a user's speed, speed at a throughput.

A frontier is what a closed loop gives as more requests are in flight: each user's speed falls, the throughput rises. At
matched concurrency both differ at once, so that neither says what a switch is worth (the DSpark paper's Figure 8).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Frontier:
    """speed [L] tokens/s that a user gets, throughput [L] tokens/s of the server, by increasing load, all positive.

    Between two loads both go on a straight line of their logarithms. Nothing is known outside: NaN.
    """

    speed: Floats
    throughput: Floats

    def throughput_at(self, speed: float) -> float:
        """The most tokens/s of the server that still give each user `speed`."""
        return max(self._crossings(self.speed, self.throughput, speed), default=np.nan)

    def speed_at(self, throughput: float) -> float:
        """The highest speed of a user at which the server gives `throughput`."""
        return max(self._crossings(self.throughput, self.speed, throughput), default=np.nan)

    @staticmethod
    def _crossings(given: Floats, wanted: Floats, at: float) -> list[float]:
        """`wanted` wherever `given` passes `at`."""
        found = [float(w) for g, w in zip(given, wanted, strict=True) if g == at]
        middle = np.log(at)
        for left in range(len(given) - 1):
            low, high = np.log(given[left : left + 2])
            if low != high and min(low, high) <= middle <= max(low, high):
                share = (middle - low) / (high - low)
                here, there = np.log(wanted[left : left + 2])
                found.append(float(np.exp(here + share * (there - here))))
        return found


def more_throughput(ours: Frontier, theirs: Frontier, speed: float) -> float:
    """The gain in throughput at one speed of a user, as a fraction; NaN where one of them does not give that speed."""
    return ours.throughput_at(speed) / theirs.throughput_at(speed) - 1


def more_speed(ours: Frontier, theirs: Frontier, throughput: float) -> float:
    """The gain in each user's speed at one throughput, as a fraction; NaN where one of them does not reach it."""
    return ours.speed_at(throughput) / theirs.speed_at(throughput) - 1
