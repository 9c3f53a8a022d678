"""The document and the file: its numbers are the comparison's, and nothing in it can escape."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from importlib.resources import files
from pathlib import Path
from typing import Any

import msgspec
import pytest

pytest.importorskip("vl_convert", reason="needs the extra `report`")

from sglang_dspark.errors import InputError
from simulator.report import page as pages
from simulator.report.document import FORMAT, VERSION
from simulator.report.page import as_data, check_page, page, write_page
from simulator.results.report import plain_report
from tests.report.small_reports import HOSTILE, comparison, counted, hostile, one_load, several_loads


@pytest.fixture(autouse=True)
def no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bundling Vega takes seconds; the browser's tests have it."""
    monkeypatch.setattr(pages, "_library", lambda: "window.vegaEmbed = null; // </script>")


def chart(document: dict[str, Any], name: str) -> dict[str, Any]:
    return next(each for each in document["charts"] if each["id"] == name)


def test_the_document_says_its_version_and_goes_through_json() -> None:
    document = one_load()
    again = json.loads(as_data(document))
    assert (again["format"], again["version"]) == (FORMAT, VERSION) == ("sglang-dspark-page", 1)
    assert again["answer"].rstrip(".") and again["made"]["versions"]["sglang-dspark"]
    assert "digest of all inputs" in again["made"]["inputs"]


def test_every_number_is_the_comparison_s() -> None:
    results = {each["policy"]: each for each in plain_report(comparison())["results"]}
    best = one_load()["best"]["4"]
    base = next(each for each in comparison().results if each.policy == "fixed:k=7")
    for row in chart(one_load(), "figures")["rows"]:
        record = results[row["policy"]]
        assert row["tokens_s"] == pytest.approx(record["steady_output_throughput"], rel=1e-12)
        assert row["tpot_ms"] == pytest.approx(record["steady_mean_tpot_ms"], rel=1e-12)
        assert row["accept_length"] == pytest.approx(record["accept_length"], rel=1e-12)
        result = next(each for each in comparison().results if each.policy == row["policy"])
        if row["policy"] != "fixed:k=7":
            gap = comparison().gain(result, base)
            assert (row["gain"], row["low"], row["high"]) == (gap.mean, gap.low, gap.high)
    assert best in results
    for row in chart(one_load(), "latency")["rows"]:
        figure = {"Time to first": "ttft", "Time per outp": "tpot", "End-to-end la": "e2e_latency"}[row["what"][:13]]
        for share in ("median", "p90", "p95", "p99"):
            assert row[share] == pytest.approx(results[row["policy"]][f"steady_{share}_{figure}_ms"], rel=1e-12)


def test_counted_rows_add_up() -> None:
    for row in chart(one_load(), "positions")["rows"]:
        assert 0 <= row["accepted"] and 0 <= row["wasted"] and row["accepted"] + row["wasted"] <= 100 + 1e-9
    budget = chart(one_load(), "budget")["rows"]
    assert {row["policy"] for row in budget} == {name for _, name in counted()}
    assert all(1 <= row["low"] <= row["high"] <= 8 for row in budget)
    assert all(row["verified"] == 8 for row in budget if row["policy"] == "fixed:k=7")
    shares = [row["share"] for row in chart(one_load(), "reliability")["rows"] if row["domain"] == "math"]
    assert sum(shares) == pytest.approx(1)


def test_no_point_of_the_frontier_is_beaten_in_both() -> None:
    rows = chart(several_loads(), "frontier")["rows"]
    assert any(row["front"] for row in rows) and len({row["load"] for row in rows}) == 2
    for row in rows:
        beaten = any(other["speed"] > row["speed"] and other["tokens_s"] > row["tokens_s"] for other in rows)
        assert not (row["front"] and beaten)


class Elements(HTMLParser):
    """Every element with its attributes, and the text of the scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.cdata_elem == "script":
            self.scripts[-1] += data


@pytest.mark.parametrize("made", [one_load, several_loads, hostile])
def test_a_page_is_one_file_that_loads_nothing_and_runs_its_own_scripts_alone(made: Any) -> None:
    text = page(made())
    elements = Elements(text)
    assert [tag for tag, _ in elements.found].count("script") == 4 == len(elements.scripts)
    for tag, attributes in elements.found:
        assert not {"src", "srcset", "data", "action"} & set(attributes), tag
        assert all(not name.startswith("on") for name in attributes), tag
        assert tag not in ("img", "iframe", "object", "link", "base")
        assert (attributes.get("href") or "#").startswith("#")
    policy = next(each["content"] for tag, each in elements.found if tag == "meta" and "http-equiv" in each) or ""
    assert policy.startswith("default-src 'none'") and "unsafe-eval" not in policy
    for script in elements.scripts[1:]:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    assert json.loads(elements.scripts[0])["title"] == made()["title"]


def test_hostile_strings_are_data() -> None:
    text = page(hostile())
    assert HOSTILE not in text and "<img" not in text and "<script>alert" not in text
    assert json.loads(Elements(text).scripts[0])["made"]["command"].endswith(HOSTILE)


def test_the_page_is_the_same_every_time() -> None:
    assert page(one_load()) == page(msgspec.json.decode(msgspec.json.encode(one_load(), enc_hook=lambda v: v.item())))


def test_what_cannot_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"ends in \.html"):
        check_page(tmp_path / "report.pdf")
    with pytest.raises(InputError, match="cannot write"):
        write_page(tmp_path / "no" / "report.html", one_load())
    monkeypatch.setitem(__import__("sys").modules, "vl_convert", None)
    with pytest.raises(InputError, match=r'pip install "sglang-dspark\[report\]"'):
        check_page(tmp_path / "report.html")


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_wcag_aa_in_both_themes() -> None:
    style = files("simulator.report").joinpath("assets", "page.css").read_text()
    light = dict(re.findall(r"--([\w-]+): (#\w{6})", style.split("@media")[0]))
    dark = light | dict(
        re.findall(r"--([\w-]+): (#\w{6})", style.split("prefers-color-scheme: dark")[1].split("@media")[0])
    )
    for theme in (light, dark):
        for text in ("text", "muted", "link"):
            assert contrast(theme[text], theme["background"]) >= 4.5 and contrast(theme[text], theme["panel"]) >= 4.5, (
                text
            )
        assert contrast(theme["muted"], theme["passed"]) >= 4.5
        assert contrast(theme["text"], theme["warning"]) >= 4.5
        assert contrast(theme["admitted-text"], theme["admitted"]) >= 4.5
        for mark in (*(f"c{number}" for number in range(8)), "now", "focus", "warning-line"):
            assert contrast(theme[mark], theme["background"]) >= 3, mark
