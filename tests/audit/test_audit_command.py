"""`dspark audit exact` as a user runs it: table, JSON, exit status."""

from __future__ import annotations

import json

import pytest
from planted_faults import PLANTED
from typer.testing import CliRunner

from sglang_dspark.cli import app, main
from sglang_dspark.policies import POLICIES

FEW = ["audit", "exact", "--instances", "30", "--jobs", "1"]


def test_a_lossless_policy_exits_0_and_is_tabled() -> None:
    result = CliRunner().invoke(app, [*FEW, "--policy", "hull", "--policy", "argmax-live", "--policy", "oracle"])
    assert result.exit_code == 0, result.output
    assert "hull" in result.stdout and "holds" in result.stdout
    assert "lossy" in result.stdout
    assert "oracle is not enumerated" in result.stdout


@pytest.mark.parametrize("planted", PLANTED, ids=lambda policy: policy.name)
def test_a_false_claim_exits_1(planted: object, monkeypatch: pytest.MonkeyPatch) -> None:
    policy_class = type(planted)
    monkeypatch.setitem(POLICIES, policy_class.name, policy_class)
    result = CliRunner().invoke(app, [*FEW, "--policy", policy_class.name])
    assert result.exit_code == 1, result.output
    assert "FAILS" in result.stdout
    assert f"{policy_class.name} claims to be lossless" in result.stderr


def test_json_holds_every_figure() -> None:
    result = CliRunner().invoke(app, [*FEW, "--json", "--policy", "argmax:lag=1", "--policy", "argmax-live"])
    assert result.exit_code == 0
    document = json.loads(result.stdout)
    assert document["steps"] == 4 and document["tolerance"] == 1e-9
    honest, lossy = document["policies"]
    assert honest["claims_lossless"] and honest["worst_tv"] < 1e-12 and honest["instances"] == 30
    assert not lossy["claims_lossless"] and lossy["biased"] > 0 and not lossy["fails"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--policy", "hul"], "unknown policy 'hul'"),
        (["--policy", "argmax:lag=3"], "expected at least 5"),
        (["--policy", "fixed:k=7"], "expected 0..2"),
        (["--gamma", "0"], "gamma=0"),
        (["--instances", "0"], "instances=0"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["dspark", "audit", "exact", *arguments])
    with pytest.raises(SystemExit) as exited:
        main()
    out, err = capsys.readouterr()
    assert exited.value.code == 2
    assert out == ""
    assert len(err.strip().splitlines()) == 1 and words in err
