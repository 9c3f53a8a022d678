"""Online calibration as a part that any scheduling rule can have: `hull:calibrate=online`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from sglang_dspark.errors import InputError
from sglang_dspark.policies import calibration
from sglang_dspark.policies.arithmetic import Ints
from sglang_dspark.policies.needs import knows_depth
from sglang_dspark.policies.rules.wrapped import Wrapped
from sglang_dspark.policies.state import LiveBlock, Outcome, Past, Plan


@dataclass(frozen=True)
class Calibrated(Wrapped):
    """`inner` on corrected confidences: logit c' = a logit c + b, fitted to the outcomes of earlier steps.

    Order and tau are those of the corrected survivals, live and lagged. Starts at the identity. Written as
    `calibrate=online` among the parameters of `inner`.
    """

    name: ClassVar[str] = "calibrated"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.holds(Wrapped) or not self.inner.adaptive or not self.inner.drafts or knows_depth(self.inner):
            raise InputError(
                f"policy '{self.inner.name}': calibrate=online is refused, it looks at no confidence or is calibrated "
                "already; expected a rule that schedules by confidence"
            )

    @property
    def reads_confidence(self) -> bool:  # type: ignore[override]
        return True

    def start(self, gamma: int) -> tuple[calibration.State, Any]:
        """The state of the correction, and what `inner` carries."""
        return calibration.START, self.inner.start(gamma)

    def learn(self, carry: tuple[calibration.State, Any], outcome: Outcome) -> tuple[calibration.State, Any]:
        state, inner = carry
        if self.inner.learns:
            survival = calibration.corrected_units(outcome.survival, calibration.correction(state))
            inner = self.inner.learn(inner, replace(outcome, survival=survival))
        return calibration.followed(state, outcome), inner

    def seen(self, past: Past, chosen: int) -> Past:
        state, carry = past.carry
        numbers = calibration.correction(state)
        if numbers is None:
            return past.carrying(carry)

        def lagged(lag: int) -> tuple[Ints, Any]:
            units, published = past.survival(lag)
            return np.where(published[:, None], calibration.corrected_units(units, numbers), units), published

        return replace(past, lagged=lagged, carry=carry)

    def shown(self, past: Past, live: LiveBlock) -> LiveBlock:
        return calibration.corrected_block(live, calibration.correction(past.carry[0]))

    def plan(self, past: Past) -> Plan | None:
        plan = super().plan(past)
        numbers = calibration.correction(past.carry[0])
        return plan if plan is None or numbers is None else replace(plan, correction=numbers)
