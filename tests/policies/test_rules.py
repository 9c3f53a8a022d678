"""What each rule decides, against its definition written out."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_dspark.errors import InputError
from sglang_dspark.policies import (
    SCALE,
    Argmax,
    ArgmaxLive,
    Fixed,
    Goodput,
    Guard,
    Hull,
    KnownBlock,
    LiveBlock,
    Lookahead,
    NoDraft,
    Oracle,
    Outcome,
    Past,
    Policy,
    Schedule,
    SurvivalRing,
    Tetris,
    Threshold,
)
from sglang_dspark.policies.drawing import Case, random_case

SEEDS = st.integers(0, 2**32 - 1)


def draw_case(policy: Policy, seed: int, requests: int | None = None, gamma: int | None = None) -> Case:
    rng = np.random.default_rng(seed)
    case = random_case(policy, rng, requests or int(rng.integers(1, 12)), gamma or int(rng.integers(1, 8)))
    return dataclasses.replace(case, caps=None)


def taus(units: np.ndarray) -> np.ndarray:
    """tau by admitted count on survivals [R, gamma], in units."""
    return len(units) * SCALE + np.concatenate([[0], np.cumsum(np.sort(units, axis=None)[::-1])])


@given(SEEDS, st.sampled_from([1, 2, 3]), st.sampled_from(["one", "prior"]))
def test_argmax_is_the_best_count_on_lagged_survivals(seed: int, lag: int, cold: str) -> None:
    policy = Argmax(lag=lag, cold=cold)
    case = draw_case(policy, seed)
    units, published = case.lagged[lag - 1]
    believed = units.copy()
    if cold == "prior":
        believed[~published] = case.carry
    theta = taus(believed) * case.past(policy).prices.inverse
    assert policy.budget(case.past(policy)) == int(np.argmax(theta))


def test_the_running_prior_moves_by_a_sixteenth() -> None:
    policy = Argmax(cold="prior")
    outcome = Outcome(np.array([[0, 0], [SCALE, 0]]), np.array([2, 2]), np.array([0, 0]))
    carry = policy.learn(policy.start(2), outcome)
    assert carry.tolist() == [SCALE - SCALE // 32, SCALE - SCALE // 16]
    empty = Outcome(np.empty((0, 2), dtype=np.int64), np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64))
    assert policy.learn(carry, empty).tolist() == carry.tolist()


@given(SEEDS)
def test_argmax_live_is_the_best_count_on_live_survivals(seed: int) -> None:
    case = draw_case(ArgmaxLive(), seed)
    past, live = case.past(ArgmaxLive()), case.live()
    theta = taus(live.units) * past.prices.inverse
    assert ArgmaxLive().decide(past, live).total == int(np.argmax(theta))


@given(SEEDS)
def test_oracle_verifies_no_token_that_fails(seed: int) -> None:
    rng = np.random.default_rng(seed)
    case = draw_case(Oracle(), seed)
    requests, gamma = case.confidence.shape
    depth = rng.integers(0, gamma + 1, size=requests)
    past = case.past(Oracle())
    decision = Oracle().decide(past, KnownBlock(case.units, case.confidence, 0, depth))
    assert (decision.lengths <= depth).all()
    theta = (requests + np.arange(depth.sum() + 1)) * past.prices.inverse[: depth.sum() + 1]
    assert theta[decision.total] == pytest.approx(theta.max())


@given(SEEDS, st.integers(1, 60))
def test_tetris_never_exceeds_its_capacity(seed: int, capacity: int) -> None:
    policy = Tetris(capacity=capacity)
    case = draw_case(policy, seed)
    requests, gamma = case.confidence.shape
    total = policy.decide(case.past(policy), case.live()).total
    assert requests + total == min(max(capacity, requests), requests * (1 + gamma))


@pytest.mark.parametrize(("requests", "k"), [(1, 4), (3, 4), (4, 2), (6, 2), (7, 1), (40, 1)])
def test_schedule_goes_by_batch_size(requests: int, k: int) -> None:
    policy = Schedule(upto=(3, 6), k=(4, 2, 1))
    case = draw_case(policy, 0, requests, 5)
    assert policy.budget(case.past(policy)) == requests * k


@given(SEEDS, st.floats(0.0, 0.99))
def test_goodput_maximises_expected_tokens_a_second(seed: int, rate: float) -> None:
    policy = Goodput()
    case = draw_case(policy, seed)
    requests, gamma = case.confidence.shape
    past = case.past(policy)
    past = Past(requests, gamma, past.prices, None, (rate * 100.0, 100.0))
    theta = [sum(rate**i for i in range(k + 1)) / past.prices.seconds[requests * k] for k in range(gamma + 1)]
    assert theta[policy.budget(past) // requests] == pytest.approx(max(theta))
    assert policy.budget(past) % requests == 0


def test_goodput_counts_the_first_rejected_token_as_tried_and_no_further() -> None:
    """Lengths 3, 3, 0 with 3, 1, 0 accepted: tried are 3, 2 (the second failed), 0."""
    policy = Goodput(window=2, prior=0.5)
    assert policy.start(3) == (5.0, 10.0)
    outcome = Outcome(np.zeros((3, 3), dtype=np.int64), np.array([3, 3, 0]), np.array([3, 1, 0]))
    assert policy.learn((5.0, 10.0), outcome) == (2.5 + 4, 5.0 + 5)


@given(SEEDS, st.floats(0.0, 1.0), st.sampled_from(["confidence", "survival"]))
def test_threshold_stops_before_the_first_that_is_below(seed: int, t: float, on: str) -> None:
    policy = Threshold(t=t, on=on)
    case = draw_case(policy, seed)
    lengths = policy.decide(case.past(policy), case.live()).lengths
    for row, units, length in zip(case.confidence, case.units, lengths, strict=True):
        passes = row >= np.float32(t) if on == "confidence" else units >= np.ceil(t * SCALE)
        expected = next((j for j, good in enumerate(passes) if not good), len(row))
        assert length == expected


def test_a_threshold_of_one_verifies_saturated_tokens_and_of_zero_all() -> None:
    live = LiveBlock.of(np.array([[1.0, 1.0, 0.5], [0.99, 1.0, 1.0]], dtype=np.float32))
    past = draw_case(Threshold(), 0, 2, 3).past(Threshold())
    assert Threshold(t=1.0).decide(past, live).lengths.tolist() == [2, 0]
    assert Threshold(t=0.0).decide(past, live).lengths.tolist() == [3, 3]


@given(SEEDS)
def test_lookahead_goes_on_while_a_bound_on_what_follows_pays(seed: int) -> None:
    """The definition looks at every m inside the graphs, the rule only at the tops of tiers."""
    policy = Lookahead()
    case = draw_case(policy, seed)
    past, ordered = case.past(policy), np.sort(case.units, axis=None)[::-1]
    inverse, last = past.prices.inverse, past.prices.last_captured
    admitted, tau = 0, past.num_requests * SCALE
    while admitted < ordered.size:
        survival = int(ordered[admitted])
        ahead = range(admitted + 1, last + 1)
        reach = max(((tau + (m - admitted) * survival) * inverse[m] for m in ahead), default=0.0)
        if not reach > tau * inverse[admitted]:
            break
        admitted, tau = admitted + 1, tau + survival
    assert policy.decide(past, case.live()).total == admitted


def test_fixed_and_none() -> None:
    case = draw_case(Fixed(), 0, 3, 5)
    assert Fixed(k=2).decide(case.past(Fixed()), case.live()).lengths.tolist() == [2, 2, 2]
    assert NoDraft().decide(case.past(NoDraft()), case.live()).lengths.tolist() == [0, 0, 0]
    assert Fixed(k=0).drafts and not NoDraft().drafts


@given(SEEDS, st.floats(-0.3, 0.3))
def test_guard_goes_by_what_the_lagged_block_predicts(seed: int, min_gain: float) -> None:
    policy = Guard(inner=Hull(), baseline=Fixed(k=1), min_gain=min_gain, lag=1)
    case = draw_case(policy, seed)
    past = case.past(policy)
    units, _ = case.lagged[0]
    requests, gamma = units.shape

    def theta(branch: Policy) -> float:
        lengths = branch.decide(past, LiveBlock(units)).lengths
        tau = requests * SCALE + sum(int(units[r, :length].sum()) for r, length in enumerate(lengths.tolist()))
        return tau * past.prices.inverse[int(lengths.sum())]

    chosen = policy.inner if theta(policy.inner) >= (1 + min_gain) * theta(policy.baseline) else policy.baseline
    expected = chosen.decide(past, case.live())
    assert np.array_equal(policy.decide(past, case.live()).lengths, expected.lengths)


@given(SEEDS)
def test_guard_never_reads_the_live_block_to_choose(seed: int) -> None:
    policy = Guard(inner=Hull(), baseline=Fixed(k=1), min_gain=0.0, lag=1)
    case = draw_case(policy, seed)
    branch = policy.parts[policy.choose(case.past(policy))]
    for other in range(3):
        live = draw_case(policy, seed + other + 1, *case.confidence.shape).live()
        expected = branch.decide(case.past(policy), live)
        assert np.array_equal(policy.decide(case.past(policy), live).lengths, expected.lengths)


def test_guard_carries_the_state_of_both_branches() -> None:
    policy = Guard(inner=Argmax(cold="prior"), baseline=Goodput(), min_gain=0.0)
    assert policy.learns and policy.max_lag == 2
    outcome = Outcome(np.full((1, 3), SCALE // 2), np.array([3]), np.array([2]))
    inner, baseline = policy.learn(policy.start(3), outcome)
    assert inner.tolist() == Argmax(cold="prior").learn(Argmax(cold="prior").start(3), outcome).tolist()
    assert baseline == Goodput().learn(Goodput().start(3), outcome)


def test_guard_needs_lossless_branches_that_draft() -> None:
    with pytest.raises(InputError, match="'oracle' is not lossless"):
        Guard(inner=Oracle())
    with pytest.raises(InputError, match="'none' has no drafter"):
        Guard(baseline=NoDraft())


def test_without_a_past_every_request_counts_as_survival_1() -> None:
    prices = draw_case(Argmax(), 3, 4, 5).past(Argmax()).prices
    units, published = Past(4, 5, prices).survival(2)
    assert (units == SCALE).all() and not published.any()
    ring = SurvivalRing(4, 5, 2)
    units, published = ring.look(np.arange(4), np.ones(4, dtype=np.int64), 2)
    assert (units == SCALE).all() and not published.any()
