"""What adaptivity costs, and what attention costs by width: charged to whom it concerns, and where verdicts flip."""

from __future__ import annotations

import numpy as np
import pytest
from simulated_worlds import finished, flat_cost, setting_of, trace_of

from sglang_dspark.cost import load_profile
from sglang_dspark.policies import make_policy
from simulator import simulate
from simulator.engine.model import EngineModel
from simulator.inputs import Load
from simulator.results.run import run_once
from simulator.results.surcharge import dearer
from simulator.traces import example_trace, first_requests

PROFILE = "vllm-b300-dsv4-flash"


def test_only_policies_that_read_confidences_pay() -> None:
    trace = trace_of([(5, 60)] * 20)
    for text, pays in (
        ("fixed:k=3", False),
        ("none", False),
        ("hull", True),
        ("argmax:lag=2", True),
        ("threshold", True),
    ):
        setting = setting_of(trace, flat_cost(host_s=0.0), concurrency=4)
        plain, dear = (run_once(each, make_policy(text))[0]["duration"] for each in (setting, dearer(setting, 0.003)))
        steps = run_once(setting, make_policy(text))[0]["decode_steps"]
        assert dear - plain == pytest.approx(0.003 * steps if pays else 0.0, abs=1e-9), text


def test_the_surcharge_that_is_printed_makes_both_even() -> None:
    trace = first_requests(example_trace(), 300)
    first = simulate(Load(trace, concurrency=40), PROFILE, ["fixed:k=7", "hull"], replications=1, jobs=1)
    found = first.surcharge
    assert found is not None and found.flips_s is not None and found.assumed_s == 0
    assert f"{1e3 * found.flips_s:.3g} ms a step" in str(found)
    cost = load_profile(PROFILE).with_terms(adaptive_s=found.flips_s)
    again = simulate(Load(trace, concurrency=40), cost, ["fixed:k=7", "hull"], replications=1, jobs=1)
    assert abs(again.results[1].difference["steady_output_throughput"].mean) < 0.004
    assert abs(first.results[1].difference["steady_output_throughput"].mean) > 0.01


def test_no_surcharge_where_adaptive_policies_are_behind_or_alone() -> None:
    trace = trace_of([(5, 60)] * 60)
    free = flat_cost(0.0, 0.01, 0.01)  # every token for nothing: verifying all cannot be beaten
    behind = simulate(Load(trace, concurrency=4), free, ["fixed:k=7", "threshold:t=0.9"], replications=1, jobs=1)
    assert behind.surcharge is not None and behind.surcharge.flips_s is None
    alone = simulate(Load(trace, concurrency=4), free, ["hull", "threshold:t=0.9"], replications=1, jobs=1)
    assert alone.surcharge is None


def test_attention_by_width_is_that_of_each_request() -> None:
    """A wide block of a long context costs more than the same tokens spread evenly, and prices know the mean."""
    slope = 1e-6
    cost = flat_cost(width_context_s=slope)
    setting = setting_of(trace_of([(1000, 40), (10, 40)]), cost, gamma=4)
    policy = make_policy("fixed")
    server = setting.server(policy)
    model = EngineModel(setting.engine, policy, cost, cost, None, "overlapped", server)  # type: ignore[arg-type]
    lengths, contexts = np.array([4, 0]), np.array([1000, 10])
    exact = slope * 4 * 1000
    priced = float(cost.verify_s(2, 2 + 4, 1010.0)) - float(cost.verify_s(2, 2, 1010.0))
    assert priced == pytest.approx(slope * 4 * 505)
    assert priced + model.width_context_s(lengths, contexts) == pytest.approx(exact)
    assert model.width_context_s(lengths[::-1].copy(), contexts) == pytest.approx(slope * 4 * 10 - priced)


@pytest.mark.parametrize("text", ["fixed:k=4", "hull"])
def test_a_step_of_long_contexts_takes_its_attention(text: str) -> None:
    slope = 1e-6
    plain, wide = flat_cost(prefill_s=0.0), flat_cost(prefill_s=0.0, width_context_s=slope)
    lengths: list[tuple[int, int]] = []
    for cost in (plain, wide):
        setting = setting_of(trace_of([(2000, 30)]), cost, gamma=4, schedule="no-overlap")
        run, steps = finished(setting, make_policy(text if cost is wide else "fixed:k=4"))
        lengths.append((run.recorder.decode_steps, run.recorder.verified_tokens))
        seconds = [step.seconds for step in steps if step.kind == "decode"]
        widths = [step.tokens - 1 for step in steps if step.kind == "decode"]
        base = 0.01
        for taken, width in zip(seconds, widths, strict=True):
            most = base + (slope * width * 2030 if cost is wide else 0.0)
            least = base + (slope * width * 2000 if cost is wide else 0.0)
            assert least - 1e-9 <= taken <= most + 1e-9


def test_the_hull_is_convex_and_below_where_tokens_cost_inside_a_tier_too() -> None:
    prices = load_profile(PROFILE).with_terms(width_context_s=2e-8).prices(8, 7, 8 * 4000.0)
    cost = np.maximum.accumulate(prices.seconds[: prices.last_captured + 1])
    hull = 1.0 / prices.hull_inverse
    assert np.all(hull <= cost + 1e-12) and np.all(np.diff(hull, 2) >= -1e-12)
    touched = np.flatnonzero(np.isclose(hull, cost, rtol=0, atol=1e-12))
    best = np.argmin(cost - np.linspace(cost[0], cost[-1], cost.size))
    assert best in touched, "a supporting line touches the hull where it touches the cost"
