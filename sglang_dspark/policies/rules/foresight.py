"""`foresight`: Algorithm 1 of the paper made practical on a staircase, by what the past says lies beyond a tier."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np

from sglang_dspark.jit import policy_loops
from sglang_dspark.policies.arithmetic import Ints, plain, sorted_survivals, tau_along
from sglang_dspark.policies.classes import StoppingRule
from sglang_dspark.policies.parameters import parameter
from sglang_dspark.policies.state import Past

MOST_RATIO = 4
"""A candidate counts for at most so many times the lagged survival of its rank."""


class Beyond(NamedTuple):
    """What the past says. tops: [m] int64 increasing, the counts at which graph tiers end, inside the captured sizes.

    summed, next: [m] int64 units, at each of them the lagged survivals up to it, summed, and the one after it.
    """

    tops: Ints
    summed: Ints
    next: Ints


@dataclass(frozen=True)
class Foresight(StoppingRule):
    """Fills its graph tier, and goes on to a further one if lagged survivals beyond the candidate would pay for it.

    Inside a tier another token costs nothing, so the walk only decides at a tier's top, from the candidate in hand. How
    much lies beyond it is not known (later ranks are sealed), but the previous steps' blocks had a curve of survivals
    too: that curve, scaled by the candidate over its lagged counterpart, says what the tokens up to a further top
    would bring. Go on iff tau plus that, over the price of some further top, beats what is in hand. The candidate's
    survival bounds all later ones, and so it bounds the forecast.

    Where `hull` needs the price to be convex and `early-stop` stops at the first tier, this crosses a dip only when
    the forecast pays for it. Argmax on lagged survivals remains the better choice where the copy or the launch that a
    synchronous decision waits for costs more than a per cent of the step.
    """

    name: ClassVar[str] = "foresight"
    lag: int = parameter(2, 1, 8, "decode publishes between a survival and its use", shown=True)

    @property
    def max_lag(self) -> int:
        return self.lag

    @property
    def fills(self) -> bool:
        return True

    def tables(self, past: Past) -> Beyond:
        floor, cap = self.bounds(past.gamma)
        start, most = past.totals(floor, cap)
        lagged = sorted_survivals(past.survival(self.lag)[0], floor, cap, past.caps)
        loops = policy_loops()
        if loops is not None:
            return Beyond(*loops.foresight_tables(lagged, start, most, past.prices.tier_tops))
        tops = np.unique(np.minimum(past.prices.tier_tops, most))
        tops = tops[tops >= start]
        summed = tau_along(lagged, 0)[tops - start]
        return Beyond(tops, summed, np.append(lagged, 0)[tops - start])

    def admits(self, past: Past, admitted: int, tau: int, survival: int) -> bool:
        beyond = self.tables(past)
        at = int(np.searchsorted(beyond.tops, admitted))
        if at == beyond.tops.size:
            return False
        if beyond.tops[at] != admitted:
            return True
        return bool(_pays(past, beyond, np.array([at]), np.array([tau]), np.array([survival]))[0])

    def walk(self, past: Past, tables: Beyond, admitted: int, tau: int, survivals: Ints) -> int:
        loops = policy_loops()
        if loops is not None:
            arrays = (*tables, past.prices.inverse)
            return int(loops.foresight_walk(*arrays, admitted, tau, plain(survivals)))
        # A top is decided on when there is a candidate after it; the walk ends at the first that declines.
        met = np.flatnonzero((tables.tops >= admitted) & (tables.tops < admitted + survivals.size))
        if tables.tops.size == 0 or admitted > tables.tops[-1]:
            return admitted
        if met.size:
            ranks = tables.tops[met] - admitted
            goes_on = _pays(past, tables, met, tau_along(survivals, tau)[ranks], survivals[ranks])
            if not goes_on.all():
                return int(tables.tops[met[int(goes_on.argmin())]])
        return int(min(tables.tops[-1], admitted + survivals.size))


def _pays(past: Past, beyond: Beyond, at: Ints, tau: Ints, survival: Ints) -> np.ndarray:
    """[n] bool: whether some further top pays, seen from the tops of index `at` [n] with tau and candidate in hand.

    All in integers up to the one product with 1 / T, so that every implementation decides alike.
    """
    inverse, tops = past.prices.inverse, beyond.tops
    here = tops[at]
    ahead = tops[None, :] - here[:, None]  # [n, m]
    more = beyond.summed[None, :] - beyond.summed[at][:, None]
    scaled = more * survival[:, None] // np.maximum(beyond.next[at], 1)[:, None]
    gain = np.minimum(np.minimum(scaled, MOST_RATIO * more), ahead * survival[:, None])
    reach = np.where(ahead > 0, (tau[:, None] + gain) * inverse[tops][None, :], 0.0)
    return np.asarray(reach.max(axis=1) > tau * inverse[here])
