"""The exact audit holds for every policy that claims to be lossless and finds every planted fault."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
import pytest
from planted_faults import PLANTED, CarriedSum, DeepFirst, LaggedLast

from sglang_dspark.audit.engine import DrawsByPosition, Engine
from sglang_dspark.audit.enumeration import Enumeration, LagAsked, total_variation
from sglang_dspark.audit.exact import TOLERANCE, audit_exactly
from sglang_dspark.audit.variants import default_policies
from sglang_dspark.audit.world import Shape, World, make_world
from sglang_dspark.errors import InputError
from sglang_dspark.policies import (
    POLICIES,
    SCALE,
    Argmax,
    BudgetRule,
    EarlyStop,
    Fixed,
    Hull,
    Past,
    Policy,
    Tetris,
    Threshold,
    make_policy,
)

SHAPE = Shape()
FOUND = 1e-3


def worst(policy: Policy, engine: Engine | None = None, shape: Shape = SHAPE, instances: int = 40) -> float:
    return audit_exactly([policy], shape, instances=instances, engine=engine)[0].worst_tv


def test_every_registered_policy_keeps_its_claim() -> None:
    policies = default_policies(SHAPE.requests, SHAPE.gamma)
    verdicts = audit_exactly(policies, SHAPE, instances=3, seed=3)
    assert {policy.name for policy in policies} == set(POLICIES)
    for verdict in verdicts:
        assert not verdict.fails, verdict
        assert bool(verdict.not_enumerated) == (verdict.policy == "oracle")
        assert verdict.worst_tv < 1e-12 or not verdict.claims_lossless


@pytest.mark.parametrize("shape", [Shape(1, 1, 2, 4), Shape(1, 3, 2, 4), Shape(2, 2, 3, 4), Shape(3, 1, 2, 4)], ids=str)
def test_other_sizes_hold_too(shape: Shape) -> None:
    policies = [Hull(), EarlyStop(), Argmax(lag=2), Threshold(t=0.6), Fixed(k=1)]
    for verdict in audit_exactly(policies, shape, instances=3):
        assert verdict.worst_tv < 1e-12, verdict


@pytest.mark.parametrize("policy", PLANTED, ids=lambda policy: policy.name)
def test_a_planted_policy_is_found(policy: Policy) -> None:
    verdict = audit_exactly([policy], SHAPE, instances=60)[0]
    assert verdict.fails
    assert verdict.worst_tv > FOUND
    assert 0 < verdict.biased < verdict.instances


def test_deep_first_is_only_visible_with_saturated_confidences(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without exact ones the deeper position never ties with the shallower one, and the same policy is harmless."""

    def unsaturated(shape: Shape, seed: int, index: int, *, post_token: bool = False) -> World:
        world = make_world(shape, seed, index, post_token=post_token)
        world.confidence = [
            [[min(value, 0.97) for value in nodes] for nodes in positions] for positions in world.confidence
        ]
        return world

    assert worst(DeepFirst(count=1)) > FOUND
    monkeypatch.setattr("sglang_dspark.audit.exact.make_world", unsaturated)
    assert worst(DeepFirst(count=1)) < TOLERANCE


def test_draws_reused_for_a_redrafted_position_are_found() -> None:
    """Survivals of a dropped position are no longer past information when its draw comes back."""
    shape = Shape(requests=1, gamma=3, steps=4)
    keyed = Engine(draws=DrawsByPosition())
    assert worst(LaggedLast(), keyed, shape) > FOUND
    assert worst(LaggedLast(), Engine(), shape) < TOLERANCE
    assert worst(Fixed(k=1), keyed, shape, 30) < TOLERANCE  # no decision depends on survivals: nothing to leak


def test_post_token_confidence_is_found() -> None:
    assert worst(Tetris(capacity=3), Engine(post_token=True), instances=15) > FOUND
    assert worst(Threshold(t=0.5), Engine(post_token=True), instances=15) > FOUND


def test_a_ring_that_shows_the_current_block_is_found() -> None:
    assert worst(Argmax(lag=1), Engine(ring_sees_current=True)) > FOUND
    assert worst(LaggedLast(lag=1), Engine(ring_sees_current=True)) > FOUND
    assert (
        worst(LaggedLast(lag=2), Engine(ring_sees_current=True)) < TOLERANCE
    )  # one publish too young is still the past


def test_learning_from_the_current_step_is_found() -> None:
    assert worst(CarriedSum(), Engine(learn_sees_current=True), instances=15) > FOUND
    assert worst(CarriedSum(), instances=15) < TOLERANCE


def test_parallel_processes_give_the_same_verdicts() -> None:
    def figures(jobs: int) -> list[dict[str, object]]:
        verdicts = audit_exactly([Hull(), Argmax(lag=1)], SHAPE, instances=7, seed=5, jobs=jobs)
        return [dataclasses.asdict(dataclasses.replace(verdict, seconds=0.0)) for verdict in verdicts]

    assert figures(1) == figures(2)


