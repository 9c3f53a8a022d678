"""`dspark tune` as a user calls it, and what it says about wrong assumptions."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("optuna", reason="needs the extra `tune`")

from sglang_dspark import cli
from sglang_dspark.cost import load_profile
from sglang_dspark.policies import make_policy
from simulator.cli import main as simulate_main
from simulator.tuning.robustness import scaled, sloped, uneven

PROFILE = "vllm-b300-dsv4-flash"
LENGTHS = (
    "--random-input-len",
    "60",
    "--random-output-len",
    "16",
    "--random-range-ratio",
    "0.5",
    "--num-prompts",
    "200",
)
SMALL = (*LENGTHS, "--profile", PROFILE, "--concurrency", "4", "--requests", "60", "--workers", "1")


def call(capsys: pytest.CaptureFixture[str], main, *arguments: str) -> tuple[int, str, str]:
    argv, status = sys.argv, 0
    sys.argv = ["command", *arguments]
    try:
        main()
    except SystemExit as end:
        status = int(end.code or 0)
    finally:
        sys.argv = argv
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    return tmp_path


def test_from_a_trace_to_a_policy_file_that_simulates(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = call(capsys, cli.main, "tune", *SMALL, "--trials", "17")
    assert status == 0, err
    assert max(map(len, out.splitlines())) <= 80
    policy = make_policy("policy.json")
    document = json.loads((here / "policy.json").read_text())
    meta = document["meta"]
    assert policy.name == document["policy"] and {"gamma", "max_running_requests", "gain", "version"} <= set(meta)
    assert "python -m sglang.launch_server" in out and "step costs are off by 20 %" in out
    assert ("switch on" in out) is meta["better_than_baselines"] and ("keep" in out) is not meta[
        "better_than_baselines"
    ]
    base = ("--trace", "example", "--profile", PROFILE, "--limit", "40", "--jobs", "1", "--replications", "1", "--only")
    status, out, err = call(capsys, simulate_main, *base, "--policy", "policy.json", "--gamma", "3")
    assert "was tuned for" not in out or "gamma 7 (here 3)" in out
    if policy.name in ("hull", "argmax"):
        assert "policy.json was tuned for gamma" in " ".join(out.split())
    again = call(capsys, cli.main, "tune", *SMALL, "--trials", "17", "--json", "--no-robustness")
    assert again[0] == 0 and json.loads(again[1])["meta"]["tuned"] == meta["tuned"]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--windows", "2"), "--windows does nothing with dspark tune"),
        (("--out", "nowhere/p.json"), "cannot write nowhere/p.json"),
        (("--space", "none.yaml"), "space none.yaml cannot be read"),
        (("--goodput", "ttft:0.001"), "no request of 17 candidates keeps --goodput ttft:0.001"),
        (("--objective", "glory"), "figure 'glory' is unknown"),
    ],
)
def test_bad_input_is_one_sentence(
    here: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], says: str
) -> None:
    status, out, err = call(capsys, cli.main, "tune", *SMALL, "--trials", "17", *flags)
    assert status == 2 and out == ""
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and says in lines[0], err
    assert not (here / "policy.json").exists()


def test_wrong_costs_are_wrong_as_they_say() -> None:
    cost = load_profile(PROFILE)
    requests, tokens = 16, np.array([16.0, 128.0])
    exact = np.asarray(cost.verify_s(requests, tokens))
    assert np.asarray(scaled(cost, 0.1).verify_s(requests, tokens)) == pytest.approx(1.1 * exact)
    assert scaled(cost, 0.1).draft_s(requests) == pytest.approx(1.1 * cost.draft_s(requests))
    least = cost.bias_s + cost.verify.seconds.min()
    steep = np.asarray(sloped(cost, 0.1).verify_s(requests, tokens))
    assert steep - least == pytest.approx(1.1 * (exact - least))
    off = np.asarray(uneven(cost, 0.1, 3).verify_s(requests, tokens)) / exact - 1
    assert (np.abs(off) <= 0.1 + 1e-9).all() and np.abs(off).max() > 0.001


def test_a_search_on_an_estimate_says_so_and_asks_the_server_for_permission(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    profile = ("--profile", "estimate-h100-qwen3-8b-bf16", "--concurrency", "4", "--requests", "60", "--workers", "1")
    status, out, err = call(capsys, cli.main, "tune", *LENGTHS, *profile, "--trials", "9", "--no-robustness")
    assert status == 0, err
    said = " ".join(out.split())
    assert "warning: the step costs are an estimate, not measured: such step times were off by" in said
    meta = json.loads((here / "policy.json").read_text())["meta"]
    assert meta["profile_is"] == "an estimate, not measured"
    if "--speculative-algorithm" in out:
        assert "--speculative-dspark-allow-estimate" in out
