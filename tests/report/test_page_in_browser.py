"""The page in headless Chromium: by keyboard and by mouse, its numbers against Python's, both themes, two widths."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

pytest.importorskip("vl_convert", reason="needs the extra `report`")
pytest.importorskip("playwright", reason="needs the extra `browser`")

from playwright.sync_api import Browser, Page, sync_playwright

from simulator.report.page import as_data, write_page
from tests.report.small_reports import HOSTILE, hostile, one_load, several_loads

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium, such as Debian's package chromium"),
]
WIDTHS = {"desktop": 1280, "phone": 360}


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        flags = ["--no-sandbox"] if os.geteuid() == 0 else []
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield found
        found.close()


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("pages")
    for name, document in (("one", one_load()), ("several", several_loads()), ("hostile", hostile())):
        write_page(made / f"{name}.html", document)
    return made


class Opened:
    """A page that is drawn. complaints: console messages, errors, dialogs and requests to anywhere."""

    def __init__(self, browser: Browser, path: Path, width: int = 1280, scheme: Any = "light") -> None:
        self.context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
        self.page: Page = self.context.new_page()
        self.complaints: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self._requested(request.url))
        self.page.on("dialog", lambda dialog: self.complaints.append(f"dialog {dialog.message}"))
        self.page.goto(path.as_uri())
        self.page.wait_for_selector("html[data-ready=yes]", timeout=60_000)

    def _requested(self, url: str) -> None:
        if not url.startswith(("file:", "data:", "blob:")):
            self.complaints.append(url)


@pytest.fixture
def opened(browser: Browser, folder: Path) -> Iterator[Any]:
    pages: list[Opened] = []

    def open_page(name: str, **more: Any) -> Opened:
        pages.append(Opened(browser, folder / f"{name}.html", **more))
        return pages[-1]

    yield open_page
    for each in pages:
        each.context.close()


def plain(document: dict[str, Any]) -> Any:
    return json.loads(as_data(document))


def chart(document: Any, name: str) -> Any:
    return next(each for each in document["charts"] if each["id"] == name)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["one", "several"])
def test_it_draws_without_a_word_and_fits(opened: Any, name: str, width: str, scheme: str) -> None:
    found = opened(name, width=WIDTHS[width], scheme=scheme)
    page = found.page
    assert found.complaints == []
    assert page.evaluate("document.documentElement.scrollWidth") <= WIDTHS[width]
    drawn = sum(len(each["panels"]) for each in (one_load if name == "one" else several_loads)()["charts"]) + 1
    assert page.locator("svg[role=graphics-document], .chart svg").count() >= drawn
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 27)"}[scheme]
    wide = page.evaluate("[...document.querySelectorAll('.chart svg')].map(e => e.getBoundingClientRect().width)")
    assert all(0 < each <= WIDTHS[width] for each in wide)


@pytest.mark.parametrize("made", [("one", one_load), ("several", several_loads)])
def test_tables_hold_python_s_numbers(opened: Any, made: Any) -> None:
    name, build = made
    page, document = opened(name).page, plain(build())
    for each in document["charts"]:
        kept = {choice["field"]: choice["first"] for choice in each["filters"]}
        rows = [row for row in each["rows"] if all(row[field] == value for field, value in kept.items())]
        cells = page.evaluate(
            "id => [...document.querySelectorAll(`#${id} tbody tr`)].map(row => [...row.cells].map("
            "cell => [cell.dataset.field, cell.dataset.value ?? cell.textContent]))",
            each["id"],
        )
        fields = [column["field"] for column in each["columns"] if column["field"] not in kept]
        assert len(cells) == (len(rows) if each["panels"] or each["id"] == "figures" else 0)
        for row, shown in zip(rows, cells, strict=False):
            assert [field for field, _ in shown] == fields
            for field, text in shown:
                value = row[field]
                if isinstance(value, bool) or value is None:
                    assert text == ("yes" if value else "")
                else:
                    assert (float(text) == value) if isinstance(value, int | float) else (text == value)
    assert document["answer"] == page.inner_text("#answer")


def marks(page: Page, name: str) -> list[str]:
    """What a screen reader says of the points of a chart."""
    said = page.evaluate(
        "id => [...document.querySelectorAll(`#${id} [aria-roledescription=point]`)].map(e => e.ariaLabel)", name
    )
    return [str(each) for each in said]


def test_marks_stand_where_the_numbers_say(opened: Any) -> None:
    """A mark's label for screen readers is what Vega drew: of every policy the speed, throughput and gain of Python."""
    page, document = opened("one").page, plain(one_load())
    labels = marks(page, "frontier")
    rows = chart(document, "frontier")["rows"]
    assert len(labels) == len(rows)
    for row in rows:
        (label,) = [each for each in labels if f"policy: {row['policy']}" in each]
        assert f"tokens/s a user: {row['speed']:,.1f}" in label
        assert f"tokens/s of the server: {row['tokens_s']:,.0f}" in label
    labels = marks(page, "gain")
    rows = [row for row in chart(document, "gain")["rows"] if row["over"] == "the best baseline there"]
    for row in rows:
        (label,) = [each for each in labels if each.startswith(f"{row['policy']} at 4: gain")]
        assert f"gain {100 * row['gain']:+.1f} % [{100 * row['low']:+.1f}, {100 * row['high']:+.1f}]" in label


