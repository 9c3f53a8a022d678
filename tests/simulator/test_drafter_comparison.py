"""Drafters in one run: gains at matched speed and throughput, what is compared with what, what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from command_line import PROFILE, assert_one_line_error, call
from hypothesis import given
from hypothesis import strategies as st

from simulator import Load, compare_drafters
from simulator.results.matched import Frontier, more_speed, more_throughput

LOADS = "8,32"
RUN = ("--trace", "example", "--profile", PROFILE, "--limit", "120", "--replications", "2", "--jobs", "1")
PAIR = (*RUN, "--concurrency", LOADS, "--drafter", "dspark:deepseek-v4-pro,mtp1")

points = st.lists(st.floats(1.1, 3.0), min_size=1, max_size=5)


def frontier(slower: list[float], more: list[float], speed: float, rate: float) -> Frontier:
    """Each load slows a user down and serves more."""
    return Frontier(speed / np.cumprod([1.0, *slower]), rate * np.cumprod([1.0, *more]))


@given(points, st.floats(10, 500), st.floats(50, 5000), st.floats(0.5, 2.0), st.data())
def test_a_frontier_that_is_faster_throughout_is_so_at_matched_throughput(
    steps: list[float], speed: float, rate: float, factor: float, data: st.DataObject
) -> None:
    base = frontier(steps, steps, speed, rate)
    faster = Frontier(factor * base.speed, base.throughput)
    at = data.draw(st.integers(0, len(steps)))
    assert more_speed(faster, base, base.throughput[at]) == pytest.approx(factor - 1)
    assert more_throughput(base, base, base.speed[at]) == pytest.approx(0, abs=1e-12)
    inside = math.sqrt(base.throughput[0] * base.throughput[-1])
    assert more_speed(faster, base, inside) == pytest.approx(factor - 1)


@given(points, st.floats(10, 500), st.floats(50, 5000))
def test_nothing_is_said_beyond_what_was_simulated(steps: list[float], speed: float, rate: float) -> None:
    base = frontier(steps, steps, speed, rate)
    assert math.isnan(base.throughput_at(1.01 * base.speed[0])) and math.isnan(
        base.throughput_at(base.speed[-1] / 1.01)
    )
    assert math.isnan(base.speed_at(1.01 * base.throughput[-1])) and math.isnan(base.speed_at(rate / 1.01))


def test_of_two_loads_with_one_throughput_the_faster_one_counts() -> None:
    """Past saturation more in flight serve less: nobody would run there."""
    base = Frontier(np.array([100.0, 50.0, 20.0]), np.array([1000.0, 2000.0, 1500.0]))
    assert base.speed_at(1500.0) > 50.0 and base.throughput_at(20.0) == 1500.0


def test_the_headline_in_one_run(capsys: pytest.CaptureFixture[str]) -> None:
    answer = call(capsys, *PAIR[:-1], "mtp1,dspark:deepseek-v4-pro,none")
    assert answer.status == 0, answer.err
    said = " ".join(answer.out.split())
    assert all(len(line) <= 80 for line in answer.out.splitlines())
    assert "dspark:deepseek-v4-pro against mtp1: +" in said and "speed of each user at matched throughput" in said
    assert "mtp1 under fixed:k=1; dspark:deepseek-v4-pro under argmax:lag=2; none under none" in said
    assert "throughput at matched speed" in said
    assert "of different targets or prompts" in said, "DeepSeek-V4-Pro and its successor"


def test_a_drafter_under_two_names_is_level_with_itself(capsys: pytest.CaptureFixture[str]) -> None:
    report = call(capsys, *RUN, "--concurrency", LOADS, "--drafter", "dspark,dspark:qwen3-4b", "--json").report
    found = report["drafters"]["drafters"]["dspark:qwen3-4b"]
    for key in ("throughput_gain_at_matched_speed", "speed_gain_at_matched_throughput"):
        assert [each["mean"] for each in found[key]] == pytest.approx([0, 0], abs=1e-12)
    assert report["drafters"]["base"] == "dspark" and report["drafters"]["loads"] == [8, 32]
    assert len(report["comparisons"]) == 4


def test_gains_follow_from_the_frontiers_that_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    found = call(capsys, *PAIR[:-1], "mtp1,dspark:deepseek-v4-pro", "--json").report["drafters"]["drafters"]
    base, ours = (
        Frontier(*(np.array(each[key]) for key in ("tokens_per_s_per_user", "output_throughput")))
        for each in found.values()
    )
    gain = found["dspark:deepseek-v4-pro"]["speed_gain_at_matched_throughput"][1]["mean"]
    assert gain == pytest.approx(more_speed(ours, base, base.throughput[1]), abs=0.02)
    assert 0.2 < gain < 1.2
    assert found["mtp1"]["policies"] == ["fixed:k=1", "fixed:k=1"]


def test_from_python_it_is_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    from simulator.traces import example_trace, first_requests

    names = ("mtp1", "none")
    load = Load(first_requests(example_trace(), 120))
    ours = compare_drafters(load, PROFILE, names, (8, 32), replications=2, jobs=1).as_json()
    theirs = call(capsys, *PAIR[:-1], ",".join(names), "--json").report["drafters"]
    assert json.loads(json.dumps(ours)) == theirs


def test_one_policy_for_all_lines_and_a_picture(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    lines, picture = tmp_path / "lines.jsonl", tmp_path / "frontiers.svg"
    call(capsys, *PAIR, "--policy", "fixed:k=1", "--output", str(lines), "--plot", str(picture))
    rows = [json.loads(line) for line in lines.read_text().splitlines()]
    assert [row["policy"] for row in rows] == ["fixed:k=1"] * 4
    assert [row["drafter"] for row in rows] == ["dspark:deepseek-v4-pro"] * 2 + ["mtp:deepseek-v4-pro"] * 2
    assert [row["max_concurrency"] for row in rows] == [8, 32, 8, 32] and "<svg" in picture.read_text()


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--drafter", "mtp1,mtp1"), "expected every drafter once"),
        (("--drafter", "mtp1,nobody"), "unknown drafter 'nobody'"),
        (("--concurrency", "8"), "expected several increasing concurrencies"),
        (("--gamma", "3"), "--gamma does nothing with several drafters"),
        (("--acceptance", "0.8,0.7"), "--acceptance does nothing with several drafters"),
        (("--find-rate", "0.9"), "--find-rate does nothing with several drafters"),
        (("--sensitivity",), "--sensitivity does nothing with several drafters"),
        (("--only", "--policy", "hull"), "--only does nothing with several drafters"),
        (("--policy", "hull", "--policy", "fixed:k=1"), "expected one that all run under"),
        (("--drafter", "dflash,mtp1", "--confidence", "raw"), "no drafter has a confidence head"),
        (("--drafter", "dspark:glm-5.2,mtp1", "--domains", "math=1"), "every drafter is the same in every domain"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    more: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_one_line_error(call(capsys, *PAIR, *more), says)
