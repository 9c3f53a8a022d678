"""Ways for two ranks to share a tier that leak, through nothing but the tier."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sglang_dspark.audit.ranks import SharedTier, Situation
from sglang_dspark.policies import SCALE, Policy
from sglang_dspark.policies.arithmetic import Ints, allocate


class Yields(SharedTier):
    """A rank takes back what it decided when the other asks for its whole block: each decides on draft tokens that the
    other drops. Each rank's own law is untouched; only the two together are not the target's."""

    def lengths(self, policy: Policy, ranks: Sequence[Situation | None], captured: Ints | None) -> list[Ints]:
        found = []
        for rank, other in zip(ranks, reversed(ranks), strict=True):
            if rank is None:
                found.append(np.empty(0, np.int64))
            elif other is not None and other.decision.total == other.past.num_requests * other.past.gamma:
                found.append(np.zeros_like(rank.decision.lengths))
            else:
                found.append(rank.decision.lengths)
        return found


class BestTogether(SharedTier):
    """The ranks pick the tier that pays best for both on this step's survivals: global argmax across ranks."""

    def lengths(self, policy: Policy, ranks: Sequence[Situation | None], captured: Ints | None) -> list[Ints]:
        present = [rank for rank in ranks if rank is not None]
        if not present:
            return [np.empty(0, np.int64) for _ in ranks]
        prices = max(present, key=lambda rank: rank.past.num_requests).past.prices
        best = max(range(prices.seconds.size), key=lambda k: sum(_tau(rank, k) for rank in present) / prices.seconds[k])
        return [np.empty(0, np.int64) if rank is None else allocate(rank.live.units, best) for rank in ranks]


def _tau(rank: Situation, admitted: int) -> float:
    units = np.sort(rank.live.units.ravel())[::-1]
    return rank.past.num_requests * SCALE + float(units[:admitted].sum())
