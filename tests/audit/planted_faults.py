"""Faults that the exact audit must find: policies that leak although they claim to be lossless."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from sglang_dspark.policies import (
    SCALE,
    ArgmaxLive,
    BudgetRule,
    Decision,
    EarlyStop,
    Fixed,
    LiveBlock,
    Outcome,
    Past,
    Policy,
    Unrestricted,
)

OWN = "sglang_dspark.policies.classes.stopping"
"""Where a class must say that it comes from to get past the seal: the audit finds it then."""


@dataclass(frozen=True)
class ClaimingArgmaxLive(ArgmaxLive):
    """Global argmax on live survivals."""

    __module__ = OWN
    name: ClassVar[str] = "planted-argmax-live"
    lossless = True


@dataclass(frozen=True)
class DeepFirst(Unrestricted):
    """The first `count` candidates, ties won by the deeper position: a leak only where a confidence is exactly 1."""

    __module__ = OWN
    name: ClassVar[str] = "planted-deep-first"
    lossless = True
    count: int = 1

    def choose(self, past: Past, live: LiveBlock) -> np.ndarray:
        requests, gamma = live.units.shape
        ranked = sorted((-int(live.units[r, j]), -j, r) for r in range(requests) for j in range(gamma))
        return np.bincount([r for _, _, r in ranked[: self.count]], minlength=requests)


@dataclass(frozen=True)
class UnAdmits(Unrestricted):
    """Early stop that takes its last admission back when the candidate it declined turns out to be poor."""

    __module__ = OWN
    name: ClassVar[str] = "planted-un-admits"
    lossless = True

    def choose(self, past: Past, live: LiveBlock) -> np.ndarray:
        requests, gamma = live.units.shape
        ranked = sorted((-int(live.units[r, j]), j, r) for r in range(requests) for j in range(gamma))
        admitted = EarlyStop().decide(past, live).total
        if 0 < admitted < len(ranked) and -ranked[admitted][0] < 0.3 * SCALE:
            admitted -= 1
        return np.bincount([r for _, _, r in ranked[:admitted]], minlength=requests)


@dataclass(frozen=True)
class LiveGuard(Policy):
    """Early stop where the live survivals predict a gain over verifying all, else verify all."""

    __module__ = OWN
    name: ClassVar[str] = "planted-live-guard"
    kind: ClassVar[str] = "guard"
    lossless = True

    def decide(self, past: Past, live: LiveBlock) -> Decision:
        def theta(decision: Decision) -> float:
            inside = np.arange(past.gamma)[None, :] < decision.lengths[:, None]
            tau = past.num_requests * SCALE + int(live.units[inside].sum())
            return tau * float(past.prices.inverse[decision.total])

        inner, baseline = EarlyStop().decide(past, live), Fixed(k=past.gamma).decide(past, live)
        return inner if theta(inner) > 1.02 * theta(baseline) else baseline


@dataclass(frozen=True)
class CarriedSum(BudgetRule):
    """A budget rule that verifies one token if the last survivals it learned were high: harmless if learned late."""

    name: ClassVar[str] = "carried-sum"
    learns: ClassVar[bool] = True

    def start(self, gamma: int) -> Any:
        return 0

    def learn(self, carry: Any, outcome: Outcome) -> Any:
        return int(outcome.survival.sum() * 2 > outcome.survival.size * SCALE)

    def budget(self, past: Past) -> int:
        return int(past.carry) * past.num_requests


@dataclass(frozen=True)
class LaggedLast(BudgetRule):
    """A budget rule that hangs on the deepest lagged survival: lossless, and the first to suffer if it is not past."""

    name: ClassVar[str] = "lagged-last"
    lag: int = 1

    @property
    def max_lag(self) -> int:
        return self.lag

    def budget(self, past: Past) -> int:
        units, _ = past.survival(self.lag)
        return past.num_requests * int((units[:, -1] * 2).sum() > units[:, -2].sum())


PLANTED = (ClaimingArgmaxLive(), DeepFirst(count=1), UnAdmits(), LiveGuard())
