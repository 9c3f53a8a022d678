"""The Python call: same draws, same bytes, paired intervals, bench_serving's keys, timelines that Perfetto can read."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from command_line import PROFILE, call_alone
from hypothesis import given
from hypothesis import strategies as st
from simulated_worlds import flat_cost, setting_of, trace_of

import simulator
from sglang_dspark.errors import InputError
from sglang_dspark.policies import BudgetRule, Past, make_policy
from simulator import EngineSettings, simulate
from simulator.inputs import Engine, Load
from simulator.results.paired import paired
from simulator.results.report import json_lines
from simulator.results.run import run_once
from simulator.results.spread import spread_ms
from simulator.results.timeline import write_timeline
from simulator.traces import example_trace, first_requests

POLICIES = ["fixed:k=7", "hull", "argmax:lag=2"]
# sglang.bench_serving 0.5.23 (serving.py): what its JSON lines hold and a simulation can know.
BENCH_SERVING = {
    "backend",
    "dataset_name",
    "max_concurrency",
    "request_rate",
    "duration",
    "completed",
    "total_input_tokens",
    "total_output_tokens",
    "request_throughput",
    "input_throughput",
    "output_throughput",
    "total_throughput",
    "concurrency",
    "accept_length",
} | {
    f"{kind}_{figure}_ms"
    for figure in ("e2e_latency", "ttft", "tpot", "itl")
    for kind in ("mean", "median", "std", "p90", "p95", "p99")
}
OURS = {
    "policy",
    "lossless",
    "schedule",
    "tau",
    "draft_ms_per_step",
    "verify_ms_per_step",
    "latency_per_token_ms",
    "verified_tokens_per_step",
    "wasted_share",
    "difference",
    "difference_to",
    "replications",
}


@pytest.fixture(scope="module")
def trace() -> simulator.Trace:
    return first_requests(example_trace(), 60)


@pytest.fixture(scope="module")
def comparison(trace: simulator.Trace) -> simulator.Comparison:
    return simulate(Load(trace, concurrency=8), PROFILE, POLICIES, replications=3, jobs=1)


def test_two_calls_give_the_same_bytes_whatever_the_processes(
    trace: simulator.Trace, comparison: simulator.Comparison
) -> None:
    again = simulate(Load(trace, concurrency=8), PROFILE, POLICIES, replications=3, jobs=2)
    assert json_lines(again) == json_lines(comparison)
    alone = simulate(Load(trace, concurrency=8), PROFILE, POLICIES[1:2], replications=3, jobs=1)
    assert alone.results[0].replications == comparison.results[1].replications, "a policy's runs know no others"


def test_two_processes_write_the_same_files(tmp_path: Path) -> None:
    common = ("--trace", "example", "--profile", PROFILE, "--limit", "40", "--replications", "2", "--policy", "hull")
    for name, jobs in (("a", "1"), ("b", "2")):
        files = ("--output", str(tmp_path / f"{name}.jsonl"), "--timeline", str(tmp_path / f"{name}.json.gz"))
        assert call_alone(*common, *files, "--jobs", jobs).status == 0
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    assert (tmp_path / "a.json.gz").read_bytes() == (tmp_path / "b.json.gz").read_bytes()


def test_lines_have_the_keys_of_bench_serving_and_ours(comparison: simulator.Comparison) -> None:
    for line, policy in zip(json_lines(comparison).splitlines(), POLICIES, strict=True):
        record = json.loads(line)
        assert BENCH_SERVING | OURS <= set(record)
        assert record["policy"] == policy and record["difference_to"] == POLICIES[0]
        assert record["completed"] == 60 and isinstance(record["completed"], int)
        assert len(record["replications"]) == 3
        mean = np.mean([run["output_throughput"] for run in record["replications"]])
        assert record["output_throughput"] == pytest.approx(mean)
        for kind in ("e2e_latency", "ttft", "tpot", "itl"):
            assert record[f"median_{kind}_ms"] <= record[f"p90_{kind}_ms"] <= record[f"p99_{kind}_ms"]


def test_figures_agree_with_the_run_they_describe() -> None:
    setting = setting_of(trace_of([(5, 30), (9, 1), (5, 12)] * 5), concurrency=4)
    figures, recorder = run_once(setting, make_policy("fixed:k=3"))
    several = setting.trace.output_length > 1
    latency, first = recorder.finish_s - recorder.sent_s, recorder.first_token_s - recorder.sent_s
    tpot = ((latency - first) / np.maximum(setting.trace.output_length - 1, 1))[several]
    for name, values in (("e2e_latency", latency), ("ttft", first), ("tpot", tpot)):
        assert figures[f"mean_{name}_ms"] == pytest.approx(1e3 * values.mean())
        assert figures[f"std_{name}_ms"] == pytest.approx(1e3 * values.std())
    assert figures["total_output_tokens"] == setting.trace.output_length.sum()
    assert figures["accept_length"] == pytest.approx(recorder.committed_tokens / recorder.verify_steps.sum())
    per_token = (figures["draft_ms_per_step"] + figures["verify_ms_per_step"]) / figures["tau"]
    assert figures["latency_per_token_ms"] == pytest.approx(per_token)


@given(st.lists(st.tuples(st.floats(0, 10), st.integers(1, 9)), min_size=1, max_size=60))
def test_percentiles_are_numpy_s_of_the_repeated_values(pairs: list[tuple[float, int]]) -> None:
    values, counts = np.array([v for v, _ in pairs]), np.array([c for _, c in pairs])
    spread, repeated = spread_ms("x", values, counts), np.repeat(values, counts)
    assert spread["mean_x_ms"] == pytest.approx(1e3 * repeated.mean())
    assert spread["std_x_ms"] == pytest.approx(1e3 * repeated.std(), abs=1e-6)
    for kind, share in (("median", 50), ("p90", 90), ("p95", 95), ("p99", 99)):
        assert spread[f"{kind}_x_ms"] == pytest.approx(1e3 * np.percentile(repeated, share))


def test_intervals_are_student_s_on_paired_differences() -> None:
    from scipy import stats

    rng = np.random.default_rng(1)
    base = 100 + rng.random(5)
    values = base * 1.02 + 0.1 * rng.random(5)
    gap = paired(values.tolist(), base.tolist())
    ratio = values.mean() / base.mean()
    low, high = stats.t.interval(0.95, 4, loc=ratio - 1, scale=stats.sem(values - ratio * base) / base.mean())
    assert (gap.low, gap.high) == pytest.approx((low, high))
    assert gap.verdict == "higher"
    assert paired(base.tolist(), base.tolist()).verdict == "no difference"
    assert paired([1.0], [2.0]).verdict == "one replication"


def test_a_policy_of_one_s_own() -> None:
    @dataclass(frozen=True)
    class Twice(BudgetRule):
        """Two tokens a request."""

        name: ClassVar[str] = "twice"

        def budget(self, past: Past) -> int:
            return 2 * past.num_requests

    result = simulate(trace_of([(5, 50)] * 6), flat_cost(), [Twice(), "fixed:k=2"], replications=1, jobs=1)
    assert result.results[0].figures["verified_tokens_per_request_step"] == pytest.approx(3, abs=0.3)
    assert 1 < result.results[0].figures["accept_length"] <= 3


def test_a_script_without_a_main_guard_may_call_it(tmp_path: Path) -> None:
    """Workers must not run the caller's script again."""
    script = tmp_path / "compare.py"
    script.write_text(
        "from simulator import simulate\nprint('once')\n"
        f"result = simulate('example', '{PROFILE}', ['fixed:k=7', 'hull'], replications=1, jobs=2)\n"
        "print(len(result.results))\n"
    )
    root = str(Path(simulator.__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=120, env={"PYTHONPATH": root}
    )
    assert done.stdout.split() == ["once", "2"], done.stderr


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"policies": []}, "no policy is given"),
        ({"load": Load(first_requests(example_trace(), 9), concurrency=0)}, "concurrency=0"),
        ({"replications": 0}, "replications=0"),
        ({"jobs": 0}, "jobs=0"),
        ({"jobs": -1}, "jobs=-1"),
        (
            {"policies": ["hull"], "engine": Engine(PROFILE, settings=EngineSettings(schedule="overlapped"))},
            "expected schedule",
        ),
    ],
)
def test_calls_that_make_no_sense_are_refused(trace: simulator.Trace, change: dict[str, Any], says: str) -> None:
    arguments: dict[str, Any] = {"load": trace, "engine": PROFILE, "policies": ["none"], "jobs": 1, **change}
    with pytest.raises(InputError, match=says):
        simulate(**arguments)


