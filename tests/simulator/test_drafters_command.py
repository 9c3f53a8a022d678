"""`dspark drafters`: a table of what can be named, and JSON with everything about it."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from sglang_dspark.cli import app
from sglang_dspark.errors import InputError
from simulator.blocks.drafters import PUBLISHED


def output(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["drafters", *arguments], env={"COLUMNS": "200"}, catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def test_the_table_lists_every_drafter_with_model_gamma_and_source() -> None:
    text = output()
    rows = {name: [line for line in text.splitlines() if name in line.split()] for name in PUBLISHED}
    assert all(rows.values()), [name for name, lines in rows.items() if not lines]
    (flash,) = rows["dspark:deepseek-v4-flash"]
    assert "DeepSeek-V4-Flash-0731" in flash and " 7 " in flash and "unstated 2.92" in flash and "13640" in flash
    assert "dspark:qwen3-4b = dspark" in text and "math 5.56, code 5.16, chat 3.51" in text


def test_json_has_positions_and_what_is_assumed(tmp_path) -> None:  # type: ignore[no-untyped-def]
    every = {each["name"]: each for each in json.loads(output("--json"))}
    assert set(every) == set(PUBLISHED)
    pro = every["dspark:deepseek-v4-pro"]
    assert pro["gamma"] == 6 and "beyond 6" in pro["ends"] and pro["licence"] == "Apache-2.0"
    assert every["eagle3:qwen3-4b"]["sequential"] and not every["eagle3:qwen3-4b"]["confidence_head"]
    scaled = every["dspark:gemma4-12b"]["assumptions"]
    assert any("scaled" in stated["text"] for stated in scaled)
    own = tmp_path / "mine.json"
    own.write_text(json.dumps({"version": 1, "kind": "prefix", "all": [0.5, 0.25], "model": "Mine-7B"}))
    (mine,) = json.loads(output(str(own), "--json"))
    assert mine["conditional"] == {"all": [0.5, 0.5]} and mine["model"] == "Mine-7B"


def test_one_drafter_shows_its_positions() -> None:
    text = output("mtp1")
    assert "0.855" in text and "the full name has more" in text
    with pytest.raises(InputError, match="medusa"):
        CliRunner().invoke(app, ["drafters", "medusa"], catch_exceptions=False)
