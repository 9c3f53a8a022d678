"""Which of policy, late, explore and forced decides a step, and what it decides."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
from serving_support import flat_cost

from sglang_dspark.policies import BudgetRule, Outcome, Past, allocate, make_policy, survival_units
from sglang_dspark.serving.base.options import Resolved
from sglang_dspark.serving.base.steps import BatchView
from sglang_dspark.serving.feedback.publishes import Publishes
from sglang_dspark.serving.loop.decider import Decider

GAMMA = 5


def decider(policy: str, schedule: str = "overlapped", explore: float = 0.0, shadow: str | None = None) -> Decider:
    chosen = make_policy(policy)
    other = None if shadow is None else make_policy(shadow)
    publishes = Publishes(16, GAMMA, 2 if schedule == "overlapped" else 1, waits=schedule != "overlapped")
    return Decider(Resolved(chosen, other, flat_cost(), schedule, explore), GAMMA, publishes)


def batch(num_requests: int, caps: list[int] | None = None) -> BatchView:
    limits = None if caps is None else np.array(caps, dtype=np.int64)
    return BatchView(np.arange(num_requests), np.ones(num_requests, dtype=np.int64), caps=limits)


def test_a_missing_publish_means_none_verify_all() -> None:
    decision = decider("argmax").before_draft(batch(4), late=True)
    assert decision is not None and decision.reason == "late" and decision.total is None
    assert decision.plan is None and decision.lengths is None


@pytest.mark.parametrize("policy", ["fixed:k=2", "schedule:upto=8,k=3/1", "tetris:capacity=9"])
def test_a_policy_without_a_past_is_never_late(policy: str) -> None:
    decision = decider(policy).before_draft(batch(4), late=True)
    assert decision is not None and decision.reason == "policy" and decision.total is not None


def test_a_live_policy_waits_for_the_draft() -> None:
    live = decider("hull", "synchronous")
    assert live.before_draft(batch(3), late=False) is None
    confidence = np.random.default_rng(0).random((3, GAMMA), dtype=np.float32)
    decision = live.after_draft(batch(3), confidence)
    assert decision.lengths is not None and int(decision.lengths.sum()) == decision.total
    assert decision.predicted_s is not None and decision.predicted_s > 0


def test_forced_share_overrides_the_policy() -> None:
    forced = decider("fixed:k=1")
    forced.forced_fraction = 0.5
    decision = forced.before_draft(batch(4), late=False)
    assert decision is not None and decision.reason == "forced" and decision.total == 10


def test_exploration_is_a_coin_of_the_step_alone() -> None:
    first, second = decider("fixed:k=1", explore=0.3), decider("argmax", explore=0.3)
    explored = []
    for step in range(2000):
        first.steps = second.steps = step
        one, other = first.before_draft(batch(4), late=False), second.before_draft(batch(2), late=False)
        assert one is not None and other is not None
        assert (one.reason == "explore") == (other.reason == "explore")
        explored.append(one.reason == "explore")
    assert 0.25 < np.mean(explored) < 0.35


def test_switching_starts_the_carried_state_afresh() -> None:
    switched = decider("goodput")
    switched.live.carry = (1.0, 100.0)
    switched.steps = 7
    switched.switch(make_policy("goodput"))
    assert switched.live.carry == (8.0, 10.0) and switched.live.since_step == 7


def test_the_shadow_decides_on_the_past_of_its_step() -> None:
    both = decider("fixed:k=1", shadow="hull")
    ticket = both.shadow_ticket(batch(3))
    assert ticket is not None
    confidence = np.random.default_rng(1).random((3, GAMMA), dtype=np.float32)
    shadow = ticket(confidence)
    assert shadow.lengths is not None
    assert np.array_equal(shadow.lengths, allocate(survival_units(confidence), int(shadow.total or 0)))


def test_a_request_s_cap_holds_whatever_decides() -> None:
    """fixed:k=3 under caps 0, 2 and none; a step that verifies everything; a live rule; a forced share."""
    capped = batch(3, [0, 2, GAMMA])
    planned = decider("fixed:k=3").before_draft(capped, late=False)
    assert planned is not None and planned.plan is not None and planned.total == 0 + 2 + 3
    late = decider("argmax").before_draft(capped, late=True)
    assert late is not None and (late.reason, late.total) == ("late", 0 + 2 + GAMMA)
    forced = decider("fixed:k=1")
    forced.forced_fraction = 1.0
    share = forced.before_draft(capped, late=False)
    assert share is not None and share.total == 0 + 2 + GAMMA
    live = decider("threshold:t=0.0", "synchronous").after_draft(capped, np.full((3, GAMMA), 0.9, dtype=np.float32))
    assert live.lengths is not None and live.lengths.tolist() == [0, 2, GAMMA]


@dataclass(frozen=True)
class Fragile(BudgetRule):
    """Divides by zero at three requests."""

    name: ClassVar[str] = "fragile"
    learns: ClassVar[bool] = True

    def learn(self, carry: Any, outcome: Outcome) -> Any:
        raise ValueError("cannot learn")

    def budget(self, past: Past) -> int:
        return 1 // (past.num_requests - 3)


def test_a_rule_that_raises_costs_its_step_the_plan_and_is_said_once() -> None:
    fragile = decider("fixed:k=3")
    fragile.live = fragile._slot(Fragile(), "overlapped")
    for num_requests in (4, 3, 3, 2):
        decision = fragile.before_draft(batch(num_requests), late=False)
        assert decision is not None and decision.reason == "policy"
        assert decision.total == {4: 1, 3: 3 * GAMMA, 2: 0}[num_requests]
    empty = np.zeros(0, dtype=np.int64)
    fragile.learn(Outcome(np.zeros((0, GAMMA), dtype=np.int64), empty, empty))
    (found,) = fragile.faults.as_list()
    assert found["what"] == "policy fragile" and found["count"] == 3
    assert found["first"] == "budget raised ZeroDivisionError: integer division or modulo by zero"


def test_a_rule_that_looks_at_prices_that_are_not_there_falls_back() -> None:
    """A rule may look at prices in some steps only, which the check at the start cannot know."""
    without = decider("fixed:k=3")
    without.cost = None
    without.live = without._slot(make_policy("argmax"), "overlapped")
    decision = without.before_draft(batch(2), late=False)
    assert decision is not None and decision.total == 2 * GAMMA and decision.fault is not None
