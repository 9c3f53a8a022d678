"""What a step says of its policy's beliefs, and how it shows: counters, calibration, Prometheus."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra `serve`")

from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from sglang_dspark.policies.calibration import corrected_block  # noqa: E402
from sglang_dspark.policies.state import LiveBlock  # noqa: E402
from sglang_dspark.serving.base.steps import BatchView, SamplingView, StepDecision, StepRecord  # noqa: E402
from sglang_dspark.serving.control.acceptance import verified_of  # noqa: E402
from sglang_dspark.serving.feedback.counters import Counters  # noqa: E402
from sglang_dspark.serving.feedback.figures import WINDOW, CalibrationMeter, figures_of  # noqa: E402


def record(confidence, lengths, accepted, *, tier: int = 0, step_s: float | None = 0.01, **more) -> StepRecord:
    rows = len(lengths)
    zeros, ones = np.zeros(rows, np.float32), np.ones(rows, np.float32)
    return StepRecord(
        step=0,
        forward=0,
        began_s=0.0,
        rids=[str(row) for row in range(rows)],
        batch=BatchView(np.arange(rows), np.ones(rows, dtype=np.int64)),
        prefix_lengths=np.zeros(rows, np.int64),
        sampling=SamplingView(zeros, ones, np.ones(rows, np.int64)),
        policy="hull",
        carry=None,
        since_step=0,
        decision=StepDecision("policy", int(np.sum(lengths)), predicted_s=0.02),
        lagged={},
        prefill_before=False,
        executed_tier=tier,
        step_s=step_s,
        everything_s=0.04,
        decide_s=1e-4,
        confidence=np.asarray(confidence, np.float32),
        lengths=np.asarray(lengths, np.int64),
        accepted=np.asarray(accepted, np.int64),
        **more,
    )


def test_a_worked_step() -> None:
    found = figures_of(record([[0.5, 0.5, 1.0], [1.0, 0.25, 0.0]], [2, 1], [1, 1], tier=8))
    assert found.verified.tolist() == [2, 1, 0] and found.accepted.tolist() == [2, 0, 0]
    assert found.expected.tolist() == [1.5, 0.25, 0.0] and found.block_expected == pytest.approx(0.5 + 0.5 + 1.25)
    assert found.certain == 3
    # Tried: both first tokens, and the second of the first request, which was rejected.
    assert found.outcomes.sum(axis=1).tolist() == [3.0, 2.0, 2.0]


def test_counters_add_steps_up_and_a_switch_begins_prices_anew() -> None:
    counters = Counters()
    for _ in range(2):
        counters.on_step(record([[0.5, 0.5]], [2], [1], tier=8))
    assert (counters.executed_tokens, counters.verified_tokens, counters.position_verified) == (16, 4, [2, 2])
    assert counters.expected_tokens == pytest.approx(1.5) and counters.timed_executed == 16
    assert (counters.priced_tokens, counters.priced_s) == (pytest.approx(3.5), pytest.approx(0.04))
    assert counters.priced_everything_s == pytest.approx(0.08)
    counters.on_switch("hull", 2)
    assert counters.priced_tokens == 0 == counters.priced_everything_s and counters.decode_steps == 2


@given(st.integers(1, 5), st.integers(1, 7), st.data())
def test_positions_add_up(rows: int, gamma: int, data) -> None:
    cells = st.lists(st.floats(0, 1, width=32), min_size=rows * gamma, max_size=rows * gamma)
    confidence = np.array(data.draw(cells), np.float32).reshape(rows, gamma)
    lengths = np.array(data.draw(st.lists(st.integers(0, gamma), min_size=rows, max_size=rows)))
    accepted = np.array([data.draw(st.integers(0, int(most))) for most in lengths])
    numbers = data.draw(st.sampled_from([None, (0.8, -0.3)]))
    found = figures_of(record(confidence, lengths, accepted, correction=numbers))
    assert found.verified.sum() == lengths.sum() and found.accepted.sum() == accepted.sum()
    assert (found.expected <= found.verified).all() and (found.accepted <= found.verified).all()
    units = corrected_block(LiveBlock.of(confidence), numbers).units
    assert found.block_expected == pytest.approx(units.sum() / 2**24)
    assert found.outcomes[0].sum() == accepted.sum() + (accepted < lengths).sum()


def test_confidences_that_mean_what_they_say_have_no_error_and_boasting_ones_do() -> None:
    rng = np.random.default_rng(0)
    for boast, low, high in ((1.0, 0.0, 0.02), (1.5, 0.1, 0.3)):
        meter = CalibrationMeter()
        while meter.error is None:
            truth = rng.uniform(0.2, 0.6, size=(64, 1))
            said = np.minimum(truth * boast, 1.0)
            accepted = (rng.random((64, 1)) < truth).sum(axis=1)
            meter.add(figures_of(record(said, np.ones(64), accepted)).outcomes)
        assert low <= meter.error < high and meter.outcomes >= WINDOW
        assert meter.bias == pytest.approx((boast - 1.0) * 0.4, abs=0.02)
        assert meter.so_far()["error"] == meter.error


def test_prometheus_shows_what_was_counted() -> None:
    client = pytest.importorskip("prometheus_client")
    from sglang_dspark.serving.feedback.metrics import PrometheusObserver

    observer, counters = PrometheusObserver({"model_name": "m", "dp_rank": 3}), Counters()
    for accepted in (1, 2, 0):
        step = record([[0.9, 0.5], [1.0, 0.1]], [2, 1], [accepted, 1], tier=16)
        observer.on_step(step)
        counters.on_step(step)
    observer.count_fault("kernel markov")
    observer.settle()

    def value(name: str, **more: str) -> float | None:
        labels = {"model_name": "m", "dp_rank": "3", **more}
        return client.REGISTRY.get_sample_value(f"sglang:dspark_{name}", labels)

    for name in ("verified", "accepted", "expected", "executed", "drafted"):
        assert value(f"{name}_tokens_total") == pytest.approx(getattr(counters, f"{name}_tokens"))
    for position in (1, 2):
        assert (
            value("position_verified_tokens_total", position=str(position)) == counters.position_verified[position - 1]
        )
        assert (
            value("position_accepted_tokens_total", position=str(position)) == counters.position_accepted[position - 1]
        )
    assert value("budget_tokens_sum") == 9 and value("tier_tokens_count") == 3 and value("step_seconds_count") == 3
    assert value("tier_tokens_bucket", le="8.0") == 0 and value("tier_tokens_bucket", le="16.0") == 3
    assert value("faults_total", part="kernel markov") == 1 and value("faults_total", part="decision") == 0
    assert value("policy_info", policy="hull") == 1 and np.isnan(value("calibration_error"))
    assert value("decision_seconds_sum") == pytest.approx(3e-4)
    step.policy = "fixed:k=3"
    observer.on_step(step)
    assert (value("policy_info", policy="hull"), value("policy_info", policy="fixed:k=3")) == (0, 1)


def test_what_a_response_adds() -> None:
    """Verify lengths by histogram, anchor included; a step without an entry verified its whole block."""
    meta = {"spec_verify_ct": 10, "spec_num_proposed_drafts": 70, "spec_num_correct_drafts": 12}
    assert verified_of({**meta, "spec_cap_lens_histogram": [0, 4, 0, 4]}) == {
        "spec_num_verified_drafts": 8 + 14,
        "spec_verified_accept_rate": 12 / 22,
    }
    assert verified_of(meta)["spec_num_verified_drafts"] == 70
    assert verified_of({**meta, "spec_num_correct_drafts": 0, "spec_cap_lens_histogram": [0, 10]}) == {
        "spec_num_verified_drafts": 0
    }
    assert verified_of({}) == {}
