"""Online calibration as a part that any scheduling rule can have: `hull:calibrate=online`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from sglang_dspark.errors import InputError
from sglang_dspark.policies import calibration
from sglang_dspark.policies.arithmetic import Ints
from sglang_dspark.policies.base import Policy
from sglang_dspark.policies.classes import Combined
from sglang_dspark.policies.parameters import parameter
from sglang_dspark.policies.rules.budget import Argmax
from sglang_dspark.policies.state import LiveBlock, Outcome, Past, Plan


@dataclass(frozen=True)
class Calibrated(Combined):
    """`inner` on corrected confidences: logit c' = a logit c + b, fitted to the outcomes of earlier steps.

    Order and tau are those of the corrected survivals, live and lagged. Starts at the identity. Written as
    `calibrate=online` among the parameters of `inner`.
    """

    name: ClassVar[str] = "calibrated"
    inner: Policy = parameter(Argmax(), None, doc="the rule that decides")

    def __post_init__(self) -> None:
        super().__post_init__()
        held = (self.inner, *(self.inner.parts if isinstance(self.inner, Combined) else ()))
        if any(isinstance(part, Calibrated) for part in held) or not self.inner.adaptive or not self.inner.drafts:
            raise InputError(
                f"policy '{self.inner.name}': calibrate=online is refused, it looks at no confidence or is calibrated "
                "already; expected a rule that schedules by confidence"
            )

    @property
    def kind(self) -> str:  # type: ignore[override]
        return self.inner.kind

    @property
    def parts(self) -> tuple[Policy]:
        return (self.inner,)

    @property
    def learns(self) -> bool:  # type: ignore[override]
        return True

    @property
    def reads_confidence(self) -> bool:  # type: ignore[override]
        return True

    @property
    def max_lag(self) -> int:
        return self.inner.max_lag

    @property
    def min_lag(self) -> int:
        return self.inner.min_lag

    @property
    def fills(self) -> bool:
        return self.inner.fills

    def choose(self, past: Past) -> int:
        return 0

    def start(self, gamma: int) -> tuple[calibration.State, Any]:
        """The state of the correction, and what `inner` carries."""
        return calibration.START, self.inner.start(gamma)

    def learn(self, carry: tuple[calibration.State, Any], outcome: Outcome) -> tuple[calibration.State, Any]:
        state, inner = carry
        if self.inner.learns:
            survival = calibration.corrected_units(outcome.survival, calibration.correction(state))
            inner = self.inner.learn(inner, Outcome(survival, outcome.lengths, outcome.accepted))
        return calibration.followed(state, outcome), inner

    def seen(self, past: Past, chosen: int) -> Past:
        state, carry = past.carry
        numbers = calibration.correction(state)
        if numbers is None:
            return past.carrying(carry)

        def lagged(lag: int) -> tuple[Ints, Any]:
            units, published = past.survival(lag)
            return np.where(published[:, None], calibration.corrected_units(units, numbers), units), published

        return Past(past.num_requests, past.gamma, past.prices, lagged, carry, past.waiting, past.caps)

    def shown(self, past: Past, live: LiveBlock) -> LiveBlock:
        return calibration.corrected_block(live, calibration.correction(past.carry[0]))

    def plan(self, past: Past) -> Plan | None:
        plan = super().plan(past)
        numbers = calibration.correction(past.carry[0])
        return plan if plan is None or numbers is None else replace(plan, correction=numbers)
