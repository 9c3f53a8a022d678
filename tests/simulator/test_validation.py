"""What others measured: no error has grown, the page says what was found, and results quote nothing better."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from command_line import PROFILE, call

from simulator.results.accuracy import Known, accuracy

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "validation.md"
RUN = ("--trace", "example", "--limit", "60", "--replications", "1", "--jobs", "1")
FRONTIER = "V4-Pro frontier, gains over k = 7, predicted loads"
FIGURE_8 = "Figure 8, DSpark-5 throughput a GPU"
Module = Callable[[str], ModuleType]


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Module:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return lambda name: importlib.import_module(f"validation.{name}")


def test_no_error_has_grown() -> None:
    pytest.importorskip("aiconfigurator_core", reason="needs aiconfigurator-core (extra `estimate`)")
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "validate.py"), "--check"], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") > 60 and "predicted" in done.stdout


def test_an_error_that_grows_is_found(module: Module) -> None:
    check, rows = module("check"), module("rows")
    kept = check.kept()
    (group, what), row = next(item for item in kept.items() if item[1].unit == "gain")

    def said(one: object) -> list[str]:
        return check.grown([rows.Section("x", "x", "", (rows.Group(group, (one,)),))], kept)

    worse = 0.01 if row.error >= 0 else -0.01
    assert said(row) == []
    assert said(replace(row, predicted=row.published)) == [], "a smaller error is no complaint"
    assert f"{group}, {what}: off by" in said(replace(row, predicted=row.predicted + worse))[0]
    better = rows.CONSTRUCTION if row.kind == rows.PREDICTED else rows.PREDICTED
    assert "and was" in said(replace(row, kind=better))[0]
    assert "not among the rows kept" in said(replace(row, what="another"))[0]


def test_what_the_rows_must_show(module: Module) -> None:
    rows = module("rows")
    groups: dict[str, list] = {}
    for (group, _), row in module("check").kept().items():
        groups.setdefault(group, []).append(row)
    figure8, budget = groups[FIGURE_8], groups["Figure 8, verification budget (anchor counted)"]
    assert rows.errors(figure8).mean <= 3 and rows.errors(budget).mean <= 0.4
    assert {row.kind for row in (*figure8, *budget)} == {rows.IN_SAMPLE}, "its step times are the figure's own"
    frontier = groups[FRONTIER]
    assert len(frontier) == 12 and {row.kind for row in frontier} == {rows.PREDICTED}
    assert rows.errors(frontier).mean <= 3 and rows.errors(frontier).largest <= 7
    rocm = groups["ROCm, gain of adaptive verification over k = 7"]
    assert len(rocm) == 7 and all(row.published * row.predicted > 0 and row.kind == rows.IN_SAMPLE for row in rocm)
    assert all(row.kind == rows.CONSTRUCTION for row in groups["Figure 2, conditional acceptance"])


def test_results_quote_the_page_and_nothing_better(module: Module, capsys: pytest.CaptureFixture[str]) -> None:
    kept, errors = module("check").kept(), module("rows").errors
    page, known = PAGE.read_text(), accuracy()
    for group, quoted in ((FIGURE_8, known.figure8), (FRONTIER, known.frontier)):
        found = errors([row for (name, _), row in kept.items() if name == group])
        expected = Known(found.count, round(found.mean, 1), round(found.largest, 1))
        assert np.allclose([*_values(quoted)], [*_values(expected)], atol=0.051)
        assert f"| {quoted.count} | {quoted.mean:.1f} {found.unit} | {quoted.largest:.1f} |" in page
    said = " ".join(call(capsys, "--profile", PROFILE, *RUN, "--only", "--policy", "fixed:k=3").out.split())
    units = {" points": known.frontier, "": known.captured, " %": known.figure8}
    for unit, quoted in (*units.items(), ("", known.production)):
        assert f"{quoted.mean:.1f}{unit} (at most {quoted.largest:.1f})" in said
    assert "docs/validation.md" in said
    sweep = call(capsys, "--profile", PROFILE, *RUN, "--concurrency", "4,8", "--only", "--policy", "fixed:k=3").out
    assert sweep.count("docs/validation.md") == 1
    report = call(capsys, "--profile", PROFILE, *RUN, "--only", "--policy", "fixed:k=3", "--json").report
    assert "docs/validation.md" in report["accuracy"]


def test_an_estimate_quotes_its_own_page(capsys: pytest.CaptureFixture[str]) -> None:
    run = ("--profile", "estimate-h100-qwen3-8b-bf16", *RUN, "--only", "--policy", "fixed:k=3", "--json")
    report = call(capsys, *run).report
    assert report["accuracy"] is None and any("estimate, not measured" in one for one in report["warnings"])


def _values(known: Known) -> tuple[float, ...]:
    return known.count, known.mean, known.largest
