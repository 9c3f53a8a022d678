"""What each admitted count costs for one batch: the view of a step-cost model that policies decide on."""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


class StepPrices:
    """Step seconds by admitted count k = 0..R * gamma, for one R, gamma and context.

    seconds: [n] float64, what is executed (draft + verify of the padded tier). inverse: [n], 1 / seconds.
    floor_inverse: [n], 1 / (SGLang's own look-up of the table). tier_top: [n] int64, the largest count executed in the
    same graph tier, never past the last captured size. last_captured: the largest count inside captured graphs, or -1.
    draft_s: the part of `seconds` that drafting takes. Arrays are read-only and cached: many steps share them.
    """

    def __init__(
        self, seconds: Floats, floor_seconds: Floats, tier_top: Ints, last_captured: int, draft_s: float = 0.0
    ) -> None:
        self.seconds = seconds
        self.draft_s = draft_s
        self.inverse = 1.0 / seconds
        self.floor_inverse = 1.0 / floor_seconds
        self.tier_top = tier_top
        self.last_captured = last_captured
        for array in (self.seconds, self.inverse, self.floor_inverse, self.tier_top):
            array.setflags(write=False)

    def step_s(self, admitted: int) -> float:
        """Step seconds for one admitted count."""
        return self._step_s[admitted]

    @cached_property
    def _step_s(self) -> list[float]:
        return self.seconds.tolist()

    @cached_property
    def tier_tops(self) -> Ints:
        """The distinct tier tops inside the captured sizes, increasing."""
        tops = np.unique(self.tier_top[: self.last_captured + 1])
        tops.setflags(write=False)
        return tops

    @cached_property
    def hull_inverse(self) -> Floats:
        """1 / (lower convex hull of the non-decreasing cost) on k = 0..last_captured, [last_captured + 1] float64.

        Beyond the last captured size there is no hull: the eager cliff is never entered (design.md 3).
        """
        return self._inverse_of_hull(np.maximum.accumulate(self.seconds[: self.last_captured + 1]))

    @cached_property
    def dip_hull_inverse(self) -> Floats:
        """Like `hull_inverse`, where a count costs what the cheapest graph that can hold it costs.

        Measured staircases dip: a larger graph can be faster than a smaller one, and tokens may always be padded (or
        filled) up to it. The running maximum hides such dips; the minimum over larger counts uses them.
        """
        return self._inverse_of_hull(np.minimum.accumulate(self.seconds[: self.last_captured + 1][::-1])[::-1])

    @cached_property
    def cheapest_top(self) -> Ints:
        """[n] int64: the top of the cheapest captured tier that holds each count (the count itself when eager)."""
        top = self.tier_top.copy()
        tops = self.tier_tops
        if tops.size:
            cost = self.seconds[tops][::-1]
            # Of equally cheap tiers the smallest: the last index at which the minimum from the right is renewed.
            best = np.minimum.accumulate(cost)
            renewed = np.maximum.accumulate(np.where(cost == best, np.arange(cost.size), 0))
            cheapest = tops[::-1][renewed][::-1]
            top[: self.last_captured + 1] = cheapest[np.searchsorted(tops, self.tier_top[: self.last_captured + 1])]
        top.setflags(write=False)
        return top

    def _inverse_of_hull(self, cost: Floats) -> Floats:
        if cost.size == 0:
            return np.empty(0)
        # A convex function below a staircase touches it only where a tier ends, or at the left end; where tokens cost
        # something inside a tier too, also where it begins.
        begins = np.minimum(self.tier_tops[:-1] + 1, cost.size - 1)
        corners = np.unique(np.concatenate([[0], begins, self.tier_tops]))
        kept = lower_hull(corners, cost[corners])
        inverse = 1.0 / np.interp(np.arange(cost.size), kept, cost[kept])
        inverse.setflags(write=False)
        return inverse


def lower_hull(x: Ints, y: Floats) -> Ints:
    """The x that carry the lower convex hull of the points (x, y), x increasing (Andrew's monotone chain)."""
    kept: list[int] = []
    xs, ys = x.tolist(), y.tolist()
    for i in range(len(xs)):
        while len(kept) >= 2:
            a, b = kept[-2], kept[-1]
            if (ys[b] - ys[a]) * (xs[i] - xs[a]) < (ys[i] - ys[a]) * (xs[b] - xs[a]):
                break
            kept.pop()
        kept.append(i)
    return np.asarray([xs[i] for i in kept], dtype=np.int64)
