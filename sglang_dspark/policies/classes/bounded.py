"""A floor and a cap, what every class but `LengthRule` has of them, and what a plan makes of a block."""

from __future__ import annotations

from dataclasses import dataclass

from sglang_dspark.errors import InputError
from sglang_dspark.policies.arithmetic import allocate
from sglang_dspark.policies.base import Policy
from sglang_dspark.policies.calibration import corrected_block
from sglang_dspark.policies.parameters import CAP, FLOOR, parameter
from sglang_dspark.policies.state import Decision, LiveBlock, Plan


@dataclass(frozen=True)
class Bounded(Policy):
    """Rules with a floor, the positions that every request verifies anyway, and a cap, the last one that any may."""

    floor: int = parameter(0, *FLOOR)
    cap: int | None = parameter(None, *CAP)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cap is not None and self.floor > self.cap:
            raise InputError(f"policy '{self.name}': floor={self.floor} exceeds cap={self.cap}, expected floor <= cap")

    def bounds(self, gamma: int) -> tuple[int, int]:
        return self.floor, gamma if self.cap is None else self.cap

    def positions(self) -> dict[str, int | None]:
        return {"floor": self.floor, "cap": self.cap}


def of_plan(plan: Plan, live: LiveBlock) -> Decision:
    """What a plan makes of this step's block."""
    live = corrected_block(live, plan.correction)
    return Decision(allocate(live.units, plan.budget, plan.floor, plan.cap, plan.caps), plan.budget, plan.fault)
