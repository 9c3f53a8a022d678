"""`guard`: use a policy only when the past predicts that it beats a baseline."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sglang_dspark.errors import InputError
from sglang_dspark.policies.arithmetic import SCALE, Ints
from sglang_dspark.policies.base import Policy
from sglang_dspark.policies.classes import Combined
from sglang_dspark.policies.parameters import parameter
from sglang_dspark.policies.rules.budget import Argmax
from sglang_dspark.policies.rules.length import Fixed
from sglang_dspark.policies.state import LiveBlock, Past


@dataclass(frozen=True)
class Guard(Combined):
    """`inner` where lagged survivals predict a gain of at least `min_gain` over `baseline`, else `baseline`.

    The branch is picked before the live survivals are read: a gain predicted from live survivals leaks (design.md 3).
    """

    name: ClassVar[str] = "guard"
    inner: Policy = parameter(Argmax(), None, doc="the policy to guard")
    baseline: Policy = parameter(Fixed(), None, doc="what is done otherwise")
    min_gain: float = parameter(0.02, -1.0, 100.0, "predicted relative gain that switches to `inner`")
    lag: int = parameter(2, 1, 8, "decode publishes between a survival and the prediction")

    def __post_init__(self) -> None:
        super().__post_init__()
        for branch in self.parts:
            if not branch.lossless:
                raise InputError(
                    f"policy 'guard': '{branch.name}' is not lossless, expected lossless policies in both branches"
                )
            if not branch.drafts:
                raise InputError(
                    f"policy 'guard': '{branch.name}' has no drafter, expected policies that draft (fixed:k=0 does)"
                )

    @property
    def parts(self) -> tuple[Policy, Policy]:
        return self.inner, self.baseline

    @property
    def max_lag(self) -> int:
        return max(self.lag, self.inner.max_lag, self.baseline.max_lag)

    @property
    def min_lag(self) -> int:
        return min(lag for lag in (self.lag, self.inner.min_lag, self.baseline.min_lag) if lag)

    def choose(self, past: Past) -> int:
        lagged, _ = past.survival(self.lag)
        views = [past.carrying(state) for state in past.carry]
        inner, baseline = (_predicted_theta(part, view, lagged) for part, view in zip(self.parts, views, strict=True))
        return 0 if inner >= (1.0 + self.min_gain) * baseline else 1


def _predicted_theta(policy: Policy, past: Past, lagged: Ints) -> float:
    """Theta of what the policy would do if the block were the lagged one."""
    confidence = np.ones(lagged.shape, dtype=np.float32)
    confidence[:, 0] = lagged[:, 0] / SCALE
    np.divide(lagged[:, 1:], lagged[:, :-1], out=confidence[:, 1:], where=lagged[:, :-1] > 0, casting="unsafe")
    decision = policy.decide(past, LiveBlock(lagged, confidence))
    inside = np.arange(past.gamma)[None, :] < decision.lengths[:, None]
    tau = past.num_requests * SCALE + int(lagged[inside].sum())
    return tau * float(past.prices.inverse[decision.total])
