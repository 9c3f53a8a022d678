"""Figures against what clients would have noted, computed with plain NumPy over every single token."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from client_timeline import ClientOutput, watched
from hypothesis import given, settings
from simulated_worlds import flat_cost, setting_of, settings_to_try, trace_of

from sglang_dspark.cost import load_profile
from sglang_dspark.policies import make_policy
from simulator.engine.run import Setting
from simulator.results.metrics import figures
from simulator.traces import load_trace

CASES = Path(__file__).parent / "cases"
KINDS = {"mean": np.mean, "median": np.median, "std": np.std} | {
    f"p{share}": lambda values, share=share: np.percentile(values, share) for share in (90, 95, 99)
}


def noted(outputs: list[ClientOutput]) -> dict[str, list[float]]:
    """Every value of every request, by bench_serving's name."""
    served = [output for output in outputs if output.success]
    return {
        "itl": [gap for output in served for gap in output.itl],
        "ttft": [output.ttft for output in served],
        "tpot": [(o.latency - o.ttft) / (o.output_len - 1) for o in served if o.output_len > 1],
        "e2e_latency": [output.latency for output in served],
    }


@settings(max_examples=60)
@given(settings_to_try())
def test_every_gap_counts_once_whatever_happened_in_between(setting: Setting) -> None:
    run, outputs = watched(setting, make_policy("fixed:k=2" if setting.drafter.gamma > 1 else "fixed:k=1"))
    found, served = figures(run), [output for output in outputs if output.success]
    for name, values in noted(outputs).items():
        for kind, compute in KINDS.items():
            expected = 1e3 * compute(values) if values else 0.0
            assert found[f"{kind}_{name}_ms"] == pytest.approx(expected, rel=1e-9, abs=1e-9), (kind, name)
    assert sum(len(output.itl) for output in served) == sum(output.output_len - 1 for output in served)
    tokens = sum(output.output_len for output in served)
    assert found["output_throughput"] * found["duration"] == pytest.approx(tokens)
    assert found["accept_length"] <= setting.drafter.gamma + 1


def test_retraction_leaves_no_gap_out() -> None:
    """A retracted request waits for memory and a prefill of half a second: its client waits as long for a token."""
    rng = np.random.default_rng(0)
    lengths = [(int(rng.integers(5, 100)), int(rng.integers(20, 800))) for _ in range(60)]
    trace = trace_of(lengths)
    trace = replace(trace, max_tokens=trace.output_length)  # clients that may stop early: memory is promised twice
    setting = setting_of(trace, flat_cost(prefill_s=0.5), kv_tokens=1500, max_running_requests=12, concurrency=20)
    run, outputs = watched(setting, make_policy("fixed:k=7"))
    retracted = np.flatnonzero(run.recorder.retractions)
    assert retracted.size > 0
    for request in retracted:
        assert max(outputs[request].itl) > 0.5
    longest = max(gap for output in outputs for gap in output.itl)
    assert figures(run)["max_itl_ms"] == pytest.approx(1e3 * longest)


def test_the_published_cases() -> None:
    """Three small traces of reports to other projects: mean ITL beside TPOT, percentiles between two ranks."""
    cost, found = load_profile("vllm-b300-dsv4-flash"), {}
    for name in ("itl", "two_requests", "ten_requests"):
        setting = setting_of(load_trace(CASES / f"{name}.jsonl"), cost)
        found[name] = figures(watched(setting, make_policy("fixed:k=7"))[0])
    assert found["itl"]["mean_itl_ms"] == pytest.approx(found["itl"]["mean_tpot_ms"], rel=0.02)
    assert found["two_requests"]["median_ttft_ms"] == pytest.approx(40.78, abs=0.01)
    assert found["ten_requests"]["p99_ttft_ms"] == pytest.approx(60.92, abs=0.01)
