"""What a comparison says: which window it looks at, when it must not judge, and what makes a gain doubtful."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import PROFILE, assert_one_line_error, call
from hypothesis import given
from hypothesis import strategies as st
from simulated_worlds import flat_cost, trace_of

from sglang_dspark.cost import load_profile
from sglang_dspark.errors import InputError
from sglang_dspark.records.steady import steady_window
from simulator import Comparison, EngineSettings, Trace, simulate
from simulator.inputs import Engine, Load
from simulator.results.goodput import SLO_KEYS, parse_slos
from simulator.results.paired import interval, paired
from simulator.results.verdict import overload_words, too_short, verdict
from simulator.traces import example_trace, first_requests, part_of

TABLES = Path(__file__).parents[1] / "cost" / "cases"
ONE = {"replications": 1, "jobs": 1}


def equal_requests(count: int, every_s: float = 0.0) -> Trace:
    return trace_of([(5, 50)] * count, [every_s * number for number in range(count)])


# --- closed loop -----------------------------------------------------------------------------------------------------


def test_a_short_closed_loop_has_no_verdict() -> None:
    short = simulate(Load(equal_requests(40), concurrency=10), flat_cost(), ["fixed:k=7", "fixed:k=1"], **ONE)
    sent = int(short.results[0].figures["steady_requests"])
    assert (
        sent < 50
        and f"{sent} requests" in verdict(short)
        and "expected at least 50 (5 x 10 in flight)" in verdict(short)
    )
    long = simulate(Load(equal_requests(80), concurrency=10), flat_cost(), ["fixed:k=7", "fixed:k=1"], **ONE)
    assert too_short(long) == "" and verdict(long).startswith("best steady output throughput: fixed:k=7")


@given(st.lists(st.tuples(st.floats(0, 50), st.floats(0.1, 5), st.floats(0, 20)), min_size=1, max_size=40))
def test_the_steady_window_is_full_from_end_to_end(requests: list[tuple[float, float, float]]) -> None:
    requests = sorted(requests)
    sent = np.array([at for at, _, _ in requests])
    first = sent + [wait for _, wait, _ in requests]
    finish = first + [more for _, _, more in requests]
    full = max(1, len(requests) // 3)
    window = steady_window(sent, first, finish, full)
    edges = np.unique(np.concatenate([sent, finish]))
    most = max(int(((sent <= at) & (finish > at)).sum()) for at in edges)
    if window is None:
        return
    begin, end = window
    assert begin >= first[:full].max() and begin < end
    if end - begin < 1e-9:
        return  # between two stamps that rounding alone tells apart
    for at in np.linspace(begin, end, 20, endpoint=False):
        assert ((sent <= at) & (finish > at)).sum() >= np.ceil(0.95 * most)


def test_long_requests_count_in_steady_latency() -> None:
    """Whoever is sent inside the window counts, though it finishes after it."""
    lengths = [(5, 10)] * 30 + [(5, 2000)] + [(5, 10)] * 30
    figures = simulate(Load(trace_of(lengths), concurrency=2), flat_cost(), ["none"], **ONE).results[0].figures
    assert figures["duration"] > 20 > 10 > figures["steady_window_s"]
    short, long = 0.1, 20.0
    expected = (long + (figures["steady_requests"] - 1) * short) / figures["steady_requests"]
    assert figures["steady_mean_e2e_latency_ms"] == pytest.approx(1e3 * expected, rel=0.1)


# --- open loop -------------------------------------------------------------------------------------------------------


def overloaded(every_s: float, **more: Any) -> Comparison:
    settings = EngineSettings(max_running_requests=4)
    load = Load(equal_requests(400, every_s), **more)
    return simulate(load, Engine(flat_cost(), settings=settings), ["fixed:k=0", "fixed:k=7"], **ONE)


def test_overload_is_said_and_no_latency_judges() -> None:
    """50 tokens a request, 4 at once, 10 ms a step: 8 requests a second without drafts. 80 are offered."""
    comparison = overloaded(1 / 80)
    figures = comparison.results[0].figures
    assert figures["offered_request_rate"] == pytest.approx(80)
    assert figures["sustained_request_rate"] == pytest.approx(8, rel=0.1)
    assert figures["overload"] == pytest.approx(80 / 8, rel=0.1)
    assert comparison.judged.figure == "output_throughput"
    assert f"{figures['overload']:.3g}x the rate it sustains" in overload_words(comparison.results[0])


def test_a_burst_at_the_end_is_held_against_what_is_served_of_it() -> None:
    """Calm for 75 s, then 400 requests in a second: 8 a second are sustained, not the mean rate of the whole trace."""
    arrivals = [float(number) for number in range(75)] + [75 + number / 400 for number in range(400)]
    trace = trace_of([(5, 50)] * 475, arrivals)
    settings = EngineSettings(max_running_requests=4)
    figures = simulate(trace, Engine(flat_cost(), settings=settings), ["fixed:k=0"], **ONE).results[0].figures
    assert figures["sustained_request_rate"] == pytest.approx(8, rel=0.1)
    assert figures["overload"] == pytest.approx(400 / 8, rel=0.15)


def test_a_decode_server_can_be_overloaded_too() -> None:
    """First tokens come from elsewhere in time; what waits is the decode."""
    settings = EngineSettings(max_running_requests=4, prefill_elsewhere_s=0.02)
    trace = equal_requests(400, 1 / 80)
    figures = simulate(trace, Engine(flat_cost(), settings=settings), ["fixed:k=0"], **ONE).results[0].figures
    assert figures["overload"] == pytest.approx(80 / 8, rel=0.1)


def test_refused_requests_are_not_offered() -> None:
    """Three of four can never fit: what is left comes at 2 a second, which is served."""
    lengths = [(5, 50) if number % 4 == 0 else (5000, 50) for number in range(400)]
    trace = trace_of(lengths, [number / 8 for number in range(400)])
    settings = EngineSettings(max_running_requests=4, kv_tokens=2000)
    figures = simulate(trace, Engine(flat_cost(), settings=settings), ["fixed:k=0"], **ONE).results[0].figures
    assert figures["failed"] == 300 and figures["overload"] == 0
    assert figures["offered_request_rate"] == pytest.approx(2, rel=0.02)


def test_a_load_that_is_served_is_judged_by_latency() -> None:
    comparison = overloaded(1 / 4)
    assert [result.figures["overload"] for result in comparison.results] == [0, 0]
    assert comparison.judged.figure == "mean_e2e_latency_ms"
    assert verdict(comparison).startswith("best mean end-to-end latency: fixed:k=7")


def test_no_verdict_where_one_policy_keeps_up_and_another_does_not() -> None:
    comparison = overloaded(1 / 12)
    assert [bool(result.figures["overload"]) for result in comparison.results] == [True, False]
    assert verdict(comparison) == "no verdict: fixed:k=0 overloaded; fixed:k=7 keep up"
    assert comparison.surcharge is None


def test_overload_of_some_runs_is_said_of_those() -> None:
    """Two windows, one of them calm: the factor is the other's, and no latency is judged."""
    arrivals = [float(number) for number in range(200)] + [200 + number / 80 for number in range(200)]
    trace = trace_of([(5, 50)] * 400, arrivals)
    settings = EngineSettings(max_running_requests=4)
    comparison = simulate(
        Load(trace, windows=2),
        Engine(flat_cost(), settings=settings),
        ["fixed:k=0", "fixed:k=1"],
        replications=2,
        jobs=1,
    )
    said = overload_words(comparison.results[0])
    factor = comparison.results[0].replications[1]["overload"]
    assert factor == pytest.approx(10, rel=0.1) and f"in 1 of 2 runs: requests come at {factor:.3g}x" in said
    assert verdict(comparison).startswith("no verdict: fixed:k=0, fixed:k=1 overloaded")


