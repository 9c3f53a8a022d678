"""`BudgetRule`: K from past information, then the first K of the live admission order."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from operator import index
from typing import ClassVar

import numpy as np

from sglang_dspark.jit import policy_loops
from sglang_dspark.policies.arithmetic import NO_CAPS, SCALE, Floats, Ints, below, plain, sealed, tau_along
from sglang_dspark.policies.classes.bounded import Bounded, of_plan
from sglang_dspark.policies.fallback import fault_of
from sglang_dspark.policies.state import Decision, LiveBlock, Past, Plan


@dataclass(frozen=True)
class BudgetRule(Bounded):
    """K from past information; then the first K of the live admission order are verified."""

    kind: ClassVar[str] = "budget"
    _supplies: ClassVar[str] = "budget(past)"

    @property
    def lossless(self) -> bool:
        return True

    @property
    def live(self) -> bool:
        return False

    @abstractmethod
    def budget(self, past: Past) -> int:
        """K, the number of draft tokens to verify; clamped to what floor and cap allow."""

    def plan(self, past: Past) -> Plan:
        floor, cap = self.bounds(past.gamma)
        low, high = past.totals(floor, cap)
        try:
            budget, fault = min(max(index(self.budget(past)), low), high), None
        except Exception as error:
            budget, fault = high, fault_of(error, "budget")
        return Plan(budget, floor, cap, past.caps, fault)

    def decide(self, past: Past, live: LiveBlock) -> Decision:
        return of_plan(self.plan(past), live)


def best_budget(past: Past, units: Ints, inverse: Floats, floor: int, cap: int, least: int = 0) -> int:
    """argmax over K of tau(K) / T(K) on the survivals `units` [R, gamma], floor included; first maximum wins.

    inverse: [R * gamma + 1] float64, 1 / T by admitted count. Survivals below `least` units are left out.
    """
    loops = policy_loops()
    if loops is not None and units.dtype == np.int64 and inverse.dtype == np.float64:
        caps = NO_CAPS if past.caps is None else plain(past.caps)
        return int(loops.best_budget(plain(units), sealed(inverse), floor, cap, caps, least))
    num_requests = past.num_requests
    start = past.totals(floor, cap)[0]
    if past.caps is None:
        candidates = units[:, floor:cap].astype(np.int32).ravel()  # 25 bits; half the width sorts twice as fast
    else:
        positions = np.arange(floor, cap)
        candidates = units[:, floor:cap][positions < past.caps[:, None]].astype(np.int32)
    candidates.sort()
    candidates = candidates[::-1]
    if least:
        candidates = candidates[: candidates.size - int(candidates[::-1].searchsorted(least))]
    tau = tau_along(candidates, num_requests * SCALE + below(units, floor, past.caps))
    return start + int((tau * inverse[start : start + tau.size]).argmax())
