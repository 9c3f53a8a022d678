"""The policy classes: each hands its rule only what the class may see, so that a leak cannot be written by accident.

Write a policy by subclassing one of
  `BudgetRule`    how many draft tokens, from the past alone;
  `StoppingRule`  rank by rank along the live admission order: go on or stop;
  `LengthRule`    per request, position by position, from its own confidences so far;
all three keep the joint output law exactly the target's (design.md 3). `Unrestricted` sees everything, is not lossless
and is refused by the live engine.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from sglang_dspark.errors import InputError
from sglang_dspark.policies.arithmetic import SCALE, Ints, allocate, keys_for, tau_along
from sglang_dspark.policies.parameters import CAP, FLOOR, check_parameters, parameter
from sglang_dspark.policies.state import Decision, LiveBlock, Outcome, Past, Plan


@dataclass(frozen=True)
class Policy(ABC):
    """Chooses how many draft tokens of each request the target verifies. Pure in what it is given."""

    name: ClassVar[str]
    kind: ClassVar[str]
    lossless: ClassVar[bool] = True
    learns: ClassVar[bool] = False
    """Whether `learn` wants the outcomes of earlier steps."""
    reads_confidence: ClassVar[bool] = False
    """Whether `LiveBlock.confidence` must be filled; most rules read survivals alone."""

    def __post_init__(self) -> None:
        check_parameters(self)
        floor, cap = getattr(self, "floor", None), getattr(self, "cap", None)
        if isinstance(floor, int) and isinstance(cap, int) and floor > cap:
            raise InputError(f"policy '{self.name}': floor={floor} exceeds cap={cap}, expected floor <= cap")

    @property
    def drafts(self) -> bool:
        """False when there is no drafter at all."""
        return True

    @property
    def live(self) -> bool:
        """Whether the number of verified tokens depends on this step's survivals (needs the synchronous schedule)."""
        return True

    @property
    def adaptive(self) -> bool:
        """Whether what is verified depends on survivals at all, lagged or live: such a policy needs them every step."""
        return True

    @property
    def max_lag(self) -> int:
        """The oldest publish that it looks at; 0 if it never looks at lagged survivals."""
        return 0

    @property
    def min_lag(self) -> int:
        """The newest publish that it looks at; 0 if it never looks at lagged survivals."""
        return self.max_lag

    def check(self, gamma: int) -> None:
        """Refuse parameters that make no sense for this block size (InputError)."""
        for field in ("floor", "cap", "k"):
            value = getattr(self, field, None)
            if isinstance(value, int) and value > gamma:
                raise InputError(f"policy '{self.name}': {field}={value} exceeds the draft block, expected 0..{gamma}")

    def start(self, gamma: int) -> Any:
        """The carried state before the first step."""
        return None

    def learn(self, carry: Any, outcome: Outcome) -> Any:
        """The carried state after the outcome of an earlier step; never sees the current draft."""
        return carry

    @abstractmethod
    def decide(self, past: Past, live: LiveBlock) -> Decision:
        """Verify lengths of this step. The classes below implement it; a rule does not."""


@dataclass(frozen=True)
class BudgetRule(Policy):
    """K from past information; then the first K of the live admission order are verified."""

    kind: ClassVar[str] = "budget"
    floor: int = parameter(0, *FLOOR)
    cap: int | None = parameter(None, *CAP)

    @property
    def live(self) -> bool:
        return False

    @abstractmethod
    def budget(self, past: Past) -> int:
        """K, the number of draft tokens to verify; clamped to what floor and cap allow."""

    def plan(self, past: Past) -> Plan:
        """The whole decision that can be made before the draft is drawn."""
        cap = past.gamma if self.cap is None else self.cap
        low, high = past.num_requests * self.floor, past.num_requests * cap
        return Plan(min(max(self.budget(past), low), high), self.floor, cap)

    def decide(self, past: Past, live: LiveBlock) -> Decision:
        plan = self.plan(past)
        return Decision(allocate(live.units, plan.budget, plan.floor, plan.cap), plan.budget)


