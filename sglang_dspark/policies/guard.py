"""`guard`: use a policy only when the past predicts that it beats a baseline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from sglang_dspark.errors import InputError
from sglang_dspark.policies.arithmetic import SCALE, Ints
from sglang_dspark.policies.base import Policy
from sglang_dspark.policies.budget import Argmax
from sglang_dspark.policies.length import Fixed
from sglang_dspark.policies.parameters import parameter
from sglang_dspark.policies.state import Decision, LiveBlock, Outcome, Past, Plan


@dataclass(frozen=True)
class Guard(Policy):
    """`inner` where lagged survivals predict a gain of at least `min_gain` over `baseline`, else `baseline`.

    The branch is picked before the live survivals are read: a gain predicted from live survivals leaks (design.md 3).
    """

    name: ClassVar[str] = "guard"
    kind: ClassVar[str] = "guard"
    inner: Policy = parameter(Argmax(), None, doc="the policy to guard")
    baseline: Policy = parameter(Fixed(), None, doc="what is done otherwise")
    min_gain: float = parameter(0.02, -1.0, 100.0, "predicted relative gain that switches to `inner`")
    lag: int = parameter(2, 1, 8, "decode publishes between a survival and the prediction")

    def __post_init__(self) -> None:
        super().__post_init__()
        for branch in (self.inner, self.baseline):
            if not branch.lossless:
                raise InputError(
                    f"policy 'guard': '{branch.name}' is not lossless, expected lossless policies in both branches"
                )
            if not branch.drafts:
                raise InputError(
                    f"policy 'guard': '{branch.name}' has no drafter, expected policies that draft (fixed:k=0 does)"
                )

    @property
    def learns(self) -> bool:  # type: ignore[override]
        return self.inner.learns or self.baseline.learns

    @property
    def reads_confidence(self) -> bool:  # type: ignore[override]
        return self.inner.reads_confidence or self.baseline.reads_confidence

    @property
    def live(self) -> bool:
        return self.inner.live or self.baseline.live

    @property
    def max_lag(self) -> int:
        return max(self.lag, self.inner.max_lag, self.baseline.max_lag)

    @property
    def min_lag(self) -> int:
        return min(lag for lag in (self.lag, self.inner.min_lag, self.baseline.min_lag) if lag)

    def check(self, gamma: int) -> None:
        self.inner.check(gamma)
        self.baseline.check(gamma)

    def start(self, gamma: int) -> tuple[Any, Any]:
        """The carried states of (inner, baseline)."""
        return self.inner.start(gamma), self.baseline.start(gamma)

    def learn(self, carry: tuple[Any, Any], outcome: Outcome) -> tuple[Any, Any]:
        return self.inner.learn(carry[0], outcome), self.baseline.learn(carry[1], outcome)

    def branch(self, past: Past) -> tuple[Policy, Past]:
        """The policy that decides this step, with its own carried state in the past it is given."""
        lagged, _ = past.survival(self.lag)
        views = [_with_carry(past, state) for state in past.carry]
        gain = [
            _predicted_theta(policy, view, lagged)
            for policy, view in zip((self.inner, self.baseline), views, strict=True)
        ]
        return (self.inner, views[0]) if gain[0] >= (1.0 + self.min_gain) * gain[1] else (self.baseline, views[1])

    def plan(self, past: Past) -> Plan:
        """Only when neither branch is live."""
        policy, view = self.branch(past)
        return policy.plan(view)  # type: ignore[attr-defined]

    def decide(self, past: Past, live: LiveBlock) -> Decision:
        policy, view = self.branch(past)
        return policy.decide(view, live)


def _with_carry(past: Past, carry: Any) -> Past:
    return Past(past.num_requests, past.gamma, past.prices, past.lagged, carry, past.waiting)


def _predicted_theta(policy: Policy, past: Past, lagged: Ints) -> float:
    """Theta of what the policy would do if the block were the lagged one."""
    confidence = np.ones(lagged.shape, dtype=np.float32)
    confidence[:, 0] = lagged[:, 0] / SCALE
    np.divide(lagged[:, 1:], lagged[:, :-1], out=confidence[:, 1:], where=lagged[:, :-1] > 0, casting="unsafe")
    decision = policy.decide(past, LiveBlock(lagged, confidence))
    inside = np.arange(past.gamma)[None, :] < decision.lengths[:, None]
    tau = past.num_requests * SCALE + int(lagged[inside].sum())
    return tau * float(past.prices.inverse[decision.total])
