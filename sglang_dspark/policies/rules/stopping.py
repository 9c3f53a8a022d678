"""Stopping rules: they walk the live admission order and never look at a rank beyond the one they decide."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sglang_dspark.jit import policy_loops
from sglang_dspark.policies.arithmetic import Ints, plain, sealed, tau_along
from sglang_dspark.policies.classes import StoppingRule, StopTables, TableStop
from sglang_dspark.policies.parameters import parameter
from sglang_dspark.policies.state import Past

_CHUNK = 64  # ranks that `lookahead` examines at a time


@dataclass(frozen=True)
class EarlyStop(TableStop):
    """The paper's Algorithm 1 to the letter: admit while Theta = tau / T rises, stop at the first that does not."""

    name: ClassVar[str] = "early-stop"

    def tables(self, past: Past) -> StopTables:
        return StopTables(past.prices.inverse)


@dataclass(frozen=True)
class Hull(TableStop):
    """Early stop on the lower convex hull of the executed cost, then fill the executed graph tier.

    tau is concave along the admission order and the hull convex, so the first stop is the maximum. The hull spans
    B in [R, min(R(1 + gamma), last captured size)]; the eager cliff is outside and never entered. With `dips` a count
    costs what the cheapest graph that holds it costs, and the fill goes up to that graph; without, the cost is made
    non-decreasing by its running maximum.
    """

    name: ClassVar[str] = "hull"
    fill: bool = parameter(True, None, doc="admit on to the top of the executed graph tier")
    dips: bool = parameter(True, None, doc="use a larger graph where it is the cheaper one; needs fill")

    @property
    def fills(self) -> bool:
        return self.fill

    def tables(self, past: Past) -> StopTables:
        prices = past.prices
        if not self.fill:
            return StopTables(prices.hull_inverse)
        if self.dips:
            return StopTables(prices.dip_hull_inverse, prices.cheapest_top)
        return StopTables(prices.hull_inverse, prices.tier_top)


@dataclass(frozen=True)
class Lookahead(StoppingRule):
    """Early stop that crosses a dip when the survival at hand could still pay for it further on, and then commits.

    The candidate's survival a bounds all later ones: go on iff max over m >= 1 of (tau + m a) / T(k + m) beats
    tau / T(k), inside the captured sizes.
    """

    name: ClassVar[str] = "lookahead"

    @property
    def fills(self) -> bool:
        return True

    def admits(self, past: Past, admitted: int, tau: int, survival: int) -> bool:
        tops, inverse = self.tables(past), past.prices.inverse
        ahead = tops[tops > admitted]
        if ahead.size == 0:
            return False
        best = np.max((tau + (ahead - admitted) * survival) * inverse[ahead])
        return bool(best > tau * inverse[admitted])

    def walk(self, past: Past, tables: Ints, admitted: int, tau: int, survivals: Ints) -> int:
        tops, inverse = tables, past.prices.inverse
        loops = policy_loops()
        if loops is not None:
            return int(loops.lookahead_walk(sealed(tops), inverse, admitted, tau, plain(survivals)))
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

    def tables(self, past: Past) -> Ints:
        """Where (tau + m a) / T can be largest: T is constant inside a tier, so only at tier tops (and at the cap)."""
        tops = past.prices.tier_tops
        return tops if self.cap is None else np.minimum(tops, past.num_requests * self.cap)
