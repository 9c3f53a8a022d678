"""Stopping rules: they walk the live admission order and never look at a rank beyond the one they decide."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sglang_dspark.cost import StepPrices
from sglang_dspark.policies.arithmetic import Floats, Ints, tau_along
from sglang_dspark.policies.base import StoppingRule
from sglang_dspark.policies.parameters import parameter
from sglang_dspark.policies.state import Past

_CHUNK = 64  # ranks that `lookahead` examines at a time


def first_decline(tau: Ints, inverse: Floats) -> int:
    """Index of the last point before tau * inverse first fails to rise. tau, inverse: [n + 1]."""
    theta = tau * inverse
    rises = theta[1:] > theta[:-1]
    first = int(rises.argmin()) if rises.size else 0
    return first if first < rises.size and not rises[first] else rises.size


@dataclass(frozen=True)
class EarlyStop(StoppingRule):
    """The paper's Algorithm 1 to the letter: admit while Theta = tau / T rises, stop at the first that does not."""

    name: ClassVar[str] = "early-stop"

    def admits(self, past: Past, admitted: int, tau: int, survival: int) -> bool:
        inverse = past.prices.inverse
        return bool((tau + survival) * inverse[admitted + 1] > tau * inverse[admitted])

    def walk(self, past: Past, admitted: int, tau: int, survivals: Ints) -> int:
        inverse = past.prices.inverse[admitted : admitted + survivals.size + 1]
        return admitted + first_decline(tau_along(survivals, tau), inverse)


@dataclass(frozen=True)
class Hull(StoppingRule):
    """Early stop on the lower convex hull of the executed cost, then fill the executed graph tier.

    tau is concave along the admission order and the hull convex, so the first stop is the maximum. The hull spans
    B in [R, min(R(1 + gamma), last captured size)]; the eager cliff is outside and never entered. With `dips` a count
    costs what the cheapest graph that holds it costs, and the fill goes up to that graph; without, the cost is made
    non-decreasing by its running maximum.
    """

    name: ClassVar[str] = "hull"
    fill: bool = parameter(True, None, doc="admit on to the top of the executed graph tier")
    dips: bool = parameter(True, None, doc="use a larger graph where it is the cheaper one; needs fill")

    def tables(self, prices: StepPrices) -> tuple[Floats, Ints | None]:
        """(1 / hull by admitted count [last_captured + 1], what a count is filled up to [n] or None)."""
        if not self.fill:
            return prices.hull_inverse, None
        if self.dips:
            return prices.dip_hull_inverse, prices.cheapest_top
        return prices.hull_inverse, prices.tier_top

    def admits(self, past: Past, admitted: int, tau: int, survival: int) -> bool:
        inverse = self.tables(past.prices)[0]
        if admitted + 1 >= inverse.size:
            return False
        return bool((tau + survival) * inverse[admitted + 1] > tau * inverse[admitted])

    def walk(self, past: Past, admitted: int, tau: int, survivals: Ints) -> int:
        inverse = self.tables(past.prices)[0][admitted:]
        count = min(survivals.size, inverse.size - 1)
        if count <= 0:
            return admitted
        return admitted + first_decline(tau_along(survivals[:count], tau), inverse[: count + 1])

    def extend(self, past: Past, admitted: int) -> int:
        fill_to = self.tables(past.prices)[1]
        return admitted if fill_to is None else int(fill_to[admitted])


@dataclass(frozen=True)
class Lookahead(StoppingRule):
    """Early stop that crosses a dip when the survival at hand could still pay for it further on, and then commits.

    The candidate's survival a bounds all later ones: go on iff max over m >= 1 of (tau + m a) / T(k + m) beats
    tau / T(k), inside the captured sizes.
    """

    name: ClassVar[str] = "lookahead"

    def admits(self, past: Past, admitted: int, tau: int, survival: int) -> bool:
        tops, inverse = self._tops(past), past.prices.inverse
        ahead = tops[tops > admitted]
        if ahead.size == 0:
            return False
        best = np.max((tau + (ahead - admitted) * survival) * inverse[ahead])
        return bool(best > tau * inverse[admitted])

    def walk(self, past: Past, admitted: int, tau: int, survivals: Ints) -> int:
        tops, inverse = self._tops(past), past.prices.inverse
        for begin in range(0, survivals.size, _CHUNK):
            chunk = survivals[begin : begin + _CHUNK]
            taus = tau_along(chunk, tau)
            ranks = admitted + np.arange(chunk.size)
            ahead = tops[None, :] - ranks[:, None]  # [chunk, tiers]
            reach = np.where(ahead > 0, (taus[:-1, None] + ahead * chunk[:, None]) * inverse[tops][None, :], 0.0)
            goes_on = reach.max(axis=1, initial=0.0) > taus[:-1] * inverse[ranks]
            if not goes_on.all():
                return admitted + int(np.argmin(goes_on))
            admitted, tau = admitted + chunk.size, int(taus[-1])
        return admitted

    def _tops(self, past: Past) -> Ints:
        """Where (tau + m a) / T can be largest: T is constant inside a tier, so only at tier tops (and at the cap)."""
        tops = past.prices.tier_tops
        return tops if self.cap is None else np.minimum(tops, past.num_requests * self.cap)