def test_limits_judge_where_they_are_given() -> None:
    comparison = overloaded(1 / 8.5, goodput={"e2el": 480.0})
    first, second = (result.figures for result in comparison.results)
    assert comparison.judged.figure == "slo_attainment"
    assert first["slo_attainment"] < 0.9 < second["slo_attainment"] == second["slo_attainment.e2el"]


def test_limits_that_all_keep_judge_nothing() -> None:
    assert verdict(overloaded(1 / 2, goodput={"e2el": 60_000.0})) == (
        "no verdict: every policy keeps the limits for every request"
    )


def test_goodput_of_a_closed_loop_is_that_of_its_steady_window() -> None:
    comparison = simulate(
        Load(equal_requests(80), concurrency=8, goodput={"tpot": 1000000.0}),
        flat_cost(),
        ["fixed:k=7", "fixed:k=0"],
        **ONE,
    )
    figures = comparison.results[0].figures
    assert comparison.judged.figure == "steady_request_goodput"
    assert figures["steady_request_goodput"] == pytest.approx(figures["steady_requests"] / figures["steady_window_s"])


def test_the_best_is_lossless_and_knows_its_direction() -> None:
    comparison = overloaded(1 / 4)
    assert comparison.best("mean_e2e_latency_ms").policy == comparison.best().policy == "fixed:k=7"
    with pytest.raises(InputError, match="figure 'speed' is unknown, expected one of"):
        comparison.best("speed")


