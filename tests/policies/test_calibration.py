"""Online calibration: what it learns, that it only learns from the past, and that every form applies it alike."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_dspark.errors import InputError
from sglang_dspark.policies import (
    SCALE,
    Argmax,
    Foresight,
    Hull,
    LiveBlock,
    Outcome,
    make_policy,
    policy_from_json,
    policy_to_json,
    policy_to_string,
    single_part,
    survival_units,
)
from sglang_dspark.policies import calibration as cal
from sglang_dspark.policies.drawing import random_case

NUMBERS = st.tuples(st.floats(0.2, 5.0), st.floats(-4.0, 4.0))


def outcomes(rng: np.random.Generator, steps: int, slope: float, shift: float, length: int = 7) -> list[Outcome]:
    """Steps of 32 requests whose reported confidences c obey logit(true) = slope * logit(c) + shift."""
    found = []
    for _ in range(steps):
        reported = rng.beta(4.0, 1.5, size=(32, 7)).astype(np.float32)
        true = 1.0 / (1.0 + np.exp(-(slope * np.log(reported / (1 - reported)) + shift)))
        depth = np.logical_and.accumulate(rng.random((32, 7)) < true, axis=1).sum(axis=1)
        lengths = np.full(32, length)
        found.append(Outcome(survival_units(reported), lengths, np.minimum(lengths, depth)))
    return found


@pytest.mark.parametrize(("slope", "shift"), [(1.0, 0.0), (1.0, -1.0), (2.0, 0.0), (0.5, 0.5)])
@pytest.mark.parametrize("length", [7, 3])
def test_it_finds_the_two_numbers_within_500_steps(slope: float, shift: float, length: int) -> None:
    """Whole blocks or trimmed ones: what is censored does not bend it."""
    state = cal.START
    for outcome in outcomes(np.random.default_rng(0), 500, slope, shift, length):
        state = cal.followed(state, outcome)
    assert state[0] == pytest.approx(slope, abs=0.12) and state[1] == pytest.approx(shift, abs=0.12)


def test_it_follows_a_drift() -> None:
    """The bias turns from +1 to -1 halfway: 500 steps later the old half is forgotten."""
    state, rng = cal.START, np.random.default_rng(1)
    for outcome in outcomes(rng, 500, 1.0, 1.0):
        state = cal.followed(state, outcome)
    assert state[1] == pytest.approx(1.0, abs=0.15)
    behind = []
    for outcome in outcomes(rng, 500, 1.0, -1.0):
        state = cal.followed(state, outcome)
        behind.append(abs(state[1] + 1.0))
    assert behind[0] > 1.5 and behind[-1] < 0.15 and behind[200] < behind[50] < behind[0]


def test_steps_without_a_verified_token_teach_nothing() -> None:
    nothing = Outcome(np.full((3, 4), SCALE // 2), np.zeros(3, dtype=np.int64), np.zeros(3, dtype=np.int64))
    assert cal.followed(cal.START, nothing) == cal.START
    empty = Outcome(np.zeros((0, 4), dtype=np.int64), np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))
    assert cal.followed(cal.START, empty) == cal.START
    assert cal.correction(cal.START) is None


@given(NUMBERS)
def test_a_correction_keeps_order_and_ends(numbers: tuple[float, float]) -> None:
    table = cal.table(*numbers)
    assert table[0] == 0.0 and (np.diff(table) >= 0).all() and (table <= 1).all()
    confidence = np.linspace(0, 1, 500, dtype=np.float32)[:, None]
    corrected = cal.corrected_block(LiveBlock.of(confidence), numbers).confidence
    assert corrected is not None and (np.diff(corrected[:, 0]) >= 0).all() and corrected[0, 0] == 0.0
    exact = 1 / (1 + np.exp(-(numbers[0] * np.log(0.3 / 0.7) + numbers[1])))
    one = cal.corrected_block(LiveBlock.of(np.array([[0.3]], dtype=np.float32)), numbers).confidence
    assert one is not None and one[0, 0] == pytest.approx(exact, abs=5e-3)


@given(st.integers(0, 2**32), NUMBERS)
def test_lagged_survivals_are_corrected_as_live_ones_are(seed: int, numbers: tuple[float, float]) -> None:
    confidence = np.random.default_rng(seed).beta(6, 1.2, (5, 7)).astype(np.float32)
    live = cal.corrected_block(LiveBlock.of(confidence), numbers).units
    lagged = cal.corrected_units(survival_units(confidence), numbers)
    # A conditional comes back from two rounded survivals: it may fall into the next bin, where they are small.
    assert np.abs(live - lagged).max() <= 0.02 * SCALE


def test_it_is_a_parameter_of_any_scheduling_rule() -> None:
    policy = make_policy("hull:cap=5,calibrate=online")
    assert policy.lossless and policy.live and policy.learns and policy.reads_confidence and policy.kind == "stopping"
    assert policy_to_string(policy) == "hull:cap=5,calibrate=online"
    assert make_policy(policy_to_string(policy)) == policy == policy_from_json(policy_to_json(policy))
    assert make_policy("hull:calibrate=none") == Hull()
    with pytest.raises(InputError, match="calibrate=online is refused, it looks at no confidence"):
        make_policy("fixed:k=3,calibrate=online")
    with pytest.raises(InputError, match="calibrate=often is refused, expected one of none, online"):
        make_policy("hull:calibrate=often")


def test_self_tuning_is_argmax_or_foresight_by_the_schedule() -> None:
    policy = make_policy("self-tuning")
    assert not policy.live and policy.for_schedule(False) == make_policy("self-tuning:rule=argmax")
    synchronous = policy.for_schedule(True)
    assert synchronous.live and synchronous.for_schedule(False) == synchronous
    for chosen, rule in ((policy, Argmax), (synchronous, Foresight)):
        case = random_case(chosen, np.random.default_rng(0), 4, 5)
        found, past, numbers = single_part(chosen, case.past(chosen))
        assert isinstance(found, rule) and past.num_requests == 4
        assert (numbers is None) == (case.carry[0][1][0][:2] == (1.0, 0.0))


@given(st.integers(0, 2**32))
def test_foresight_s_walk_is_inside_the_graphs_and_at_a_top_or_the_end(seed: int) -> None:
    policy = Foresight(lag=1)
    rng = np.random.default_rng(seed)
    case = random_case(policy, rng, int(rng.integers(1, 40)), int(rng.integers(1, 8)))
    past = case.past(policy)
    total = policy.decide(past, case.live()).total
    most = past.totals(0, past.gamma)[1]
    assert total <= max(past.prices.last_captured, 0)
    assert total in (0, most) or total in past.prices.tier_tops
