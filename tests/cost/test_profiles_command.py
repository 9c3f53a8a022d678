"""`dspark profiles`: what ships, where it comes from, what is assumed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sglang_dspark.cli import app, main
from sglang_dspark.cost import load_profile, profile_names

WIDE = {"COLUMNS": "200"}


def test_every_shipped_profile_is_a_line_that_tells_measured_from_estimated() -> None:
    result = CliRunner().invoke(app, ["profiles"], env={"COLUMNS": "80"})
    assert result.exit_code == 0, result.output
    lines = [line.split(maxsplit=2) for line in result.stdout.splitlines() if len(line.split()) > 2]
    listed = {name: (kind, hardware.strip()) for kind, name, hardware in lines}
    for name in profile_names():
        model = load_profile(name)
        assert listed[name] == ("estimate" if model.is_estimate else "MEASURED", model.meta["hardware"])
    assert profile_names()[0] == "vllm-b300-dsv4-flash", "measured ones come first"
    assert "estimate, not measured: such step times were off by" in " ".join(result.stdout.split())


@pytest.mark.parametrize("name", ["vllm-b300-dsv4-flash", "estimate-b300x4-deepseek-v4-flash"])
def test_a_named_profile_is_shown_with_provenance_and_assumptions(name: str) -> None:
    result = CliRunner().invoke(app, ["profiles", name], env={"COLUMNS": "600"})
    assert result.exit_code == 0, result.output
    model = load_profile(name)
    assert name in result.stdout and str(model.meta["hardware"]) in result.stdout
    for assumption in model.assumptions:
        assert assumption.text in result.stdout


def test_json_is_the_whole_of_it() -> None:
    result = CliRunner().invoke(app, ["profiles", "--json"])
    assert result.exit_code == 0
    listed = {document["name"]: document for document in json.loads(result.stdout)}
    assert set(listed) == set(profile_names())
    for name, document in listed.items():
        model = load_profile(name)
        assert document["provenance"] == model.meta
        assert document["assumptions"] == [assumption.as_json() for assumption in model.assumptions]
        for assumption in document["assumptions"]:
            assert set(assumption) == {"key", "value", "unit", "source", "text"} and assumption["key"]
        assert document["terms"] == model.terms
        assert document["captured_tokens"] == model.captured.tolist()


def test_a_users_own_file_works_where_a_name_does(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(
        json.dumps({"sample_batch_tokens": [8, 16], "sample_steps_per_sec": [9.0, 8.0], "max_batch_tokens": 16})
    )
    result = CliRunner().invoke(app, ["profiles", str(path)], env=WIDE)
    assert result.exit_code == 0
    assert "none in the file" in result.stdout and "refused for other B unless forced" in result.stdout
    document = json.loads(CliRunner().invoke(app, ["profiles", "--json", str(path)]).stdout)[0]
    assert document["diagonal"] and document["captured_tokens"] is None and document["draft_probes"] is None


def test_an_unknown_name_is_one_line_and_status_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["dspark", "profiles", "b300"])
    with pytest.raises(SystemExit) as exited:
        main()
    assert exited.value.code == 2
    assert capsys.readouterr().err.startswith("error: unknown profile 'b300', expected a file or one of vllm-b300")
