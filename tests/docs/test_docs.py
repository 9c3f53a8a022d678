"""The docs say what the code says: generated pages, every command and flag, links, what readers are told to type."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import generate
import pytest
from pages.commands import every_command
from pages.figures import figures_of_runs
from pages.server import prometheus
from typer.testing import CliRunner

from sglang_dspark import cli
from simulator.results.meanings import meaning

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def pages() -> dict[Path, str]:
    return generate.written()


def test_committed_pages_are_what_the_command_writes(pages: dict[Path, str]) -> None:
    for path, text in pages.items():
        assert path.exists() and path.read_text() == text, f"{path.name}: run python docs/generate.py"
    assert {path.name for path in generate.FOLDER.glob("*.md")} == set(generate.PAGES)


def test_a_changed_page_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(generate, "PAGES", {"figures.md": lambda: "another page"})
    monkeypatch.setattr(generate, "PARTS", {})
    monkeypatch.setattr(sys, "argv", ["generate.py", "--check"])
    with pytest.raises(SystemExit) as end:
        generate.main()
    said = capsys.readouterr().out
    assert end.value.code == 1 and "docs/reference/figures.md is not what the code says" in said
    assert "docs/reference/commands.md" in said  # a page that nothing writes any more


def test_every_command_is_documented_and_every_flag_says_what_it_does(pages: dict[Path, str]) -> None:
    text = pages[generate.FOLDER / "commands.md"]
    commands = every_command()
    assert {"simulate", "dspark tune", "dspark audit exact"} <= set(commands)
    for words, command in commands.items():
        section = text.partition(f"\n## {words}\n")[2].partition("\n## ")[0]
        assert section and (command.help or "").strip(), words
        for parameter in command.params:
            if {"--help", "--install-completion", "--show-completion"} & set(parameter.opts):
                continue
            assert (parameter.help or "").strip(), f"{words} {parameter.opts} says nothing"
            for flag in parameter.opts:
                assert flag.strip("-") in section or parameter.param_type_name == "argument", f"{words} {flag}"


def test_every_policy_is_listed_with_a_class_in_words() -> None:
    answer = CliRunner().invoke(cli.app, ["policies", "--json"])
    assert answer.exit_code == 0, answer.exception
    listed = json.loads(answer.stdout)
    assert all(isinstance(each["class"], str) and each["summary"] for each in listed)
    assert "property" not in CliRunner().invoke(cli.app, ["policies"]).stdout


def test_every_figure_has_a_meaning() -> None:
    known = figures_of_runs()
    assert len(known) > 60 and all(meaning(name) for name in known)
    assert meaning("p99_ttft_ms") == "99th percentile: from sending a request to its first token, waiting included"
    assert meaning("steady_mean_tpot_ms") and meaning("speed") is None and meaning("mean_ttft") is None


def test_prometheus_metrics_come_from_the_code_that_makes_them() -> None:
    found = {name: kind for name, kind, _, _ in prometheus()}
    assert found["sglang:dspark_faults_total"] == "counter" and found["sglang:dspark_profile_drift"] == "gauge"


PAGES = sorted([*DOCS.rglob("*.md"), *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"))])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_and_pictures_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name) if name else page
        assert file.exists(), f"{page.name}: {target}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(), flags=re.M)
            slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in slugs, f"{page.name}: {target}"


def test_pages_name_commands_flags_and_files_that_exist() -> None:
    """Of what hand-written pages and README tell a reader to type."""
    commands = every_command()
    flags = {flag for each in commands.values() for parameter in each.params for flag in parameter.opts}
    looked_at = 0
    flags |= set(re.findall(r"--speculative-dspark-[a-z-]+", (generate.FOLDER / "server.md").read_text()))
    for page in [ROOT / "README.md", *DOCS.glob("*.md")]:
        blocks = "\n".join(re.findall(r"```[a-z]*\n(.*?)```", page.read_text(), flags=re.S))
        blocks += "\n".join(re.findall(r"`((?:simulate|dspark) [^`]+)`", page.read_text()))
        for line in blocks.replace("\\\n", " ").splitlines():
            for words in re.findall(r"(?:^|&& |\$ )((?:simulate|dspark) ?[a-z-]*(?: (?:exact|live))?)", line):
                named = words.split()
                names = [" ".join(named[:size]) for size in range(len(named), 0, -1)]
                assert any(name in commands for name in names), f"{page.name}: {words}"
                for flag in re.findall(r"(?<![\w-])--[a-z][a-z-]+", line.partition(words)[2].partition(" && ")[0]):
                    assert flag in flags, f"{page.name}: {words} ... {flag}"
                    looked_at += 1
        for file in re.findall(r"python ((?:benchmarks|examples|docs)/\w+\.py)", page.read_text()):
            assert (ROOT / file).exists(), f"{page.name}: {file}"
    assert looked_at > 50


def test_the_extras_that_readers_are_told_of_exist() -> None:
    known = set(re.findall(r'extra == "([a-z]+)"', "\n".join(requires("sglang-dspark") or [])))
    for page in [ROOT / "README.md", *DOCS.glob("*.md")]:
        named = re.findall(r'(?:"\.|sglang-dspark)\[([a-z,]+)\]', page.read_text())
        assert {extra for names in named for extra in names.split(",")} <= known, page.name


def test_the_docs_build_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="needs the extra `docs`")
    pytest.importorskip("material", reason="needs the extra `docs`")
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--site-dir",
        str(tmp_path / "site"),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site" / "reference" / "commands" / "index.html").exists()


def test_readme_says_what_the_package_holds(tmp_path: Path) -> None:
    """What files settle; CI runs an example again, and `python benchmarks/check_readme.py all` every figure."""
    command = [sys.executable, "benchmarks/check_readme.py", "files"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, env=environment())
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("same  ") > 10


def test_a_figure_that_is_no_longer_true_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import check_readme

    other = re.sub(r"Of\s+\d+\s+that\s+ship", "Of 2 that ship", check_readme.README)
    monkeypatch.setattr(check_readme, "README", other)
    claims = list(check_readme.files(None))  # type: ignore[arg-type]
    assert [what for what, written, found in claims if written != found] == ["estimates that ship"]


def test_the_figure_is_what_its_command_draws(tmp_path: Path) -> None:
    matplotlib = pytest.importorskip("matplotlib", reason="needs matplotlib")
    kept = (DOCS / "how_it_decides.svg").read_text()
    if f"Matplotlib v{matplotlib.__version__}," not in kept:
        pytest.skip(f"drawn by another Matplotlib than {matplotlib.__version__}")
    command = [sys.executable, "benchmarks/one_decision.py", "--out", str(tmp_path / "again.svg")]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=60, env=environment())
    assert (tmp_path / "again.svg").read_text() == kept


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "80"}
