"""benchmarks/simulation_speed.py: what it refuses, what its children answer, what the peer is given to read."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from sglang_dspark.errors import InputError
from simulator.traces import PrefixBlocks, Trace, load_trace

ROOT = Path(__file__).parents[2]
TRACE = Trace(np.array([0.0, 1.5]), np.array([1025, 512]), np.array([3, 4]))
Module = Callable[[str], ModuleType]


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Module:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.setenv("DSPARK_COMPILED", "0")  # a child that compiles takes its time
    return importlib.import_module


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--repeats", "0"], "--repeats 0: expected 1 or more"),
        (["--only", "before"], "--only before needs --before"),
        (["--peer", sys.executable], "give --trace"),
        (["--trace", "x", "--only", "memory"], "--only memory leaves --trace out"),
    ],
)
def test_what_measures_nothing_is_refused(
    module: Module,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.setattr(sys, "argv", ["simulation_speed.py", *arguments])
    with pytest.raises(SystemExit, match="2"):
        module("simulation_speed").main()
    assert message in capsys.readouterr().err


def test_a_commit_that_is_none_and_a_peer_that_is_none_are_refused(module: Module, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--before none-such: expected a commit"):
        module("speed.before").checked_out("none-such").__enter__()
    peer = module("speed.peer")
    with pytest.raises(InputError, match="does not start"):
        peer.start_peer(str(tmp_path / "python"), TRACE, tmp_path / "trace.jsonl")
    if not peer.has_dynamo():
        with pytest.raises(InputError, match=r"dynamo_replay.py ended with status 1"):
            peer.start_peer(sys.executable, TRACE, tmp_path / "trace.jsonl")


def test_a_child_times_its_checkout(module: Module, monkeypatch: pytest.MonkeyPatch) -> None:
    before = module("speed.before")
    monkeypatch.setattr(before, "REQUESTS", {2: 6})
    monkeypatch.setattr(before, "STEPS", {2: 20})
    with before.started(ROOT) as child:
        run = child.ask(policy="hull", running=2, requests=6)
        assert 0 < run["drawing"] and 0 < run["prefills"] < run["steps"] and 0 < run["seconds"]
        assert child.ask(policy="hull", running=2, requests=6)["steps"] == run["steps"]
        assert 0 < child.ask(policy="hull", running=8)["seconds"] < 1
        rows = before.step_row((child, child), "hull", 2, 1), before.alone_row((child, child), "hull", 2, 1)
    assert all(row.split()[:2] == ["2", "hull"] for row in rows) and rows[1].endswith("1/10")


@pytest.mark.parametrize("blocks", [None, PrefixBlocks(np.array([0, 1, 2]), np.array([7, 7]), 1024)])
def test_the_peer_reads_the_same_requests(module: Module, tmp_path: Path, blocks: PrefixBlocks | None) -> None:
    trace = Trace(TRACE.arrival_s, TRACE.input_length, TRACE.output_length, prefix_blocks=blocks)
    path = tmp_path / "trace.jsonl"
    module("speed.peer").write_mooncake(trace, path)
    ids = [json.loads(line)["hash_ids"] for line in path.read_text().splitlines()]
    assert ids == ([[0, 1, 2], [3]] if blocks is None else [[7, 8], [7]])
    if blocks is None:
        again = load_trace(str(path))
        for name in ("arrival_s", "input_length", "output_length"):
            assert (getattr(again, name) == getattr(trace, name)).all()


def test_without_the_peer_it_is_said(module: Module, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    peer = module("speed.peer")
    if peer.has_dynamo():
        pytest.skip("the peer is installed here")
    peer.write_mooncake(TRACE, tmp_path / "trace.jsonl")
    peer.whole_trace(str(tmp_path / "trace.jsonl"), None, 1)
    out = capsys.readouterr().out
    assert "not measured (ai-dynamo is not installed here)" in out
    assert [line.split()[0] for line in out.splitlines()[-3:]] == ["fixed:k=7", "hull", "argmax:lag=2"]