def test_choosing_another_load_shows_its_numbers(opened: Any) -> None:
    page, document = opened("several").page, plain(several_loads())
    select = page.locator("#latency select")
    select.focus()
    page.keyboard.press("Home" if select.input_value() == "4" else "End")
    load = select.input_value()
    rows = [row for row in chart(document, "latency")["rows"] if row["load"] == load]
    page.wait_for_function(
        "want => JSON.stringify([...document.querySelectorAll('#latency tbody td[data-field=median]')]"
        ".map(e => Number(e.dataset.value))) === JSON.stringify(want)",
        arg=[row["median"] for row in rows],
    )


def case_of(document: Any, **keys: str) -> Any:
    return next(each for each in document["explorer"]["cases"] if all(each[key] == keys[key] for key in keys))


def admitted(page: Page) -> list[int]:
    """Tokens that are shown as verified, request * gamma + position."""
    return page.evaluate("[...document.querySelectorAll('#blocks td.admitted')].map(e => Number(e.dataset.token))")


def verified(case: Any, policy: str) -> set[int]:
    told = next(each for each in case["policies"] if each["name"] == policy)
    gamma = case["gamma"]
    return {request * gamma + at for request, length in enumerate(told["lengths"]) for at in range(length)}


def test_the_explorer_by_keyboard(opened: Any) -> None:
    found = opened("one")
    page, document = found.page, plain(one_load())
    first = document["explorer"]["first"]
    case = case_of(document, drafter="DSpark", domain="math", load=first["load"])
    assert set(admitted(page)) == verified(case, first["policy"])
    # From the top of the page, Tab alone reaches the explorer and everything in it.
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the explorer"
    page.keyboard.press("Enter")
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "cursor":
            break
    assert page.evaluate("document.activeElement.id") == "cursor"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
    page.keyboard.press("Home")
    assert admitted(page) == [] and "Before the first token" in page.inner_text("#step-text")
    shown = page.inner_text("#step-text")
    tau = f"tau {case['tau'][0]:,.2f} tokens"
    assert tau in shown
    told = next(each for each in case["policies"] if each["name"] == first["policy"])
    price = case["prices"][told["prices"]]
    for step in range(1, 4):
        page.keyboard.press("ArrowRight")
        shown, token = page.inner_text("#step-text"), case["order"][step - 1]
        assert shown.startswith(
            f"Token {step} of {len(case['order'])} in the order: request {token // 7 + 1}, position"
        )
        assert f"tau {case['tau'][step]:,.2f} tokens, T {price['step_ms'][step]:,.3f} ms" in shown
        assert f"Theta {price['theta'][step]:,.0f} tokens/s" in shown
        assert set(admitted(page)) == verified(case, first["policy"]) & set(case["order"][:step])
    page.keyboard.press("PageUp")
    assert page.inner_text("#step-text").startswith("Token 13 of")
    page.keyboard.press("PageDown")
    page.keyboard.press("ArrowLeft")
    assert page.inner_text("#step-text").startswith("Token 2 of")
    page.keyboard.press("End")
    assert set(admitted(page)) == verified(case, first["policy"])
    # Another drafter, by keyboard: its cases, and the focus stays.
    select = page.locator("#explorer-controls select").first
    select.focus()
    page.keyboard.press("ArrowDown")
    assert select.input_value() == "DFlash" and page.evaluate("document.activeElement.tagName") == "SELECT"
    other = case_of(document, drafter="DFlash", domain="math", load=first["load"])
    assert set(admitted(page)) == verified(other, first["policy"])
    assert "no confidence head" in page.inner_text("#explorer-rule")
    assert found.complaints == []


