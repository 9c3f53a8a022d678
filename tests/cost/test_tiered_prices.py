"""Prices are those of what is executed: the padded graph tier, the eager cliff, the context."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_dspark.cost import (
    MeasuredDraft,
    MeasuredVerify,
    SpsAdditiveCostTable,
    StepCost,
    Tiered,
    keys_of,
    model_from_table,
)
from sglang_dspark.cost.model import CONTEXT_STEP
from sglang_dspark.policies.drawing import random_cost

VERIFY = {1: 0.010, 4: 0.011, 8: 0.014, 16: 0.020}


def tiered(**changes: object) -> StepCost:
    """Graphs for 1, 4, 8, 16 tokens; eager from 17."""
    parts: dict[str, object] = {
        "draft": MeasuredDraft([1, 4], [0.001, 0.004]),
        "verify": MeasuredVerify(list(VERIFY), list(VERIFY.values())),
        "captured_tokens": [1, 4, 8, 16],
        "captured_requests": 4,
        "eager": MeasuredVerify([17, 33], [0.100, 0.132]),
        **changes,
    }
    return model_from_table(SpsAdditiveCostTable(0.01, [1], [0.0], [1, 16], [0.0, 0.01], tiered=Tiered(**parts)), "t")  # type: ignore[arg-type]


def test_a_count_costs_its_tier_and_the_draft() -> None:
    prices = tiered().prices(2, 7)  # B = 2..16
    draft = 0.002
    expected = [0.011] * 3 + [0.014] * 4 + [0.020] * 8
    assert prices.seconds == pytest.approx([draft + value for value in expected])
    assert prices.draft_s == pytest.approx(draft)
    assert prices.tier_top.tolist() == [2] * 3 + [6] * 4 + [14] * 8
    assert prices.tier_tops.tolist() == [2, 6, 14]
    assert prices.last_captured == 14


def test_past_the_last_captured_size_a_step_is_eager() -> None:
    prices = tiered().prices(4, 7)  # B = 4..32, captured up to 16
    assert prices.last_captured == 12
    assert prices.seconds[12] == pytest.approx(0.004 + 0.020)
    assert prices.seconds[13] == pytest.approx(0.004 + 0.100)
    assert prices.seconds[-1] == pytest.approx(0.004 + 0.100 + 0.032 * 15 / 16)
    assert prices.tier_top[12] == 12 and prices.tier_top[13] == 13  # the fill never enters the cliff
    assert prices.hull_inverse.size == 13


def test_a_batch_beyond_the_captured_sizes_has_no_hull() -> None:
    prices = tiered().prices(20, 1)
    assert prices.last_captured == -1 and prices.hull_inverse.size == 0 and prices.tier_tops.size == 0


def test_eager_can_be_forced_below_the_last_size() -> None:
    model = tiered()
    assert float(model.verify_s(1, 4)) == 0.011
    assert float(model.verify_s(1, 4, eager=True)) == 0.100  # clamped to the eager curve's first probe


def test_without_an_eager_curve_the_assumption_is_stated() -> None:
    model = tiered(eager=None)
    assert model.prices(4, 7).seconds[-1] == pytest.approx(0.004 + 0.020)
    assert "eager" in keys_of(model.assumptions) and "eager" not in keys_of(tiered().assumptions)


def test_sglang_prices_the_probe_below() -> None:
    """B = 15 executes the 16-token graph; a floor look-up of the same curve charges it as 8 tokens."""
    prices = tiered().prices(1, 14)
    assert prices.seconds[14] == pytest.approx(0.001 + 0.020)
    assert 1.0 / prices.floor_inverse[14] == pytest.approx(0.001 + 0.014)


def test_context_rows_are_interpolated_and_clamped() -> None:
    rows = [[0.010, 0.011, 0.014, 0.020], [0.012, 0.013, 0.018, 0.030]]
    model = tiered(verify=MeasuredVerify(list(VERIFY), rows, [1024, 3072]))  # type: ignore[arg-type]
    assert model.knows_context
    assert float(model.verify_s(2, 8, 2 * 1024)) == pytest.approx(0.014)
    assert float(model.verify_s(2, 8, 2 * 2048)) == pytest.approx(0.016)
    assert float(model.verify_s(2, 8, 2 * 9999)) == pytest.approx(0.018)
    assert float(model.verify_s(2, 8, 0)) == pytest.approx(0.014)
    assert model.prices(2, 3, 2 * 2048).seconds[6] == pytest.approx(0.002 + 0.016)


def test_context_terms_add_to_draft_and_verify() -> None:
    model = tiered().with_terms(context_token_s=1e-6, draft_context_token_s=2e-6)
    plain = tiered()
    assert float(model.verify_s(2, 4, 1000)) == pytest.approx(float(plain.verify_s(2, 4)) + 0.001)
    assert model.draft_s(2, 1000) == pytest.approx(plain.draft_s(2) + 0.002)
    near = model.prices(2, 3, 2 * (4 * CONTEXT_STEP + 3))
    assert near is model.prices(2, 3, 2 * 4 * CONTEXT_STEP)  # one price list a context step
    assert near.seconds == pytest.approx(plain.prices(2, 3).seconds + 3e-6 * 2 * 4 * CONTEXT_STEP)


def test_prefill_has_a_base_a_slope_and_attention() -> None:
    model = tiered().with_terms(prefill_base_s=0.01, prefill_token_s=1e-4, prefill_pair_s=1e-8)
    assert model.prefill_s(100, 0) == pytest.approx(0.01 + 0.01 + 1e-8 * 100 * 50)
    assert model.prefill_s(100, 1000) == pytest.approx(0.01 + 0.01 + 1e-8 * 100 * 1050)


@given(st.integers(0, 2**32 - 1))
def test_a_staircase_is_flat_inside_a_tier(seed: int) -> None:
    rng = np.random.default_rng(seed)
    requests, gamma = int(rng.integers(1, 20)), int(rng.integers(1, 8))
    prices = random_cost(rng, requests, gamma).prices(requests, gamma)
    counts = np.arange(requests * gamma + 1)
    assert (prices.tier_top >= counts).all()
    assert np.array_equal(prices.tier_top[prices.tier_top], prices.tier_top)
    inside = counts <= prices.last_captured
    assert np.array_equal(prices.seconds[prices.tier_top][inside], prices.seconds[inside])
    assert (prices.tier_top[inside] <= prices.last_captured).all()
    assert (prices.tier_top[~inside] == counts[~inside]).all()


def test_models_travel_to_other_processes() -> None:
    model = tiered()
    copied = pickle.loads(pickle.dumps(model))
    assert np.array_equal(copied.prices(2, 7).seconds, model.prices(2, 7).seconds)
    assert model.prices(2, 7) is model.prices(2, 7)