@given(st.dictionaries(st.sampled_from(SLO_KEYS), st.integers(1, 10**6), min_size=1), st.booleans())
def test_limits_in_one_word_or_several(slos: dict[str, int], together: bool) -> None:
    words = [f"{key}:{value}" for key, value in slos.items()]
    assert parse_slos([" ".join(words)] if together else words) == slos


@pytest.mark.parametrize(
    "words, says",
    [
        (["ttft:500", "ttft:3"], "ttft twice"),
        (["itl:5"], "expected KEY:MILLISECONDS with KEY in ttft, tpot, e2el"),
        (["ttft:0"], "ttft:0 is refused"),
        (["ttft:-1"], "ttft:-1 is refused"),
        (["ttft:inf"], "ttft:inf is refused"),
        (["ttft"], "ttft:nan is refused"),
        ([""], "is empty"),
    ],
)
def test_limits_that_make_no_sense(words: list[str], says: str) -> None:
    with pytest.raises(InputError, match=says):
        parse_slos(words)


def test_goodput_as_bench_serving_nests_it(capsys: pytest.CaptureFixture[str]) -> None:
    quick = ("--limit", "40", "--replications", "1", "--jobs", "1", "--policy", "hull", "--only", "--json")
    answer = call(capsys, "--trace", "example", "--profile", PROFILE, *quick, "--goodput", "ttft:30 tpot:3")
    (result,) = json.loads(answer.out)["results"]
    assert result["goodput_slos_ms"] == {"ttft": 30, "tpot": 3}
    assert set(result["slo_attainment_by_metric"]) == {"ttft", "tpot"}
    assert result["slo_attainment"] <= min(result["slo_attainment_by_metric"].values())


def test_the_highest_rate(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """4 at once, half a second each: 8 a second. Just above, the limit of 0.6 s is lost, since the queue grows."""
    path = tmp_path / "trace.csv"
    rows = "".join(f"{0.25 * number},5,50\n" for number in range(400))
    path.write_text("arrived_at,num_prefill_tokens,num_decode_tokens\n" + rows)
    common = ("--profile", PROFILE, "--replications", "1", "--jobs", "1", "--policy", "fixed:k=0", "--only", "--json")
    limits = ("--goodput", "e2el:600", "--max-running-requests", "4")
    answer = call(capsys, "--trace", str(path), *common, *limits, "--find-rate", "0.9")
    (result,) = json.loads(answer.out)["results"]
    rate = result["sustainable_request_rate"]
    for factor, holds in ((0.97, True), (1.04, False)):
        scale = str(factor * rate / (399 / (0.25 * 399)))
        answer = call(capsys, "--trace", str(path), *common, *limits, "--rate-scale", scale)
        (result,) = json.loads(answer.out)["results"]
        assert (result["slo_attainment"] >= 0.9) is holds


@pytest.mark.parametrize(
    "flags, says",
    [
        (("--find-rate", "0.9"), "give that, and no --concurrency"),
        (("--find-rate", "0.9", "--goodput", "ttft:5", "--concurrency", "4"), "no --concurrency"),
        (("--find-rate", "2", "--goodput", "ttft:5"), "expected a share"),
        (("--find-rate", "0.9", "--goodput", "ttft:5", "--request-rate", "inf"), "all requests come at once"),
        (("--windows", "0"), "windows=0 is refused, expected 1..600"),
        (("--windows", "3", "--replications", "4"), "expected a multiple"),
    ],
)
def test_flags_that_make_no_sense(capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], says: str) -> None:
    assert_one_line_error(call(capsys, "--trace", "example", "--profile", PROFILE, *flags), says)


