"""What a comparison and a sweep answer: one sentence, one sign, best figures, pictures, crossovers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command_line import PROFILE, call
from hypothesis import given
from hypothesis import strategies as st
from simulated_worlds import flat_cost, trace_of

from sglang_dspark.errors import InputError
from sglang_dspark.policies import Fixed, Schedule, make_policy
from simulator import Comparison, Load, simulate
from simulator.baselines import Lineup, best_fixed, lineup
from simulator.inputs import prepare
from simulator.results.answer import answer, choose
from simulator.results.comparison import PolicyResult
from simulator.results.paired import Paired
from simulator.sweep import BEST, read_schedule, sweep

CLOSED: dict[str, Any] = {"loop": "closed", "concurrency": 8, "request_rate": None, "windows": 1, "trace": "t"}
OPEN: dict[str, Any] = {**CLOSED, "loop": "open", "concurrency": None}


def made(values: dict[str, list[float]], setting: dict[str, Any] = CLOSED, lossless: bool = True) -> Comparison:
    """A comparison whose policies have these figures, replication by replication."""
    figure = "steady_output_throughput" if setting["loop"] == "closed" else "mean_e2e_latency_ms"
    rest = {"steady_requests": 1e6, "steady_window_s": 1.0, "overload": 0.0, "completed": 1.0, "decode_steps": 3.0}
    results = tuple(
        PolicyResult(name, lossless or name != "oracle", "overlapped", tuple({figure: v, **rest} for v in each), {})
        for name, each in values.items()
    )
    return Comparison(results, (), {**setting, "goodput_slos_ms": {}})


def test_the_answer_names_what_to_switch_on() -> None:
    said = answer(made({"none": [100, 101], "fixed:k=5": [150, 151], "hull": [165, 166.2]}))
    assert (
        said.startswith("switch on hull: +10.0 % [") and "over fixed:k=5 at 8 in flight, +64.8 % over no spec" in said
    )
    assert answer(made({"none": [100, 101], "fixed:k=5": [150, 151], "hull": [149, 150]})).startswith(
        "no policy beats fixed:k=5 here: hull -0.7 % ["
    )
    noisy = made({"none": [100, 101], "fixed:k=5": [150, 151], "hull": [145, 160]})
    assert "no policy beats fixed:k=5 here" in answer(noisy) and "no difference" in answer(noisy)
    assert answer(made({"none": [200, 202], "fixed:k=5": [150, 151], "hull": [165, 166]})).startswith(
        "no policy beats no speculation here: hull -17.7 %"
    )


def test_self_tuning_is_named_where_hardly_anything_is_better() -> None:
    worlds = {"fixed:k=5": [150, 151], "argmax:lag=2": [165, 166.2], "self-tuning": [164.5, 165.6]}
    assert answer(made(worlds)).startswith("switch on self-tuning (no table or calibration to make): +9.7 %")
    assert answer(made({**worlds, "self-tuning": [163, 164]})).startswith("switch on argmax:lag=2: +10.0 %")
    slow = {"fixed:k=5": [90, 90.3], "hull": [81, 81.1], "self-tuning": [81.2, 81.3]}
    assert answer(made(slow, OPEN)).startswith("switch on self-tuning")


def test_a_gain_above_0_is_better_in_every_figure() -> None:
    """10 % less latency is +10 %, as 10 % more throughput is."""
    slow = made({"none": [100, 100.2], "fixed:k=5": [90, 90.3], "hull": [81, 81.1]}, OPEN)
    assert slow.gain(slow.results[2]).mean == pytest.approx(0.19, abs=0.005)
    assert answer(slow).startswith("switch on hull: +10.") and "at the trace's own rate" in answer(slow)
    assert choose(slow).pays  # type: ignore[union-attr]


@given(st.floats(-0.9, 5), st.floats(0, 1), st.floats(0, 1))
def test_turning_a_gain_twice_changes_nothing(mean: float, below: float, above: float) -> None:
    gap = Paired(mean, mean - below, mean + above)
    assert gap.turned().turned() == gap and gap.turned().low <= gap.turned().mean <= gap.turned().high


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    load = Load(trace_of([(50, 30)] * 80), concurrency=4)
    return simulate(load, PROFILE, ["none", "hull", "oracle", "fixed:k=7"], replications=2, jobs=1)


def test_best_knows_every_figure_and_no_lossy_policy(comparison: Comparison) -> None:
    lossless = [result for result in comparison.results if result.lossless]
    for figure in comparison.results[0].figures:
        try:
            best = comparison.best(figure)
        except InputError as error:
            assert figure in str(error)
            continue
        values = [result.figures[figure] for result in lossless]
        more = not (figure.endswith("_ms") or best.figures[figure] < max(values))
        assert best.lossless and best.figures[figure] == (max(values) if more else min(values))
    assert comparison.best("mean_tpot_ms").figures["mean_tpot_ms"] == min(r.figures["mean_tpot_ms"] for r in lossless)
    assert comparison.best().policy != "oracle"
    with pytest.raises(InputError, match="figure 'speed' is unknown, expected one of duration"):
        comparison.best("speed")
    with pytest.raises(InputError, match="figure 'mean_batch' is neither good nor bad"):
        comparison.best("mean_batch")
    with pytest.raises(InputError, match="no lossless policy was compared"):
        replace(comparison, results=(comparison.results[2],)).best()


def test_a_comparison_is_short_in_a_shell_and_long_in_a_table(comparison: Comparison, tmp_path: Path) -> None:
    lines = repr(comparison).splitlines()
    assert len(lines) == 5 and lines[0].startswith("Comparison of test, 4 in flight, by steady output throughput")
    assert lines[1].startswith("  none: ") and lines[2].startswith("  hull: ") and "(+" in lines[2]
    try:
        import pandas  # noqa: F401
    except ImportError:
        with pytest.raises(InputError, match="to_dataframe needs pandas, which is not installed: pip install pandas"):
            comparison.to_dataframe()
    else:
        table = comparison.to_dataframe()
        assert len(table) == 8 and {"policy", "replication", "steady_output_throughput"} <= set(table.columns)
    pytest.importorskip("matplotlib")
    comparison.plot(tmp_path / "gains.svg")
    assert b"<svg" in (tmp_path / "gains.svg").read_bytes()


def test_the_best_length_is_chosen_on_other_draws() -> None:
    setting = prepare(Load(trace_of([(50, 30)] * 60), concurrency=4), PROFILE)
    fixed, batch = best_fixed(setting, jobs=1)
    assert isinstance(fixed, Fixed) and 1 <= fixed.k <= 7 and 3 <= batch <= 4
    found = lineup(setting, jobs=1)
    texts = [policy.name for policy in found.policies]
    assert texts[:2] == ["none", "fixed"] and texts[-3:] == ["hull", "argmax", "self-tuning"] and found.left_out == ()
    flat = prepare(Load(trace_of([(5, 60)] * 40), concurrency=4), flat_cost(prefill_s=0.0))
    assert best_fixed(flat, jobs=1)[0] == Fixed(7)


def test_a_schedule_is_read_off_the_lengths() -> None:
    def at(batch: float, k: int) -> Lineup:
        return Lineup((), Fixed(k), batch)

    assert read_schedule([at(4, 7), at(16, 5), at(64, 5), at(100, 2)]) == Schedule(upto=(8, 80), k=(7, 5, 2))
    assert read_schedule([at(4, 5), at(16, 7)]) == Schedule(upto=(8,), k=(5, 7)), "lengths need not fall"
    assert read_schedule([at(4, 7), at(16, 7)]) is None and read_schedule([]) is None


def test_a_sweep_has_one_row_a_policy_and_says_its_crossovers(capsys: pytest.CaptureFixture[str]) -> None:
    load = Load(trace_of([(50, 12)] * 80))
    settings = [prepare(replace(load, concurrency=n), PROFILE) for n in (2, 8)]
    found = sweep(settings, [make_policy("hull")], replications=2, jobs=1)
    assert found.loads == (2.0, 8.0) and found.rows[:2] == ["none", BEST] and "hull" in found.rows
    assert len(found.words()) in (1, 2) and all("in flight: " in line for line in found.words())
    for load_at, choice in enumerate(found.choices):
        assert choice is not None and found.result(choice.policy, load_at) is not None
    flags = ("--trace", "example", "--limit", "40", "--profile", PROFILE, "--replications", "2", "--jobs", "1")
    told = call(capsys, *flags, "--concurrency", "2,4", "--policy", "hull")
    assert told.status == 0 and "in flight" in told.out and max(map(len, told.out.splitlines())) <= 80
    rates = call(capsys, *flags, "--request-rate", "1,2", "--policy", "hull", "--json").report
    assert rates["sweep"]["loads"] == [1, 2] and len(rates["comparisons"]) == 2
    wrong = call(capsys, *flags, "--concurrency", "8,2")
    assert wrong.status == 2 and "expected increasing integers, each once" in wrong.err


def test_output_appends_and_a_dash_is_stdout(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    flags = (
        "--trace",
        "example",
        "--limit",
        "20",
        "--profile",
        PROFILE,
        "--replications",
        "1",
        "--jobs",
        "1",
        "--only",
    )
    path = tmp_path / "out.jsonl"
    for count in (1, 2):
        assert call(capsys, *flags, "--policy", "hull", "--output", str(path)).status == 0
        assert len(path.read_text().splitlines()) == count
    dash = call(capsys, *flags, "--policy", "hull", "--output", "-")
    assert dash.out == path.read_text().splitlines(keepends=True)[0] and "TPOT" in dash.err