@dataclass(frozen=True)
class StoppingRule(Policy):
    """Walks the live admission order; rank m is admitted or not from survivals of ranks <= m and the past."""

    kind: ClassVar[str] = "stopping"
    floor: int = parameter(0, *FLOOR)
    cap: int | None = parameter(None, *CAP)

    @abstractmethod
    def admits(self, past: Past, admitted: int, tau: int, survival: int) -> bool:
        """Whether to admit the next draft token.

        admitted: draft tokens admitted so far; tau: expected tokens so far, survival: the candidate's, both in units.
        """

    def extend(self, past: Past, admitted: int) -> int:
        """The final count, >= admitted, once the walk has stopped."""
        return admitted

    def walk(self, past: Past, admitted: int, tau: int, survivals: Ints) -> int:
        """How many the walk admits in all. `survivals` [n] are sorted; this definition looks at one at a time.

        A rule may override it with an array form; the contract tests compare the two.
        """
        for survival in survivals.tolist():
            if not self.admits(past, admitted, tau, survival):
                break
            admitted, tau = admitted + 1, tau + survival
        return admitted

    def decide(self, past: Past, live: LiveBlock) -> Decision:
        num_requests, gamma = live.units.shape
        floor, cap = self.floor, gamma if self.cap is None else self.cap
        start = num_requests * floor
        tau = num_requests * SCALE + (int(live.units[:, :floor].sum()) if floor else 0)
        order = keys_for(num_requests, floor, cap)
        keys = order.of(live.units)
        keys.sort()
        stopped = self.walk(past, start, tau, order.survivals(keys))
        total = min(max(self.extend(past, stopped), stopped), num_requests * cap)
        lengths = order.counts(keys[: total - start])
        return Decision(lengths + floor if floor else lengths, total)


@dataclass(frozen=True)
class LengthRule(Policy):
    """Per request, position by position, from its own confidences so far and the past."""

    kind: ClassVar[str] = "length"
    reads_confidence: ClassVar[bool] = True

    @property
    def adaptive(self) -> bool:
        return self.reads_confidence

    @abstractmethod
    def admits(self, past: Past, position: int, confidence: NDArray[np.float32]) -> bool:
        """Whether a request verifies `position` (1..gamma), given its confidences [position] up to that one."""

    def lengths(self, past: Past, live: LiveBlock) -> Ints:
        """Admitted tokens of each request [R]; this definition asks `admits` one position at a time."""
        confidence = live.confidence
        assert confidence is not None
        out = np.zeros(len(confidence), dtype=np.int64)
        for request, row in enumerate(confidence):
            while out[request] < past.gamma and self.admits(past, int(out[request]) + 1, row[: out[request] + 1]):
                out[request] += 1
        return out

    def decide(self, past: Past, live: LiveBlock) -> Decision:
        lengths = self.lengths(past, live)
        return Decision(lengths, int(lengths.sum()))


@dataclass(frozen=True)
class Unrestricted(Policy):
    """For research: sees the whole live block. Not lossless, refused by the live engine."""

    kind: ClassVar[str] = "unrestricted"
    lossless: ClassVar[bool] = False
    reads_confidence: ClassVar[bool] = True

    @abstractmethod
    def choose(self, past: Past, live: LiveBlock) -> Ints:
        """Admitted tokens of each request, [R] int64."""

    def decide(self, past: Past, live: LiveBlock) -> Decision:
        lengths = self.choose(past, live)
        return Decision(lengths, int(lengths.sum()))


def best_budget(past: Past, units: Ints, inverse: NDArray[np.float64], floor: int, cap: int, least: int = 0) -> int:
    """argmax over K of tau(K) / T(K) on the survivals `units` [R, gamma], floor included; first maximum wins.

    inverse: [R * gamma + 1] float64, 1 / T by admitted count. Survivals below `least` units are left out.
    """
    num_requests = past.num_requests
    candidates = units[:, floor:cap].astype(np.int32).ravel()  # 25 bits; half the width sorts twice as fast
    candidates.sort()
    candidates = candidates[::-1]
    if least:
        candidates = candidates[: candidates.size - int(candidates[::-1].searchsorted(least))]
    start = num_requests * floor
    tau = tau_along(candidates, num_requests * SCALE + (int(units[:, :floor].sum()) if floor else 0))
    return start + int((tau * inverse[start : start + tau.size]).argmax())
