"""Every registered policy keeps the contract, and the contract suite finds policies that do not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from policy_strategies import policies

from sglang_dspark.audit.variants import default_policies
from sglang_dspark.jit import policy_loops
from sglang_dspark.policies import (
    POLICIES,
    SCALE,
    ArgmaxLive,
    BudgetRule,
    Decision,
    EarlyStop,
    Fixed,
    LengthRule,
    LengthTable,
    LiveBlock,
    Outcome,
    Past,
    Policy,
    StoppingRule,
    StopTables,
    TableLength,
    TableStop,
    Unrestricted,
)
from sglang_dspark.policies.contract import check_policy, check_stopping_rule
from sglang_dspark.policies.drawing import ContractViolation, random_cases

OWN = "sglang_dspark.policies.classes.length"
"""Where a class must say that it comes from to get past the seal: what is tested here is what finds it then."""
VARIANTS = [*default_policies(2, 2), *default_policies(8, 7), *(kind() for kind in POLICIES.values())]


@pytest.mark.parametrize("policy", dict.fromkeys(VARIANTS), ids=repr)
def test_a_registered_policy_keeps_the_contract(policy: Policy) -> None:
    check_policy(policy, cases=20)


@given(policies(), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_parameters_keep_the_contract(policy: Policy, seed: int) -> None:
    check_policy(policy, cases=3, seed=seed)


def test_the_registry_names_its_policies() -> None:
    assert all(name == policy.name for name, policy in POLICIES.items())
    assert {name for name, policy in POLICIES.items() if not policy().lossless} == {"oracle", "argmax-live"}


@dataclass(frozen=True)
class LeakyBudget(BudgetRule):
    """Overrides `decide` to set K from the live block."""

    __module__ = OWN
    name: ClassVar[str] = "leaky-budget"

    def budget(self, past: Past) -> int:
        return 0

    def decide(self, past: Past, live: LiveBlock) -> Decision:
        return ArgmaxLive().decide(past, live)


@dataclass(frozen=True)
class PeekingStop(EarlyStop):
    """Continues only if the survivals that are left sum to enough: it looks at later ranks."""

    __module__ = OWN
    name: ClassVar[str] = "peeking-stop"

    def walk(self, past: Past, tables: Any, admitted: int, tau: int, survivals: np.ndarray) -> int:
        return admitted + int((survivals.sum() > survivals.size * SCALE // 3) * (survivals.size > 0))


@dataclass(frozen=True)
class WrongWalk(EarlyStop):
    """An array form that goes one too far."""

    __module__ = OWN
    name: ClassVar[str] = "wrong-walk"

    def walk(self, past: Past, tables: Any, admitted: int, tau: int, survivals: np.ndarray) -> int:
        return min(super().walk(past, tables, admitted, tau, survivals) + 1, admitted + survivals.size)


@dataclass(frozen=True)
class DeepFirstStop(StoppingRule):
    """Breaks ties by the deeper position."""

    __module__ = OWN
    name: ClassVar[str] = "deep-first-stop"

    def admits(self, past: Past, admitted: int, tau: int, survival: int) -> bool:
        return admitted < 3

    def decide(self, past: Past, live: LiveBlock) -> Decision:
        requests, gamma = live.units.shape
        caps = np.full(requests, gamma) if past.caps is None else past.caps
        ranked = sorted((-int(live.units[r, j]), -j, r) for r in range(requests) for j in range(caps[r]))[:3]
        lengths = np.bincount(np.array([r for _, _, r in ranked], dtype=np.int64), minlength=requests)
        return Decision(lengths, len(ranked))


@dataclass(frozen=True)
class BatchLength(LengthRule):
    """A length that hangs on the other requests."""

    __module__ = OWN
    name: ClassVar[str] = "batch-length"

    def admits(self, past: Past, position: int, confidence: np.ndarray) -> bool:
        return bool(confidence[-1] > 0.5)

    def lengths(self, past: Past, tables: Any, live: LiveBlock) -> np.ndarray:
        passes = live.confidence > live.confidence.mean() if live.confidence.size else live.confidence > 0
        return np.logical_and.accumulate(passes, axis=1).sum(axis=1)


@dataclass(frozen=True)
class LastPosition(LengthRule):
    """A length that hangs on the last position, consistent with nothing that is asked position by position."""

    __module__ = OWN
    name: ClassVar[str] = "last-position"

    def admits(self, past: Past, position: int, confidence: np.ndarray) -> bool:
        return True

    def lengths(self, past: Past, tables: Any, live: LiveBlock) -> np.ndarray:
        return np.where(live.confidence[:, -1] > 0.5, past.gamma, 0).astype(np.int64)


@dataclass(frozen=True)
class Counts(Unrestricted):
    """Random: differs between two calls."""

    name: ClassVar[str] = "counts"
    calls: ClassVar[list[int]] = []

    def choose(self, past: Past, live: LiveBlock) -> np.ndarray:
        self.calls.append(1)
        return np.full(past.num_requests, len(self.calls) % 2)


@dataclass(frozen=True)
class Spoils(Unrestricted):
    """Writes into the block it was given."""

    name: ClassVar[str] = "spoils"

    def choose(self, past: Past, live: LiveBlock) -> np.ndarray:
        live.units[:] = 0
        return np.zeros(past.num_requests, dtype=np.int64)


@dataclass(frozen=True)
class SpoilsCarry(BudgetRule):
    """Learns in place."""

    name: ClassVar[str] = "spoils-carry"
    learns: ClassVar[bool] = True

    def start(self, gamma: int) -> Any:
        return np.zeros(1, dtype=np.int64)

    def learn(self, carry: Any, outcome: Outcome) -> Any:
        carry += 1
        return carry

    def budget(self, past: Past) -> int:
        return int(past.carry[0])


@dataclass(frozen=True)
class TooLong(Unrestricted):
    """Exceeds the block."""

    name: ClassVar[str] = "too-long"

    def choose(self, past: Past, live: LiveBlock) -> np.ndarray:
        return np.full(past.num_requests, past.gamma + 1)


@dataclass(frozen=True)
class OlderThanSaid(BudgetRule):
    """Asks for a lag that it did not announce."""

    name: ClassVar[str] = "older-than-said"

    def budget(self, past: Past) -> int:
        return int(past.survival(2)[0].sum() > 0)


@dataclass(frozen=True)
class WrongPlan(Fixed):
    """A plan that is not the decision."""

    __module__ = OWN
    name: ClassVar[str] = "wrong-plan"

    def plan(self, past: Past) -> Any:
        plan = super().plan(past)
        return type(plan)(plan.budget, 0, past.gamma)


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        (LeakyBudget(), "budget"),
        (PeekingStop(), "rank|walk"),
        (WrongWalk(), "walk"),
        (DeepFirstStop(), "admission order"),
        (BatchLength(), "admits one at a time"),
        (LastPosition(), "admits one at a time"),
        (Counts(), "same input differ"),
        (Spoils(), "live block was changed"),
        (SpoilsCarry(), "in place"),
        (TooLong(), "leave 0.."),
        (OlderThanSaid(), "asks for lag 2"),
        (WrongPlan(k=1), "plan"),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_a_broken_policy_is_found(policy: Policy, words: str) -> None:
    with pytest.raises(ContractViolation, match=words) as found:
        check_policy(policy, cases=100)
    assert policy.name in str(found.value)


def test_peeking_at_later_ranks_is_found_by_itself() -> None:
    rng = np.random.default_rng(0)
    policy = PeekingStop()
    with pytest.raises(AssertionError, match="after later survivals changed"):
        for case in random_cases(policy, rng, 100):
            check_stopping_rule(policy, case, rng)


def test_a_length_that_sees_other_requests_is_found_even_if_consistent() -> None:
    """The scalar form cannot see other requests; this rule smuggles the batch to it through a shared list."""

    @dataclass(frozen=True)
    class Hidden(LengthRule):
        __module__ = OWN
        name: ClassVar[str] = "hidden"
        batch: ClassVar[list[np.ndarray]] = []

        def admits(self, past: Past, position: int, confidence: np.ndarray) -> bool:
            return bool(confidence[-1] >= self.batch[-1].mean())

        def lengths(self, past: Past, tables: Any, live: LiveBlock) -> np.ndarray:
            self.batch.append(live.confidence)
            return LengthRule.lengths(self, past, tables, live)

    with pytest.raises(ContractViolation, match="later positions or other requests"):
        check_policy(Hidden(), cases=100)


def test_tables_of_other_types_are_numpy_s_and_nothing_is_compiled_for_them() -> None:
    """A server would wait for the compiler while requests run."""

    @dataclass(frozen=True)
    class Wide(TableLength):
        __module__ = OWN
        name: ClassVar[str] = "wide"

        def tables(self, past: Past) -> LengthTable:
            return LengthTable(np.full(past.gamma, 0.5), np.full(past.gamma, 1 << 20, dtype=np.int32))

    @dataclass(frozen=True)
    class Narrow(TableStop):
        __module__ = OWN
        name: ClassVar[str] = "narrow"

        def tables(self, past: Past) -> StopTables:
            return StopTables(past.prices.inverse.astype(np.float32))

    loops = policy_loops()
    compiled = loops.table_lengths, loops.first_decline
    check_policy(Fixed())
    before = [len(function.signatures) for function in compiled]
    check_policy(Wide())
    check_policy(Narrow())
    assert [len(function.signatures) for function in compiled] == before
