"""`simulate --report` and `dspark tune --report` as a user calls them."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vl_convert", reason="needs the extra `report`")

from sglang_dspark import cli
from simulator.cli import main as simulate_main
from simulator.report import page as pages

PROFILE = ("--profile", "vllm-b300-dsv4-flash")
LENGTHS = ("--random-input-len", "60", "--random-output-len", "16", "--random-range-ratio", "0.5")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pages, "_library", lambda: "")
    return tmp_path


def call(capsys: pytest.CaptureFixture[str], main: Any, *arguments: str) -> tuple[int, str, str]:
    argv, status = sys.argv, 0
    sys.argv = ["/somewhere/simulate", *arguments]
    try:
        main()
    except SystemExit as end:
        status = int(end.code or 0)
    finally:
        sys.argv = argv
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def document(path: Path) -> Any:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', path.read_text(), re.S)
    assert found is not None
    return json.loads(found[1])


def test_a_comparison_s_page_has_the_numbers_of_its_json(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = (*LENGTHS, "--num-prompts", "80", *PROFILE, "--concurrency", "4", "--only", "--jobs", "1", "--json")
    flags = (*flags, "--policy", "fixed:k=7", "--policy", "hull", "--replications", "2", "--report", "page.html")
    status, out, err = call(capsys, simulate_main, *flags)
    assert status == 0, err
    report, found = json.loads(out), document(here / "page.html")
    assert found["made"]["command"] == " ".join(["simulate", *flags])
    assert found["answer"].lower().startswith(report["verdict"].replace(" %", "\u00a0%").lower()[:30])
    figures = next(each for each in found["charts"] if each["id"] == "figures")["rows"]
    for row, result in zip(figures, report["results"], strict=True):
        assert row["policy"] == result["policy"]
        assert row["tokens_s"] == pytest.approx(result["steady_output_throughput"], rel=1e-12)
    notes = [each["note"] for each in found["charts"] if each["id"] == "sensitivity"]
    assert "--sensitivity" in notes[0]


def test_an_open_loop_and_none_alone_make_pages_too(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = (*LENGTHS, "--num-prompts", "40", *PROFILE, "--only", "--jobs", "1", "--replications", "1")
    status, _, err = call(
        capsys,
        simulate_main,
        *base,
        "--request-rate",
        "4,8",
        "--policy",
        "none",
        "--policy",
        "hull",
        "--report",
        "a.html",
    )
    assert status == 0, err
    assert document(here / "a.html")["unit"] == "requests a second"
    status, _, err = call(capsys, simulate_main, *base, "--concurrency", "4", "--policy", "none", "--report", "b.html")
    assert status == 0, err
    notes = {each["id"]: each["note"] for each in document(here / "b.html")["charts"]}
    assert notes["budget"] == notes["positions"] == "No policy of this report drafts."


def test_a_search_s_page_has_its_trials_and_its_robustness(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("optuna", reason="needs the extra `tune`")
    flags = (*LENGTHS, "--num-prompts", "200", *PROFILE, "--concurrency", "4", "--requests", "60", "--workers", "1")
    status, out, err = call(capsys, cli.main, "tune", *flags, "--trials", "10", "--json", "--report", "page.html")
    assert status == 0, err
    result, found = json.loads(out), document(here / "page.html")
    charts = {each["id"]: each["rows"] for each in found["charts"]}
    assert [row["regret"] for row in charts["robustness"]] == [
        each["regret"] for each in result["robustness"]["changes"]
    ]
    done = [each for each in result["trials"] if not each["pruned"]]
    assert [row["policy"] for row in charts["trials"]] == [each["candidate"] for each in done]
    held = {each["candidate"]: each["value"] for each in result["held_out"]}
    assert {row["policy"]: row["tokens_s"] for row in charts["figures"]} == pytest.approx(held)
    assert "sglang.launch_server" in found["made"]["inputs"]["serve it with"]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--report", "page.pdf"), "expected a name that ends in .html"),
        (("--report", "nowhere/page.html"), "cannot write nowhere/page.html"),
        (("--report", "x.html", "--output", "x.html"), "--output and --report name the same file"),
    ],
)
def test_a_page_that_cannot_be_is_refused_before_anything_runs(
    capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], says: str
) -> None:
    status, _, err = call(capsys, simulate_main, "--trace", "example", *PROFILE, "--concurrency", "4", *flags)
    assert status == 2 and says in err and "Traceback" not in err


@pytest.mark.parametrize("main", [simulate_main, cli.main])
def test_without_the_extra_the_remedy_is_one_sentence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, main: Any
) -> None:
    monkeypatch.setitem(sys.modules, "vl_convert", None)
    words = ("tune",) if main is cli.main else ()
    status, _, err = call(
        capsys, main, *words, "--trace", "example", *PROFILE, "--concurrency", "4", "--report", "page.html"
    )
    assert status == 2 and 'pip install "sglang-dspark[report]"' in err and len(err.splitlines()) == 1
