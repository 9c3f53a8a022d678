"""Small traces that once came out wrong, after public reports (cases/NOTES.md), and what is right."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sglang_dspark.errors import InputError
from simulator import Load, simulate
from simulator.traces import Trace, load_trace, trace_facts, write_trace

CASES = Path(__file__).parent / "cases"


def load_of(trace: Trace) -> tuple:
    """What a simulation takes from a trace without domains."""
    cached = None if trace.cached_length is None else trace.cached_length.tolist()
    return trace.arrival_s.tolist(), trace.input_length.tolist(), trace.output_length.tolist(), cached


def mean_ttft_ms(trace: Trace, **options) -> float:
    load = Load(trace, **options)
    runs = simulate(load, "vllm-b300-dsv4-flash", ["fixed:k=7"], replications=1, jobs=1)
    return runs.results[0].figures["mean_ttft_ms"]


def assumed(trace: Trace) -> str:
    return str(simulate(trace, "vllm-b300-dsv4-flash", ["fixed:k=7"], replications=1, jobs=1).assumptions)


@pytest.fixture(scope="module")
def two_files(tmp_path_factory) -> tuple[Path, Path]:
    """The same 300 rows with Mooncake's keys but stamps in seconds, and as Bailian writes them."""
    draws = np.random.default_rng(39795)
    stamps = np.round(0.072 + np.cumsum(draws.exponential(0.48, 300)), 3).tolist()
    lengths = draws.integers(40, 1200, (300, 2)).tolist()
    timed = [{"timestamp": t, "input_length": i, "output_length": o} for t, (i, o) in zip(stamps, lengths, strict=True)]
    folder = tmp_path_factory.mktemp("same")
    for name, ids in (("timed_seconds", {}), ("bailian_same", {"chat_id": 7, "parent_chat_id": -1})):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({**ids, **row}) + "\n" for row in timed))
    return folder / "timed_seconds.jsonl", folder / "bailian_same.jsonl"


def test_the_unit_of_stamps_can_be_said_and_an_odd_one_is_doubted(two_files):
    timed, bailian = two_files
    right = load_trace(bailian)
    assert load_of(load_trace(timed, time_unit="s")) == load_of(right)
    assert not any(note.startswith("warning") for note in right.notes)
    assert trace_facts(right) == (f"300 requests over {right.span_s:.0f} s: {299 / right.span_s:.2f} requests/s",)
    wrong = load_trace(timed)
    assert wrong.offered_rate == pytest.approx(1000 * right.offered_rate)
    (warning,) = [note for note in wrong.notes if note.startswith("warning: ")]
    assert "requests/s is implausible" in warning and "read as ms" in warning and "--time-unit s" in warning
    assert any(
        note.startswith("warning: ") for note in load_trace(timed, start_s=0.01, limit=50, rate_scale=1e-3).notes
    )


@pytest.fixture
def pulse_own(tmp_path) -> Path:
    """The rows of pulse.csv in our own format, version 1."""
    rows = [line.split(",") for line in (CASES / "pulse.csv").read_text().split()[1:]]
    lines: list[dict] = [{"format": "sglang-dspark-trace", "version": 1}]
    lines += [{"arrival_s": float(t), "input_length": int(i), "output_length": int(o)} for t, i, o in rows]
    path = tmp_path / "pulse_own.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_bursts_are_data_in_every_format(pulse_own):
    pulse, own = load_trace(CASES / "pulse.csv"), load_trace(pulse_own)
    assert load_of(pulse) == load_of(own)
    assert pulse.arrival_s.tolist() == np.repeat([0.0, 15.0, 30.0, 45.0, 60.0, 75.0], 50).tolist()
    for trace in (pulse, own):
        (note,) = [note for note in trace.notes if note.startswith("bursts: ")]
        assert "15.000 s" in note and "--jitter" in note
    assert mean_ttft_ms(pulse) == mean_ttft_ms(own) > 100  # 50 at once wait; spread over 15 s they would not
    spread = load_trace(CASES / "pulse.csv", jitter=True)
    assert load_of(spread) == load_of(load_trace(pulse_own, jitter=True))
    assert np.unique(spread.arrival_s).size == 300 and mean_ttft_ms(spread) < 30
    for path in (CASES / "pulse.csv", pulse_own):
        with pytest.raises(InputError, match="--no-jitter does nothing"):
            load_trace(path, jitter=False)


def test_cached_prompts_survive_the_file(tmp_path):
    lengths = np.full(40, 16000)
    cold = Trace(np.arange(40) * 0.05, lengths, np.full(40, 50))
    warm = replace(cold, cached_length=lengths - 100)
    write_trace(tmp_path / "with_cached.jsonl", warm)
    back = load_trace(tmp_path / "with_cached.jsonl")
    assert load_of(back) == load_of(warm)
    assert mean_ttft_ms(back) == mean_ttft_ms(warm) < mean_ttft_ms(cold) / 50
    assert "99.4% of the prompt tokens are in the prefix cache and not prefilled" in trace_facts(back)
    assert "share no prefix" not in assumed(back) and "share no prefix" in assumed(cold)


@pytest.mark.parametrize("format", [None, "burstgpt", "mooncake"])
def test_a_git_lfs_pointer_is_named(format):
    with pytest.raises(InputError, match="BurstGPT_2.csv is a Git LFS pointer, .* `git lfs pull`"):
        load_trace(CASES / "BurstGPT_2.csv", format=format)


def test_whole_floats_are_lengths(tmp_path):
    trace = load_trace(CASES / "mc_float.jsonl")
    assert load_of(trace) == ([0.0, 10.535], [655, 672], [52, 26], None)
    path = tmp_path / "mc_float.jsonl"
    path.write_text((CASES / "mc_float.jsonl").read_text().replace("672.0", "672.5"))
    with pytest.raises(
        InputError, match=r"line 2, column input_length: expected an integer 0 \.\. 2147483647, got '672"
    ):
        load_trace(path)


def test_lengths_alone_are_enough_without_arrivals():
    trace = load_trace(CASES / "servegen_stat.jsonl")
    assert not trace.stamped
    assert load_of(trace) == ([0.0, 0.0], [61, 54], [2370, 2031], None)
    assert trace_facts(trace) == ("2 requests without stamps",)
    assert mean_ttft_ms(trace, concurrency=1) > 0 and mean_ttft_ms(trace, request_rate=2.0) > 0
    with pytest.raises(InputError, match="servegen_stat.jsonl .* no stamps .* give --request-rate or --concurrency"):
        mean_ttft_ms(trace)
    with pytest.raises(InputError, match="no stamps"):
        simulate(CASES / "servegen_stat.jsonl", "vllm-b300-dsv4-flash", ["fixed:k=7"])


def test_azure_stamps_with_milliseconds_and_mixed_separators():
    trace = load_trace(CASES / "azure_ms.csv")
    assert trace.source == "azure_ms.csv (azure)"
    assert load_of(trace) == ([0.0, 0.001, 0.008, 0.01, 0.999], [100] * 5, [5] * 5, None)