def test_the_explorer_by_mouse(opened: Any) -> None:
    found = opened("several")
    page, document = found.page, plain(several_loads())
    first = document["explorer"]["first"]
    controls = page.locator("#explorer-controls select")
    controls.nth(1).select_option("chat")
    for policy in [
        each["name"] for each in case_of(document, drafter="DSpark", domain="chat", load=first["load"])["policies"]
    ]:
        controls.nth(3).select_option(policy)
        case = case_of(document, drafter="DSpark", domain="chat", load=first["load"])
        page.get_by_role("button", name="To the policy's last").click()
        assert set(admitted(page)) == verified(case, policy)
        told = next(each for each in case["policies"] if each["name"] == policy)
        row = page.locator(f'#verdicts tr[data-policy="{policy}"] td[data-value]')
        shown = [float(value) for value in row.evaluate_all("all => all.map(e => e.dataset.value)")]
        assert shown == [told[key] for key in ("verified", "committed", "wasted", "step_ms", "expected")]
    token = case["order"][6]
    page.locator(f'#blocks td[data-token="{token}"]').click()
    assert page.inner_text("#step-text").startswith("Token 7 of")
    page.get_by_role("button", name="Next").click()
    page.get_by_role("button", name="Back").click()
    page.get_by_role("button", name="Back").click()
    assert page.inner_text("#step-text").startswith("Token 6 of")
    page.get_by_role("button", name="First").click()
    assert admitted(page) == []
    controls.nth(0).select_option("MTP-1")
    assert page.locator("#blocks thead th").count() == 2, "one position"
    assert "cannot run here" in page.inner_text("#verdicts")
    assert found.complaints == []


def test_pictures_and_data_are_saved(opened: Any) -> None:
    found = opened("one", scheme="dark")
    page = found.page
    for name in ("gain", "positions"):
        with page.expect_download() as download:
            page.locator(f"#{name} .actions button", has_text="PNG").click()
        assert download.value.suggested_filename == f"{name}.png"
        assert Path(download.value.path()).read_bytes().startswith(b"\x89PNG")
        with page.expect_download() as download:
            page.locator(f"#{name} .actions button", has_text="SVG").click()
        root = ElementTree.parse(download.value.path()).getroot()
        assert root.tag.endswith("svg") and "Gain by load" in ElementTree.tostring(root, "unicode") or name != "gain"
    with page.expect_download() as download:
        page.locator("#save-data").click()
    assert json.loads(Path(download.value.path()).read_text()) == plain(one_load())
    assert found.complaints == []


def test_hostile_strings_are_shown_as_they_are(opened: Any) -> None:
    found = opened("hostile")
    page = found.page
    assert page.title().startswith("</script>") and page.inner_text("#answer").startswith("</script>")
    assert HOSTILE.split("\u2028")[0] in page.inner_text("#command")
    assert page.locator("img").count() == 0 and page.locator("script").count() == 4
    page.locator("#frontier [role=graphics-symbol]").first.hover(force=True)
    assert found.complaints == []


def test_what_cannot_be_seen_is_named(opened: Any) -> None:
    page = opened("one").page
    unnamed = page.evaluate(
        "[...document.querySelectorAll('button, select, input, svg.marks, [role=region]')].filter(e => "
        "!(e.ariaLabel || e.getAttribute('aria-labelledby') || e.closest('label') || e.textContent.trim())).length"
    )
    assert unnamed == 0
    levels = page.evaluate("[...document.querySelectorAll('h1, h2, h3')].map(e => Number(e.tagName[1]))")
    assert levels.count(1) == 1 and all(b - a <= 1 for a, b in zip(levels, levels[1:], strict=False))
    assert page.evaluate("document.documentElement.lang") == "en"