def test_progress_counts_every_enumeration() -> None:
    seen: list[tuple[int, int]] = []
    audit_exactly([Hull(), Fixed(k=1)], SHAPE, instances=7, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (14, 14)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


@dataclasses.dataclass(frozen=True)
class AsksOlder(BudgetRule):
    """Asks one publish back and, only where that was high, two back."""

    name: ClassVar[str] = "asks-older"

    @property
    def max_lag(self) -> int:
        return 2

    def budget(self, past: Past) -> int:
        units, _ = past.survival(1)
        return past.num_requests if units[0, -1] < SCALE else int(past.survival(2)[0].sum() % 3)


def test_a_lag_that_was_not_asked_for_before_is_not_missed() -> None:
    """Publishes at lags that a policy has not asked for are dropped from the states; asking later starts over."""
    for index in range(6):
        world = make_world(SHAPE, 0, index)
        full = Enumeration(AsksOlder(), world, Engine(), set(), None).law()
        with pytest.raises(LagAsked):
            Enumeration(AsksOlder(), world, Engine(), set(), frozenset({1})).law()
        asked = {1}
        assert total_variation(AsksOlder(), world, Engine(), asked) < TOLERANCE
        assert asked == {1, 2}
        again = Enumeration(AsksOlder(), world, Engine(), set(), frozenset({1, 2})).law()
        assert np.array_equal(full, again)


class TestWorlds:
    """What the enumeration relies on."""

    def test_laws_are_probabilities_and_outputs_have_the_requested_length(self) -> None:
        for index in range(5):
            world = make_world(SHAPE, 1, index)
            target = world.target_law()
            assert target.shape == tuple(2**length for length in world.lengths)
            assert abs(target.sum() - 1.0) < 1e-12
            for request in range(len(world.lengths)):
                for verified in range(SHAPE.gamma + 1):
                    law = world.outcome(request, 0, (0,), verified)
                    assert abs(sum(mass for _, _, mass in law) - 1.0) < 1e-12
                    assert all(0 <= accepted <= verified for _, accepted, _ in law)

    def test_what_the_worlds_contain(self) -> None:
        """Saturated confidences, ties, both schedules, both bonus modes, cliffs: each occurs among the first worlds."""
        worlds = [make_world(SHAPE, 0, index) for index in range(40)]
        assert {world.overlapped for world in worlds} == {True, False}
        assert {world.drafted_bonus for world in worlds} == {True, False}
        assert all(any(1.0 in nodes for rows in world.confidence for nodes in rows) for world in worlds)
        assert any(world.cost.eager is not None for world in worlds)
        assert any(world.cost.last_captured < SHAPE.requests * (1 + SHAPE.gamma) for world in worlds)
        assert all(len(set(np.ravel([rows[0] for rows in world.confidence]))) <= 3 for world in worlds)

    def test_survivals_come_from_the_real_arithmetic(self) -> None:
        world = make_world(SHAPE, 0, 0)
        row = world.row_of(0, 0, (1,))
        expected = round(float(np.float32(np.float32(world.rows[row][0]) * np.float32(world.rows[row][1]))) * SCALE)
        assert world.units[row][1] == expected

    def test_a_world_is_the_same_every_time(self) -> None:
        one, two = make_world(SHAPE, 9, 4), make_world(SHAPE, 9, 4)
        assert one.target == two.target and one.draft == two.draft and one.confidence == two.confidence


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"requests": 0}, "requests=0"),
        ({"gamma": 0}, "gamma=0"),
        ({"vocab": 1}, "vocab=1"),
        ({"steps": 99}, "steps=99"),
        ({"requests": 4, "vocab": 4, "steps": 8}, "joint outputs"),
    ],
)
def test_sizes_out_of_range_are_refused(change: dict[str, int], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Shape(**change)


def test_bad_requests_are_refused() -> None:
    with pytest.raises(InputError, match="expected at least 5"):
        audit_exactly([Argmax(lag=3)], SHAPE)
    with pytest.raises(InputError, match="k=7 exceeds"):
        audit_exactly([Fixed(k=7)], SHAPE)
    with pytest.raises(InputError, match="instances=0"):
        audit_exactly([Hull()], SHAPE, instances=0)
    with pytest.raises(InputError, match="jobs=0"):
        audit_exactly([Hull()], SHAPE, jobs=0)
    with pytest.raises(InputError, match="seed=-1"):
        audit_exactly([Hull()], SHAPE, seed=-1)


def test_the_audit_s_shapes_reach_every_chunk_of_an_array_form(monkeypatch: pytest.MonkeyPatch) -> None:
    """`lookahead` walks in chunks of 64 ranks, more than small worlds have: with chunks of one all is enumerated."""
    monkeypatch.setattr("sglang_dspark.policies.rules.stopping._CHUNK", 1)
    verdict = audit_exactly([make_policy("lookahead")], Shape(2, 2, 2, 4), instances=40)[0]
    assert verdict.worst_tv <= TOLERANCE
