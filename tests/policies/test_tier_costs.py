"""Costs learned online: what is learned, what a belief off by one factor keeps, and every form of the policy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_dspark.cost import StepPrices
from sglang_dspark.errors import InputError
from sglang_dspark.policies import (
    Argmax,
    Outcome,
    StepTiming,
    calibration_of,
    costs_of,
    make_policy,
    policy_from_json,
    policy_to_json,
    policy_to_string,
    single_part,
    timing_of,
)
from sglang_dspark.policies import tier_costs as tiers
from sglang_dspark.policies.drawing import random_case


def staircase(num_requests: int = 4, gamma: int = 7, step: int = 8) -> StepPrices:
    """Tiers of `step` tokens, all captured: 10 ms and 1 ms a tier."""
    tokens = num_requests + np.arange(num_requests * gamma + 1)
    top = -(-tokens // step) * step
    seconds = 0.010 + 0.001 * (top // step)
    return StepPrices(seconds, seconds.copy(), np.minimum(top - num_requests, tokens.size - 1), tokens.size - 1)


def after(timings: list[StepTiming], state: tiers.State = tiers.START) -> tiers.State:
    for timing in timings:
        state = tiers.followed(state, timing)
    return state


def test_a_tier_that_costs_more_than_believed_is_priced_so_and_the_others_keep_their_place() -> None:
    prices, rng = staircase(), np.random.default_rng(0)
    state = tiers.START
    for _ in range(200):
        admitted = int(rng.integers(0, 29))
        tokens = int(tiers.executed_tokens(prices, 4)[admitted])
        real = 1.25 * prices.step_s(admitted) * (1.10 if tokens == 16 else 1.0) * float(rng.lognormal(0, 0.02))
        state = tiers.followed(state, timing_of(prices, 4, admitted, real))
    found = tiers.corrected(prices, 4, tiers.corrections(state))
    ratio = found.seconds / prices.seconds
    relative = ratio / ratio[0]
    inside = tiers.executed_tokens(prices, 4) == 16
    assert relative[inside] == pytest.approx(1.10, abs=0.02) and relative[~inside] == pytest.approx(1.0, abs=0.02)
    assert (found.floor_inverse * ratio) == pytest.approx(prices.floor_inverse)


@given(st.floats(0.5, 2.0), st.integers(1, 12))
def test_one_factor_everywhere_moves_no_tier_far(factor: float, met: int) -> None:
    """A belief off as a whole ranks tiers rightly: the more tiers were met, the less is corrected."""
    timings = [StepTiming(8 * (1 + tier), 0.01, 0.01 * factor) for tier in range(met) for _ in range(60)]
    corrections = tiers.corrections(after(timings))
    moved = [abs(grains) / 128 for _, grains in corrections]
    assert max(moved, default=0.0) <= abs(np.log(factor)) * 0.1 / met + 0.01


def test_hiccups_are_no_price_and_old_tiers_are_forgotten() -> None:
    quiet = after([StepTiming(8, 0.01, 0.01)] * 60)
    ((_, mean, steps),) = tiers.followed(quiet, StepTiming(8, 0.01, 5.0))
    assert mean <= 0.7 / tiers.MEMORY and steps == tiers.MEMORY
    many = after([StepTiming(8 * tier, 0.01, 0.01) for tier in range(1, 101)])
    assert len(many) == tiers.TIERS and many[-1][0] == 800


@given(st.integers(1, 300), st.integers(1, 15))
def test_steps_without_a_graph_are_told_apart_by_eight_sizes_an_octave(num_requests: int, gamma: int) -> None:
    count = num_requests * gamma + 1
    seconds = 0.01 + 1e-5 * np.arange(count)
    prices = StepPrices(seconds, seconds.copy(), np.arange(count), -1)
    found, tokens = tiers.executed_tokens(prices, num_requests), num_requests + np.arange(count)
    assert (found >= tokens).all() and (found <= tokens * 9 / 8).all() and (np.diff(found) >= 0).all()
    assert np.unique(found).size <= 8 * (np.log2(1 + gamma) + 2)


def test_it_is_a_parameter_of_any_rule_that_compares_step_times() -> None:
    policy = make_policy("argmax:lag=1,calibrate=online,costs=online")
    assert policy.lossless and policy.learns and policy.reads_confidence and policy.kind == "budget"
    assert policy_to_string(policy) == "argmax:lag=1,calibrate=online,costs=online"
    assert make_policy("argmax:costs=online,lag=1,calibrate=online") == policy
    assert make_policy(policy_to_string(policy)) == policy == policy_from_json(policy_to_json(policy))
    assert not make_policy("hull:costs=online").reads_confidence
    for text in ("fixed:k=3,costs=online", "threshold:costs=online", "self-tuning:costs=online"):
        with pytest.raises(InputError, match="costs=online is refused, it compares no step times or learns them"):
            make_policy(text)
    with pytest.raises(InputError, match="costs=often is refused, expected one of none, online"):
        make_policy("hull:costs=often")


def test_it_decides_as_its_rule_does_on_the_corrected_prices() -> None:
    policy, rng = make_policy("argmax:lag=1,costs=online"), np.random.default_rng(0)
    moved = 0
    for _ in range(60):
        case = random_case(policy, rng, int(rng.integers(2, 12)), 5)
        past = case.past(policy)
        executed = tiers.executed_tokens(past.prices, past.num_requests)
        seconds = {int(tokens): float(rng.uniform(0.5, 1.5)) for tokens in np.unique(executed)}
        timings = [StepTiming(tokens, 1.0, ratio) for tokens, ratio in seconds.items() for _ in range(50)]
        carry = after(timings[-50 * tiers.TIERS :]), None
        rule, seen, _ = single_part(policy, past.carrying(carry))
        assert isinstance(rule, Argmax)
        total = policy.decide(past.carrying(carry), case.live()).total
        assert total == rule.decide(seen, case.live()).total
        moved += total != policy.decide(past, case.live()).total
    assert moved > 10


def test_what_was_learned_is_shown_whichever_way_it_is_wrapped() -> None:
    outcome = Outcome(np.zeros((1, 3), np.int64), np.zeros(1, np.int64), np.zeros(1, np.int64), StepTiming(8, 1.0, 2.0))
    for text in ("self-tuning", "argmax:lag=1,calibrate=online,costs=online", "hull:costs=online"):
        policy = make_policy(text)
        carry = policy.learn(policy.start(3), outcome)
        assert costs_of(policy, carry) == {8: pytest.approx(2.0)}
        assert (calibration_of(policy, carry) is None) == (text == "hull:costs=online")
    assert costs_of(make_policy("hull:calibrate=online"), make_policy("hull:calibrate=online").start(3)) is None
