"""Step costs fitted from records give back the costs that the records were made with."""

import dataclasses

import numpy as np
import pytest
from synthetic_records import synthetic_steps

from sglang_dspark.cost import keys_of
from sglang_dspark.errors import InputError
from sglang_dspark.records.fit import StepTimes, fit_step_cost, fit_times


def times(count=4000, seed=0, noise=0.0, tiers=None, most=16):
    """T = 5 ms + 0.3 ms R + staircase(B) + 1 us a context token."""
    rng = np.random.default_rng(seed)
    out = StepTimes(tiers=tiers)
    for _ in range(count):
        requests = int(rng.integers(1, most + 1))
        tokens = requests + int(rng.integers(0, requests * 7 + 1))
        context = float(rng.integers(100, 2000) * requests)
        if tiers is not None:
            tokens = int(tiers[np.searchsorted(tiers, tokens)])
        seconds = true_seconds(requests, tokens, context)
        out.note(requests, tokens, context, seconds * float(np.exp(noise * rng.standard_normal())))
    return out


def true_seconds(requests, tokens, context):
    return 0.005 + 0.0003 * requests + 0.0002 * max(tokens - 32, 0) + 1e-6 * context


@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_the_costs_come_back(noise):
    fitted = fit_times(times(noise=noise))
    scale = np.exp(noise**2 / 2)  # means of log-normal noise
    for requests, tokens, context in [(1, 8, 500), (8, 40, 8000), (16, 128, 16000), (12, 60, 5000)]:
        cost = fitted.cost
        seconds = cost.draft_s(requests, context) + float(cost.verify_s(requests, tokens, context))
        assert seconds == pytest.approx(scale * true_seconds(requests, tokens, context), rel=0.03)
    assert fitted.steps == 4000 and fitted.left_out == 0


@pytest.mark.parametrize("surcharge", [0.0, 0.002])
def test_what_adaptivity_costs_comes_back(surcharge):
    """Half of the steps ran under a policy that reads confidences, at the same sizes, and took 2 ms more."""
    mixed, rng = StepTimes(), np.random.default_rng(1)
    plain = times(noise=0.05)
    for row in zip(plain.requests, plain.tokens, plain.context, plain.seconds, strict=True):
        adaptive = bool(rng.random() < 0.5)
        mixed.note(*row[:3], row[3] + surcharge * adaptive, adaptive=adaptive)
    cost = fit_times(mixed).cost
    assert cost.terms["adaptive_s"] == pytest.approx(surcharge, abs=2e-4)
    assert "adaptive_s" not in keys_of(cost.assumptions)
    assert "adaptive_s" in keys_of(fit_times(plain).cost.assumptions), "one kind alone tells nothing"


def test_other_batch_sizes_do_not_tell_what_adaptivity_costs():
    """Fixed at 8 requests, adaptive at 16: what lies between may be either's."""
    apart, plain = StepTimes(), times()
    for row in zip(plain.requests, plain.tokens, plain.context, plain.seconds, strict=True):
        if row[0] in (8, 16):
            for _ in range(4):
                apart.note(*row, adaptive=row[0] == 16)
    assert "adaptive_s" in keys_of(fit_times(apart).cost.assumptions)


def test_executed_tiers_are_priced():
    tiers = np.array([8, 16, 32, 64, 128])
    cost = fit_times(times(tiers=tiers)).cost
    assert cost.captured.tolist() == tiers.tolist()
    assert float(cost.verify_s(4, 17)) == float(cost.verify_s(4, 32)) < float(cost.verify_s(4, 65))


def test_loads_left_out_are_predicted_from_low_and_high():
    """Fit on 1..4 and 12..16 requests, predict 8."""
    whole, part = times(noise=0.1), StepTimes()
    for row in zip(whole.requests, whole.tokens, whole.context, whole.seconds, strict=True):
        if row[0] <= 4 or row[0] >= 12:
            part.note(*row)
    cost = fit_times(part).cost
    seconds = cost.draft_s(8, 8000.0) + float(cost.verify_s(8, 40, 8000.0))
    assert seconds == pytest.approx(np.exp(0.005) * true_seconds(8, 40, 8000.0), rel=0.03)


def test_hiccups_are_left_out():
    data = times()
    data.seconds[7] = 100.0
    fitted = fit_times(data)
    assert fitted.left_out == 1 and fitted.error < 0.01


def test_curves_go_on_beyond_the_data():
    cost = fit_times(times()).cost
    assert float(cost.verify_s(16, 256)) > float(cost.verify_s(16, 128)) * 1.3
    assert cost.draft_s(64) > 2 * cost.draft_s(16)
    assert "beyond_probes" in keys_of(cost.assumptions)
    assert cost.measured_requests == (1, 16) and cost.measured_tokens[1] == 128, "the line beyond is no measurement"
    assert not cost.beyond_probes(16, 128) and cost.beyond_probes(17, 100) and cost.beyond_probes(16, 129)


def test_prefills_are_fitted():
    data, rng = times(), np.random.default_rng(1)
    data.prefill_tokens = rng.integers(1, 2000, size=300).tolist()
    data.prefill_s = [0.004 + 2e-5 * tokens for tokens in data.prefill_tokens]
    cost = fit_times(data).cost
    assert cost.prefill_s(1000) == pytest.approx(0.024, rel=0.01)


def test_recorded_steps_are_taken(tmp_path):
    fitted = fit_step_cost(synthetic_steps(steps=400))
    step = next(synthetic_steps(steps=1))
    expected = step.step_s
    got = fitted.cost.draft_s(step.num_requests) + float(fitted.cost.verify_s(step.num_requests, step.graph_tokens))
    assert got == pytest.approx(expected, rel=0.05)


def test_too_little_is_refused():
    with pytest.raises(InputError, match="199 timed decode steps"):
        fit_times(times(count=199))
    same = times(count=300)
    same.tokens = [8] * 300
    with pytest.raises(InputError, match="all timed steps verify 8 tokens"):
        fit_times(same)


def test_the_model_is_a_step_cost():
    """It prices decisions and travels in records."""
    from sglang_dspark.records.costs import cost_from_plain, cost_to_plain, table_hash

    cost = fit_times(times()).cost
    other = cost_from_plain(cost_to_plain(cost))
    assert table_hash(other) == table_hash(cost) and other.measured_tokens == cost.measured_tokens
    prices = dataclasses.replace(cost).prices(8, 7, 8000.0)
    assert (prices.inverse > 0).all() and (np.diff(prices.seconds) >= 0).all()
