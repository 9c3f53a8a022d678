"""`simulate --trace RECORDS`: requests, acceptance and settings from records, costs from a profile or other records."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from command_line import assert_one_line_error, call
from synthetic_load import GAMMA, Load

from sglang_dspark.errors import InputError
from sglang_dspark.policies import make_policy
from sglang_dspark.records import RecordSet, RequestRecord
from sglang_dspark.records.blocks import uncensored_blocks
from sglang_dspark.records.episodes import find_episodes
from simulator import EngineSettings, inputs, simulate
from simulator.engine.recorded_load import load_records, recorded_settings, recorded_trace
from simulator.inputs import Acceptance, Engine, prepare
from simulator.traces import Trace

MIDDLE = 6


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The middle load by itself, lower and higher ones, and one that shows two positions of each block."""
    root = tmp_path_factory.mktemp("records")
    Load(root / "middle", "fixed:k=4").closed(MIDDLE, requests=60, repetitions=1).close()
    others = Load(root / "others", "fixed:k=4", seed=5)
    others.closed(2).closed(12, requests=60).close()
    varied = Load(root / "varied", "argmax:lag=2", explore=0.2, seed=6)
    varied.closed(2).closed(12, requests=60).close()
    Load(root / "short", "fixed:k=2", seed=7).closed(MIDDLE, repetitions=1).close()
    return {path.name: path for path in root.iterdir()}