@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("name", ["timeline.json", "timeline.json.gz"])
def test_timelines_are_well_formed(tmp_path: Path, replicas: int, name: str) -> None:
    setting = setting_of(
        trace_of([(50, 30)] * 12, [0.02 * n for n in range(12)]), replicas=replicas, max_running_requests=3
    )
    write_timeline(tmp_path / name, setting, [make_policy(text) for text in ("fixed:k=7", "argmax:lag=2")])
    data = (tmp_path / name).read_bytes()
    events = json.loads(gzip.decompress(data) if name.endswith(".gz") else data)["traceEvents"]
    assert {event["ph"] for event in events} == {"M", "X", "C"}
    assert [e["args"]["name"] for e in events if e["name"] == "process_name"] == ["fixed:k=7", "argmax:lag=2"]
    spans: dict[tuple[int, int], list[tuple[float, float]]] = {}
    for event in events:
        if event["ph"] == "X":
            assert event["dur"] >= 0 and event["ts"] >= -1e-3
            spans.setdefault((event["pid"], event["tid"]), []).append((event["ts"], event["ts"] + event["dur"]))
        if event["ph"] == "C":
            assert all(value >= 0 for value in event["args"].values())
    for lane, times in spans.items():
        times.sort()
        overlaps = [one[1] - two[0] for one, two in zip(times, times[1:], strict=False)]
        assert max(overlaps, default=0.0) < 1e-3, f"spans of one row overlap: {lane}"
    for process in (0, 1):
        kinds = [e for e in events if e["ph"] == "X" and e["pid"] == process]
        assert sum(e["cat"] == "request" for e in kinds) == 24
        assert {e["tid"] for e in kinds if e["cat"] != "request"} == set(range(replicas))
        assert any(e["name"].startswith("decode x") for e in kinds)
