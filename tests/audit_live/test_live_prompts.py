"""Prompt files, settings and the verdict's wording: no torch, no server."""

from __future__ import annotations

from pathlib import Path

import pytest

from sglang_dspark.audit.live.prompts import read_prompts
from sglang_dspark.audit.live.settings import AuditSettings
from sglang_dspark.errors import InputError


class Letters:
    def encode(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


def test_every_form_of_a_prompt(tmp_path: Path) -> None:
    forms = ('{"prompt": "ab"}', "", '{"text": "c"}', '{"turns": ["d", "e"]}', '{"input_ids": [7, 8]}')
    found = read_prompts(write(tmp_path / "p.jsonl", *forms), 10, Letters())
    assert [prompt.tokens for prompt in found] == [(97, 98), (99,), (100,), (7, 8)]
    assert [prompt.name for prompt in found] == ["p.jsonl:1", "p.jsonl:3", "p.jsonl:4", "p.jsonl:5"]


def test_limit_takes_the_first(tmp_path: Path) -> None:
    file = write(tmp_path / "p.jsonl", '{"prompt": "a"}', '{"prompt": "b"}', "not read")
    assert [prompt.tokens for prompt in read_prompts(file, 2, Letters())] == [(97,), (98,)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "p.jsonl:1"),
        ("[1]", "expected"),
        ('{"prompt": ""}', "expected"),
        ('{"prompt": 3}', "expected"),
        ('{"turns": []}', "expected"),
        ('{"input_ids": []}', "has no tokens"),
        ('{"input_ids": [1, -2]}', "has no tokens"),
        ('{"input_ids": [true]}', "has no tokens"),
        ('{"input_ids": "12"}', "has no tokens"),
        ("", "holds no prompt"),
    ],
)
def test_bad_prompts_are_named(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_prompts(write(tmp_path / "p.jsonl", line), 1, Letters())


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        read_prompts(tmp_path / "absent.jsonl", 1, Letters())
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="binary"):
        read_prompts(tmp_path / "binary", 1, Letters())
    with pytest.raises(InputError, match="--limit 0"):
        read_prompts(tmp_path / "absent.jsonl", 0, Letters())


def test_settings_name_the_flag() -> None:
    with pytest.raises(InputError, match=r"--least-cut 1.5 .* expected 0..1"):
        AuditSettings(least_cut=1.5)
    assert AuditSettings(skip=4, tokens=3).length == 7
