"""`self-tuning`: the policy that needs no preparation."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, ClassVar

from sglang_dspark.policies.base import Policy
from sglang_dspark.policies.calibration import correction
from sglang_dspark.policies.classes import Combined
from sglang_dspark.policies.parameters import parameter
from sglang_dspark.policies.rules.budget import Argmax
from sglang_dspark.policies.rules.calibrated import Calibrated
from sglang_dspark.policies.rules.foresight import Foresight
from sglang_dspark.policies.rules.repriced import Repriced
from sglang_dspark.policies.rules.wrapped import Wrapped
from sglang_dspark.policies.state import Past


@dataclass(frozen=True)
class SelfTuning(Combined):
    """Lagged argmax on an overlapped schedule, foresight on a synchronous one; confidences and costs learned online.

    rule=auto is argmax until somebody who knows the schedule asks (`for_schedule`); what ran is in the records.
    """

    name: ClassVar[str] = "self-tuning"
    lag: int = parameter(2, 1, 8, "decode publishes between a survival and its use")
    rule: str = parameter("auto", ("auto", "argmax", "foresight"), doc="which of the two decides")

    @property
    def parts(self) -> tuple[Policy]:
        return (_learning(self.rule, self.lag),)

    @property
    def max_lag(self) -> int:
        return self.lag

    @property
    def fills(self) -> bool:
        return self.parts[0].fills

    def choose(self, past: Past) -> int:
        return 0

    def for_schedule(self, synchronous: bool) -> Policy:
        if self.rule != "auto":
            return self
        return replace(self, rule="foresight" if synchronous else "argmax")


@cache
def _learning(rule: str, lag: int) -> Policy:
    """The rule with all that can be learned online; kept, as every step asks for it."""
    return Repriced(Calibrated(Foresight(lag=lag) if rule == "foresight" else Argmax(lag=lag)))


def single_part(policy: Policy, past: Past) -> tuple[Policy, Past, tuple[float, float] | None]:
    """The rule inside what holds one alone: (rule, the past as it sees it, the correction of its confidences)."""
    numbers = None
    while isinstance(policy, SelfTuning | Wrapped):
        view = policy.seen(past, 0)
        if isinstance(policy, Calibrated):
            numbers = correction(past.carry[0])
        policy, past = policy.parts[0], view
    return policy, past, numbers


def calibration_of(policy: Policy, carry: Any) -> tuple[float, float] | None:
    """(a, b) of logit c' = a logit c + b as learned so far, from what the policy carries; None if it learns none."""
    state = _learned(Calibrated, policy, carry)
    return None if state is None else (float(state[0]), float(state[1]))


def costs_of(policy: Policy, carry: Any) -> dict[int, float] | None:
    """Measured over believed seconds by executed tokens as learned so far; None if the policy learns none."""
    state = _learned(Repriced, policy, carry)
    return None if state is None else {int(tier): math.exp(mean) for tier, mean, _ in sorted(state)}


def _learned(wrapper: type[Wrapped], policy: Policy, carry: Any) -> Any:
    """What the outermost `wrapper` has learned, None without one (or where `start` raised)."""
    while isinstance(policy, SelfTuning | Wrapped) and carry:
        if isinstance(policy, wrapper):
            return carry[0]
        policy, carry = policy.parts[0], carry[-1]
    return None
