"""What is decided where a rule raises or a confidence is no probability, and that none of it leaks."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_dspark.audit import enumeration
from sglang_dspark.audit.exact import TOLERANCE, audit_exactly
from sglang_dspark.audit.world import Shape
from sglang_dspark.policies import (
    SCALE,
    BudgetRule,
    LengthRule,
    LiveBlock,
    Outcome,
    Past,
    Policy,
    StoppingRule,
    StopTables,
    TableStop,
    learned,
    make_policy,
    started,
    survival_units,
)
from sglang_dspark.policies.classes import one_by_one
from sglang_dspark.policies.drawing import Case, random_case, random_outcome

OWN = "sglang_dspark.policies.classes.stopping"


@dataclass(frozen=True)
class Budget(BudgetRule):
    """Raises where the past says so."""

    name: ClassVar[str] = "raising-budget"

    @property
    def max_lag(self) -> int:
        return 1

    def budget(self, past: Past) -> int:
        units, _ = past.survival(1)
        return int(1 // int(units.sum() > SCALE))


@dataclass(frozen=True)
class NotInteger(BudgetRule):
    """Answers half a token."""

    name: ClassVar[str] = "not-an-integer"

    def budget(self, past: Past) -> int:
        return 0.5  # type: ignore[return-value]


@dataclass(frozen=True)
class Stop(StoppingRule):
    """Raises at a candidate of little survival."""

    name: ClassVar[str] = "raising-stop"

    def admits(self, past: Past, admitted: int, tau: int, survival: int) -> bool:
        if survival < SCALE // 2:
            raise ValueError(f"survival\n{survival}")
        return True

    def extend(self, past: Past, admitted: int) -> int:
        return admitted + 1 // (admitted % 2)


@dataclass(frozen=True)
class ArrayStop(Stop):
    """Its array form raises when any rank, a later one too, has little survival."""

    __module__ = OWN
    name: ClassVar[str] = "raising-array"

    def walk(self, past: Past, tables: Any, admitted: int, tau: int, survivals: np.ndarray) -> int:
        if survivals.size and survivals.min() < SCALE // 2:
            raise IndexError("beyond")
        return admitted + survivals.size


@dataclass(frozen=True)
class Tables(TableStop):
    """Cannot make its tables for a batch that nobody waits behind; they end too early otherwise."""

    name: ClassVar[str] = "raising-tables"

    def tables(self, past: Past) -> StopTables:
        if not past.waiting:
            raise KeyError("empty queue")
        return StopTables(past.prices.inverse, np.zeros(1, dtype=np.int64))


@dataclass(frozen=True)
class Length(LengthRule):
    """Raises at a confidence that is low."""

    name: ClassVar[str] = "raising-length"

    def admits(self, past: Past, position: int, confidence: np.ndarray) -> bool:
        return bool(1 // int(confidence[-1] > 0.5))


@dataclass(frozen=True)
class Learner(BudgetRule):
    """Raises where it learns of a step with much survival."""

    name: ClassVar[str] = "raising-learner"
    learns: ClassVar[bool] = True

    def start(self, gamma: int) -> int:
        return 1

    def learn(self, carry: int, outcome: Outcome) -> int:
        if outcome.survival.sum() * 2 > outcome.survival.size * SCALE:
            raise RuntimeError
        return carry + 1

    def budget(self, past: Past) -> int:
        return int(past.carry)


@dataclass(frozen=True)
class NoStart(Learner):
    """Has no state to start from."""

    name: ClassVar[str] = "raising-start"

    def start(self, gamma: int) -> int:
        raise MemoryError("no room")


RAISING: tuple[Policy, ...] = (
    Budget(),
    NotInteger(),
    Stop(),
    Stop(floor=1),
    ArrayStop(),
    Tables(),
    Length(),
    Learner(),
    NoStart(),
)


@pytest.mark.parametrize("policy", RAISING, ids=lambda policy: policy.name)
def test_no_fallback_leaks(policy: Policy) -> None:
    verdict = audit_exactly([policy], Shape(2, 2, 2, 4), instances=40)[0]
    assert policy.lossless and verdict.worst_tv <= TOLERANCE


@pytest.mark.parametrize("text", ["hull", "early-stop", "threshold", "threshold:on=survival,t=0.3", "argmax:lag=1"])
def test_confidences_that_are_no_probabilities_do_not_leak(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """NaN, infinite, negative and above 1, where the confidence of the world was low."""
    bad = iter([np.nan, np.inf, -np.inf, -0.5, 1.5] * 100_000)
    make = enumeration.LiveBlock.of

    def of(confidence: np.ndarray) -> LiveBlock:
        spoilt = confidence.copy()
        low = spoilt < 0.35
        spoilt[low] = [next(bad) for _ in range(int(low.sum()))]
        block = make(spoilt)
        assert block.invalid == low.sum()
        return block

    monkeypatch.setattr(enumeration.LiveBlock, "of", of)
    assert audit_exactly([make_policy(text)], Shape(2, 2, 2, 4), instances=40)[0].worst_tv <= TOLERANCE


@pytest.mark.parametrize("text", ["hull", "early-stop:floor=1", "lookahead", "argmax:lag=1", "threshold", "fixed:k=2"])
def test_caps_of_requests_do_not_leak(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def capped(count: int, *rest: Any) -> Past:
        return Past(count, *rest, caps=np.array([1, 2], dtype=np.int64)[:count])

    monkeypatch.setattr(enumeration, "Past", capped)
    assert audit_exactly([make_policy(text)], Shape(2, 2, 2, 4), instances=40)[0].worst_tv <= TOLERANCE


def drawn(policy: Policy, seed: int, **changed: Any) -> Case:
    case = random_case(policy, np.random.default_rng(seed), 4, 3)
    return dataclasses.replace(case, caps=None, **changed)


def test_raised_before_the_draft_verifies_everything_that_the_bounds_allow() -> None:
    policy = NotInteger(cap=2)
    case = drawn(policy, 0)
    plan = policy.plan(case.past(policy))
    assert plan is not None and (plan.budget, plan.cap) == (8, 2)
    assert plan.fault == "budget raised TypeError: 'float' object cannot be interpreted as an integer"
    decision = Tables().decide(dataclasses.replace(case.past(policy), waiting=0), case.live())
    assert decision.lengths.tolist() == [3] * 4 and decision.fault == "tables raised KeyError: 'empty queue'"


@given(st.integers(0, 2**32), st.sampled_from([Stop(), ArrayStop()]))
def test_raised_at_a_rank_is_a_decline_there(seed: int, policy: Stop) -> None:
    case = drawn(policy, seed)
    decision = policy.decide(case.past(policy), case.live())
    admitted = int((case.units >= SCALE // 2).sum())
    assert decision.total == (admitted if admitted % 2 == 0 else min(admitted + 1, 12))
    where = "extend" if admitted % 2 == 0 else "admits"  # what was raised last, and something always is
    assert decision.fault is not None and decision.fault.startswith(f"{where} raised") and "\n" not in decision.fault


@given(st.integers(0, 2**32))
def test_raised_at_a_position_ends_that_request_alone(seed: int) -> None:
    case = drawn(Length(), seed)
    decision = Length().decide(case.past(Length()), case.live())
    expected = np.logical_and.accumulate(case.confidence > 0.5, axis=1).sum(axis=1)
    assert np.array_equal(decision.lengths, expected)
    assert (decision.fault is None) == bool((expected == 3).all())


def test_a_learner_that_raises_keeps_what_it_carried() -> None:
    policy, rng = Learner(), np.random.default_rng(0)
    outcomes = [random_outcome(rng, 3, 3) for _ in range(50)]
    carry, faults = started(policy, 3)[0], 0
    for outcome in outcomes:
        much = outcome.survival.sum() * 2 > outcome.survival.size * SCALE
        after, fault = learned(policy, carry, outcome)
        assert (fault == "learn raised RuntimeError") is bool(much) and after == carry + (not much)
        carry, faults = after, faults + bool(much)
    assert 0 < faults < 50
    assert started(NoStart(), 3) == (None, "start raised MemoryError: no room")


@given(st.lists(st.floats(width=32, allow_nan=True), min_size=1, max_size=8))
def test_survival_is_zero_from_the_first_confidence_that_is_no_probability(row: list[float]) -> None:
    confidence = np.array([row], dtype=np.float32)
    bad = [j for j, value in enumerate(row) if not 0 <= value <= 1]
    units = survival_units(confidence)[0]
    good = len(row) if not bad else bad[0]
    assert np.array_equal(units[:good], survival_units(confidence[:, :good])[0]) and not units[good:].any()
    block = LiveBlock.of(confidence)
    assert block.invalid == len(bad) and block.confidence is not None
    assert ((block.confidence >= 0) & (block.confidence <= 1)).all()


def test_one_rank_at_a_time_says_what_was_raised() -> None:
    case = drawn(Stop(), 1)
    count, fault = one_by_one(Stop(), case.past(Stop()), 0, 4 * SCALE, np.array([SCALE, 1], dtype=np.int64))
    assert (count, fault) == (1, "admits raised ValueError: survival 1")
