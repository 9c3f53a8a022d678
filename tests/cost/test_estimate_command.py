"""`dspark profile --estimate` as a user calls it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sglang_dspark.cli import main
from sglang_dspark.cost import load_profile

BASE = ("--estimate", "--gpu", "h100_sxm", "--model", "Qwen3-8B")


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr("sys.argv", ["dspark", "profile", *arguments])
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_it_writes_a_profile_that_says_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("aiconfigurator_core", reason="needs aiconfigurator-core (extra `estimate`)")
    out = tmp_path / "mine.json"
    options = ("--gemm", "fp8_block", "--kv", "bfloat16", "--tp", "1", "--anchor", "4:5.39")
    assert call(monkeypatch, *BASE, *options, "--out", str(out)) == 0
    printed = " ".join(capsys.readouterr().out.split())
    for part in ("estimate, not measured: such step times were off by", "draft: assumed: 5 layers", "gemm fp8_block"):
        assert part in printed
    assert "simulate --profile estimate:h100_sxm/Qwen3-8B,gemm=fp8_block,kv=bfloat16,anchor=4:5.39" in printed
    assert load_profile(str(out)).is_estimate
    first = out.read_bytes()
    assert call(monkeypatch, *BASE, *options, "--out", str(out)) == 0
    assert out.read_bytes() == first and json.loads(first)["meta"]["anchors"] == ["4:5.39"]


def test_the_list_names_gpus_precisions_and_models(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("aiconfigurator_core", reason="needs aiconfigurator-core (extra `estimate`)")
    assert call(monkeypatch, "--estimate", "--list", "--gpu", "a100_sxm") == 0
    printed = capsys.readouterr().out
    assert "a100_sxm: 80 GiB, tp 1..8" in printed and "gemm: bfloat16\n" in printed
    from sglang_dspark.cost.estimate import library

    monkeypatch.setattr(library, "precisions_of", lambda gpu, part: ("bfloat16",))  # reading all tables takes a minute
    assert call(monkeypatch, "--estimate", "--list") == 0
    printed = capsys.readouterr().out
    for name in ("h100_sxm", "b300_sxm", "l40s", "Qwen/Qwen3-8B", "Qwen/Qwen3-14B", "deepseek-ai/DeepSeek-V4-Flash"):
        assert name in printed


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "--out is needed"),
        (
            ("--url", "http://localhost:1", "--out", "x.json", "--gpu", "h100_sxm"),
            "--gpu does nothing without --estimate",
        ),
        (("--list",), "--list does nothing without --estimate"),
        ((*BASE, "--out", "x.json", "--url", "http://localhost:1"), "--url does nothing with --estimate"),
        ((*BASE, "--out", "x.json", "--windows", "5"), "--windows does nothing with --estimate"),
        (BASE, "--gpu, --model and --out are needed with --estimate"),
        (("--estimate", "--list", "--model", "Qwen3-8B"), "--model does nothing with --list"),
        ((*BASE, "--out", "no/such/folder/x.json"), "cannot write no/such/folder/x.json"),
        ((*BASE, "--out", "x.json", "--anchor", "four"), "anchor 'four' is refused"),
    ],
)
def test_bad_flags_are_one_line_and_nothing_is_written(
    arguments: tuple[str, ...],
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(monkeypatch, *arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and says in error and len(error.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())