def test_the_middle_load_is_predicted_from_others(folders: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    report = call(
        capsys,
        "--trace",
        str(folders["middle"]),
        "--profile",
        str(folders["others"]),
        "--policy",
        "fixed:k=4",
        "--concurrency",
        str(MIDDLE),
        "--replications",
        "2",
        "--json",
    ).report
    [episode] = find_episodes(RecordSet(folders["middle"]))
    measured, [result] = episode.figures(), report["results"]
    bounds = {"steady_output_throughput": 0.05, "output_throughput": 0.05, "mean_tpot_ms": 0.05, "accept_length": 0.02}
    for name, bound in bounds.items():
        assert result[name] == pytest.approx(measured[name], rel=bound), name
    assert result["completed"] == len(episode.requests)
    assert "blocks_drawn" in {assumption["key"] for assumption in report["assumptions"]}


def test_policies_meet_the_recorded_blocks(folders: dict[str, Path]) -> None:
    """A policy that verifies all meets mostly the blocks that were recorded; one that trims commits less a step."""
    costs = folders["varied"]
    result = simulate(
        inputs.Load(folders["middle"], concurrency=6),
        costs,
        ["fixed:k=4", "fixed:k=1", "argmax:lag=2"],
        replications=2,
        jobs=1,
    )
    lengths = [one.figures["accept_length"] for one in result.results]
    blocks = uncensored_blocks(RecordSet(folders["middle"]))
    assert lengths[0] == pytest.approx(1 + blocks.depth.mean(), rel=0.03)
    assert lengths[1] == pytest.approx(1 + np.minimum(blocks.depth, 1).mean(), rel=0.06)
    assert lengths[1] < lengths[2] <= lengths[0]
    assert result.setting["drafter"] == "recorded" and result.setting["gamma"] == GAMMA


def test_trimmed_blocks_serve_shorter_windows_only(folders: dict[str, Path]) -> None:
    profile = folders["varied"]
    with pytest.raises(InputError, match="the policy trimmed them"):
        simulate(folders["short"], profile, ["fixed:k=4"], jobs=1)
    result = simulate(
        folders["short"], profile, ["fixed:k=2", "fixed:k=1"], acceptance=Acceptance(gamma=2), replications=1, jobs=1
    )
    depth = uncensored_blocks(RecordSet(folders["short"]), window=2).depth
    assert depth.max() == 2
    assert result.results[0].figures["accept_length"] == pytest.approx(1 + depth.mean(), rel=0.05)
    with pytest.raises(InputError, match="window of 9 positions is refused, the records have 1..4"):
        load_records(folders["short"], window=9)
    completed = load_records(folders["short"], complete=True)
    assert completed.blocks.completed > 0 and completed.blocks.gamma == GAMMA


def test_full_blocks_that_a_policy_chose_beside_trimmed_ones_are_no_sample(tmp_path: Path) -> None:
    """They are the blocks with high confidences: simulated from them alone, everything would look accepted."""
    Load(tmp_path, "threshold:t=0.6", seed=8).closed(1, requests=20).close()
    with pytest.raises(InputError, match="the policy trimmed them"):
        load_records(tmp_path)
    assert len(load_records(tmp_path, complete=True).blocks) > len(uncensored_blocks(RecordSet(tmp_path)))


def test_a_window_belongs_to_the_records(folders: dict[str, Path]) -> None:
    with pytest.raises(InputError, match="gamma=3 is refused, these records were loaded with 4 positions"):
        simulate(load_records(folders["middle"]), str(folders["others"]), ["fixed:k=3"], acceptance=Acceptance(gamma=3))


def test_settings_are_read_as_sglang_means_them() -> None:
    found = recorded_settings({"loop": "normal", "dp_size": 2, "chunked_prefill_size": -1, "kv_tokens": 5000})
    assert (found.schedule, found.replicas, found.chunked_prefill_size, found.kv_tokens) == (
        "no-overlap",
        2,
        1 << 20,
        5000,
    )
    assert recorded_settings({"loop": "overlap", "dp_size": 1}) == EngineSettings()


def test_damaged_and_empty_records_are_named(tmp_path: Path) -> None:
    (tmp_path / "broken.dspark").write_bytes(b"nothing of ours")
    with pytest.raises(InputError, match="broken.dspark"):
        load_records(tmp_path)


def test_the_servers_own_settings_hold_until_flags_say_otherwise(
    folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    load = load_records(folders["middle"])
    assert isinstance(load.engine, EngineSettings)
    report = call(
        capsys,
        "--trace",
        str(folders["middle"]),
        "--profile",
        str(folders["others"]),
        "--policy",
        "fixed:k=4",
        "--limit",
        "20",
        "--max-running-requests",
        "3",
        "--replications",
        "1",
        "--json",
    ).report
    assert report["setting"]["requests"] == 20 and report["setting"]["max_running_requests"] == 3
    assert report["results"][0]["mean_batch"] <= 3


@pytest.mark.parametrize(
    ("extra", "sentence"),
    [
        (("--drafter", "dflash"), "--drafter does nothing with records"),
        (("--acceptance", "0.8,0.7"), "--acceptance does nothing with records"),
        (("--domains", "math=1"), "--domains does nothing with records"),
        (("--confidence", "noise=1"), "--confidence does nothing with records"),
        (("--format", "azure"), "--format does nothing with records"),
        (("--gamma", "5"), "window of 5 positions is refused, the records have 1..4"),
    ],
)
def test_flags_that_records_make_idle_are_refused(
    folders: dict[str, Path], extra: tuple[str, str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = call(capsys, "--trace", str(folders["middle"]), "--profile", str(folders["others"]), *extra)
    assert answer.status == 2 and sentence in " ".join(answer.err.split())


def test_a_folder_without_records_and_complete_without_need_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match="holds no .dspark file"):
        simulate(tmp_path, "vllm-b300-dsv4-flash", ["fixed:k=4"])
    answer = call(capsys, "--trace", "example", "--profile", "vllm-b300-dsv4-flash", "--complete")
    assert_one_line_error(answer, "--complete does nothing with example")


def test_recorded_costs_run_on_the_recorded_servers_graphs(folders: dict[str, Path]) -> None:
    """It captured none on its CPU: nothing is padded; another server's graphs are simulated on request."""
    own = prepare(load_records(folders["middle"]), str(folders["varied"]))
    assert own.graphs == "profile" and own.server(make_policy("fixed:k=4")).batches is None
    asked = prepare(load_records(folders["middle"]), Engine(str(folders["varied"]), graphs="sglang"))
    assert asked.server(make_policy("fixed:k=4")).batches is not None


def test_requests_ask_for_what_their_clients_asked_for() -> None:
    def trace(*asked: int | None) -> Trace:
        times = {"arrival_time_s": 0.0, "finish_time_s": 1.0, "input_length": 9, "output_length": 20}
        return recorded_trace(
            [RequestRecord(rid=str(n), max_new_tokens=most, **times) for n, most in enumerate(asked)], "x"
        )

    known = trace(64, 20).max_tokens
    assert known is not None and known.tolist() == [64, 20]
    assert trace(64, None).max_tokens is None