# --- intervals -------------------------------------------------------------------------------------------------------


def test_windows_are_the_unit_of_an_interval() -> None:
    """Windows differ by 10 %, draws by nothing: over draws the interval is narrow, over windows it is wide."""
    base, values = [100.0, 100.0] * 3, [110.0, 120.0] * 3
    draws, windows = paired(values, base), paired(values, base, windows=2)
    assert draws.mean == pytest.approx(windows.mean) == pytest.approx(0.15)
    assert windows.high - windows.low > 5 * (draws.high - draws.low)


def test_an_interval_is_that_of_the_ratio() -> None:
    """The same gain in windows of other sizes leaves no doubt; the same amount on top is another gain in each."""
    base = [1.0, 2.0, 4.0]
    same = paired([1.05 * each for each in base], base, windows=3)
    assert (same.low, same.mean, same.high) == pytest.approx((0.05, 0.05, 0.05))
    more = paired([each + 0.1 for each in base], base, windows=3)
    assert more.mean == pytest.approx(0.3 / 7) and more.low < 0.02 and more.high > 0.06


def test_a_base_of_nothing_is_said() -> None:
    none = paired([1.0, 2.0], [0.0, 0.0])
    assert none.verdict == "nothing to compare with" and interval(none) == "the other is 0"


def test_windows_partition_the_trace() -> None:
    trace = example_trace()
    parts = [part_of(trace, number, 7) for number in range(7)]
    assert np.concatenate([part.input_length for part in parts]).tolist() == trace.input_length.tolist()
    assert all(part.arrival_s[0] == 0 for part in parts)


def test_every_window_is_served(capsys: pytest.CaptureFixture[str]) -> None:
    result = simulate(Load(first_requests(example_trace(), 90), windows=3), PROFILE, ["none"], replications=3, jobs=1)
    assert [run["completed"] for run in result.results[0].replications] == [30, 30, 30]
    assert result.setting["windows"] == 3


# --- tables ----------------------------------------------------------------------------------------------------------


def test_steps_beyond_the_probes_are_said() -> None:
    """Measured to 48 tokens and 8 requests: at 48 in flight every full step lies beyond."""
    comparison = simulate(Load("example", concurrency=48), TABLES / "fine48.json", ["fixed:k=7"], **ONE)
    assert comparison.results[0].figures["beyond_probes_share"] > 0.7
    (warning,) = comparison.warnings
    assert "beyond the probes of profile" in warning and "48 tokens" in warning and "8 requests" in warning
    inside = simulate(
        Load(first_requests(example_trace(), 40), concurrency=4), TABLES / "fine48.json", ["fixed:k=2"], **ONE
    )
    assert inside.warnings == () and inside.results[0].figures["beyond_probes_share"] == 0


def test_a_gain_that_hangs_on_one_probe_is_a_warning() -> None:
    """128 tokens three times as fast as 16: no server is like that, and the gain is gone without it."""
    trace = first_requests(example_trace(), 150)
    comparison = simulate(Load(trace, concurrency=32), TABLES / "noisy.json", ["fixed:k=7", "hull"], **ONE)
    assert abs(comparison.results[1].difference["steady_output_throughput"].mean) > 0.02
    assert any("hangs on one probe" in warning for warning in comparison.warnings)
    few = simulate(Load(trace, concurrency=8), TABLES / "noisy.json", ["fixed:k=7", "hull"], **ONE)
    assert any("hangs on one probe" in warning for warning in few.warnings), "another probe at another load"
    sound = simulate(Load(trace, concurrency=32), load_profile(PROFILE), ["fixed:k=0", "hull"], **ONE)
    assert not any("hangs" in warning for warning in sound.warnings)
