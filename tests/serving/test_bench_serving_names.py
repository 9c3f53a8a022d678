"""Figures under bench_serving's names, key by key against SGLang's own functions on the same timeline (no server)."""

from __future__ import annotations

import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("sglang", reason="SGLang's benchmark is needed: extra `serve`")
sys.path.insert(0, str(Path(__file__).parents[1] / "simulator"))
from client_timeline import ClientOutput, watched  # noqa: E402
from simulated_worlds import setting_of, trace_of  # noqa: E402

from sglang_dspark.cost import load_profile  # noqa: E402
from sglang_dspark.policies import make_policy  # noqa: E402
from sglang_dspark.records.steady import STEADY_RATIO, steady_window  # noqa: E402
from simulator.engine.run import Assembly  # noqa: E402
from simulator.results.metrics import figures  # noqa: E402
from simulator.traces import Trace, example_trace, first_requests  # noqa: E402

pytestmark = [pytest.mark.engine, pytest.mark.short]

SLOS_MS = {"ttft": 60.0, "tpot": 4.0, "e2el": 900.0}
NAMED_OTHERWISE = {"total_input": "total_input_tokens", "total_output": "total_output_tokens"}
NOT_SIMULATED = {
    "total_input_text",
    "total_input_vision",
    "total_output_retokenized",
    "output_throughput_retokenized",
    "total_throughput_retokenized",
}
"""Of SGLang's keys: text against images, and lengths counted again by a tokenizer."""


class Tokenizer:
    """Counts a text's words, and the clients' texts are empty: nothing of it is compared."""

    def encode(self, text: str, add_special_tokens: bool = False) -> list[str]:
        return text.split()


def drawn_trace(seed: int, count: int, prompts: tuple[int, int], outputs: tuple[int, int]) -> Trace:
    rng = np.random.default_rng(seed)
    lengths = (rng.integers(*each, count).tolist() for each in (prompts, outputs))
    return trace_of(list(zip(*lengths, strict=True)))


def cases() -> dict[str, Any]:
    cost = load_profile("vllm-b300-dsv4-flash")
    tight = {"kv_tokens": 1_500, "max_running_requests": 12, "chunked_prefill_size": 512}
    drawn = drawn_trace(2, 150, (5, 100), (20, 800))
    may_stop = replace(drawn, max_tokens=drawn.output_length)  # SGLang promises such clients' memory twice
    return {
        "open": setting_of(first_requests(example_trace(), 250), cost),
        "closed": setting_of(drawn_trace(1, 300, (5, 900), (1, 200)), cost, concurrency=24),
        "retracting": setting_of(may_stop, cost, concurrency=20, **tight),
    }


@pytest.fixture(scope="module", params=["open", "closed", "retracting"])
def seen(request: pytest.FixtureRequest) -> tuple[Assembly, list[ClientOutput]]:
    run, outputs = watched(replace(cases()[request.param], slos_ms=SLOS_MS), make_policy("fixed:k=5"))
    if request.param == "retracting":
        assert run.recorder.retractions.sum() >= 5
    return run, outputs


def rows(trace: Trace) -> list[Any]:
    """SGLang's view of the prompts."""
    return [SimpleNamespace(prompt_len=n, text_prompt_len=n, vision_prompt_len=0) for n in trace.input_length.tolist()]


def test_every_shared_key_is_what_sglang_computes(seen: tuple[Assembly, list[ClientOutput]]) -> None:
    from sglang.benchmark.serving import calculate_metrics

    run, outputs = seen
    found = figures(run, SLOS_MS)
    metrics, _ = calculate_metrics(rows(run.trace), outputs, found["duration"], Tokenizer(), "sglang")
    theirs = asdict(metrics)
    compared = 0
    for key, value in theirs.items():
        if key in NOT_SIMULATED:
            continue
        assert found[NAMED_OTHERWISE.get(key, key)] == pytest.approx(value, rel=1e-6), key
        compared += 1
    assert compared >= 35


def test_goodput(seen: tuple[Assembly, list[ClientOutput]]) -> None:
    goodput = pytest.importorskip("sglang.benchmark.goodput", reason="SGLang 0.5.22's benchmark computes no goodput")
    calculate_goodput = goodput.calculate_goodput

    run, outputs = seen
    found = figures(run, SLOS_MS)
    theirs = calculate_goodput(outputs, SLOS_MS, found["duration"])
    assert 0 < theirs.slo_attainment < 1, "limits that some meet and some do not"
    assert found["request_goodput"] == pytest.approx(theirs.request_goodput)
    assert found["slo_attainment"] == pytest.approx(theirs.slo_attainment)
    for key, share in theirs.slo_attainment_by_metric.items():
        assert found[f"slo_attainment.{key}"] == pytest.approx(share), key


def on_a_grid(seconds: Any) -> Any:
    """Rounded to 2^-20 s, so that sums are exact."""
    return np.round(np.asarray(seconds) * 2**20) / 2**20


def test_the_steady_window_is_sglangs_less_the_start_burst() -> None:
    from sglang.benchmark.steady_state import calculate_steady_state_metrics, find_steady_state_window

    run, outputs = watched(cases()["closed"], make_policy("fixed:k=5"))
    # SGLang adds latency to start time: an ulp before the next request's start would count as a moment with one less.
    for output in outputs:
        start, end = on_a_grid(output.start_time), on_a_grid(output.start_time + output.latency)
        output.start_time, output.latency = float(start), float(end - start)
    sent, first, finish = map(on_a_grid, (run.recorder.sent_s, run.recorder.first_token_s, run.recorder.finish_s))
    whole = steady_window(sent, sent, finish, 1)  # no burst to leave out
    theirs = find_steady_state_window(outputs, STEADY_RATIO)
    assert whole == pytest.approx((theirs.start, theirs.end))
    cut = steady_window(sent, first, finish, 24)
    assert cut == pytest.approx((first[:24].max(), theirs.end))
    found = figures(run)
    assert found["steady_window_s"] == pytest.approx(cut[1] - cut[0], abs=1e-5)
    # SGLang's own throughput, over its own window, is the burst's as well: ours counts the same tokens after it.
    burst = sum(
        1
        for output in outputs
        for at in output.start_time + output.ttft + np.cumsum([0.0, *output.itl])
        if theirs.start <= at < cut[0]
    )
    metrics = calculate_steady_state_metrics(outputs, Tokenizer(), STEADY_RATIO)
    ours = found["steady_output_throughput"] * found["steady_window_s"]
    assert ours == pytest.approx(metrics.total_output - burst, rel=1e-3)
