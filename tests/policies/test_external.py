"""Rules from users' own packages: found by entry point, accepted once their contract has passed, or refused."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sglang_dspark.cli import app
from sglang_dspark.errors import InputError
from sglang_dspark.policies import find_policy, installed, make_policy, registry

ROOT = Path(__file__).parents[2]
HEAD = """
from dataclasses import dataclass
from typing import ClassVar
from sglang_dspark.policies import BudgetRule, Past, StoppingRule, parameter
"""
HALF = (
    HEAD
    + """
@dataclass(frozen=True)
class Half(BudgetRule):
    name: ClassVar[str] = "half"
    share: float = parameter(0.5, 0.0, 1.0, "share that is verified")

    def budget(self, past: Past) -> int:
        return int(self.share * past.num_requests * past.gamma)
"""
)
FORGETFUL = (
    HEAD
    + """
@dataclass(frozen=True)
class Half(StoppingRule):
    name: ClassVar[str] = "half"
    seen: ClassVar[list[int]] = []

    def admits(self, past: Past, admitted: int, tau: int, survival: int) -> bool:
        self.seen.append(survival)
        return len(self.seen) % 3 != 0
"""
)


def package(folder: Path, code: str, *, module: str = "halfway", rule: str = "half", value: str = "Half") -> None:
    """An installed package, as pip leaves it."""
    (folder / f"{module}.py").write_text(code)
    about = folder / f"{module}-1.2.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.2\n")
    (about / "entry_points.txt").write_text(f"[sglang_dspark.policies]\n{rule} = {module}:{value}\n")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of installed packages."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv("DSPARK_POLICIES_PASSED", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    registry.installed.cache_clear()
    yield tmp_path
    registry.installed.cache_clear()
    sys.modules.pop("halfway", None)


def test_it_is_known_by_name_and_its_contract_runs_once(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    package(site, HALF)
    assert installed()["half"].package == "halfway 1.2"
    policy = make_policy("half:share=0.25")
    assert policy.lossless and policy.kind == "budget"
    assert re.fullmatch(r"policy 'half' of halfway 1\.2: contract passed in \d+\.\d s\n", capsys.readouterr().err)
    assert make_policy("guard:inner=(half),baseline=(fixed:k=1)").lossless
    assert capsys.readouterr().err == ""
    found = subprocess.run(
        [sys.executable, "-c", "from sglang_dspark.policies import make_policy; print(make_policy('half'))"],
        capture_output=True,
        text=True,
        check=True,
        env=dict(os.environ),
    )
    assert found.stdout == "Half(floor=0, cap=None, share=0.5)\n" and found.stderr == ""


def test_it_is_listed_and_simulated(site: Path) -> None:
    package(site, HALF)
    listed = CliRunner().invoke(app, ["policies", "half"])
    assert listed.exit_code == 0 and "half  (budget, lossless, from halfway 1.2)" in listed.stdout
    run = ["-c", "from simulator.cli import main; main()", "--trace", "example", "--profile", "vllm-b300-dsv4-flash"]
    done = subprocess.run(
        [sys.executable, *run, "--limit", "20", "--policy", "half", "--policy", "fixed:k=3", "--concurrency", "4"],
        capture_output=True,
        text=True,
        env=dict(os.environ),
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    assert "half" in done.stdout


@pytest.mark.parametrize(
    ("code", "changed", "words"),
    [
        (FORGETFUL, {}, "fails its contract: .*check 'pure'.*two calls with the same input differ"),
        ("raise RuntimeError('no licence')", {}, "cannot be loaded from halfway:Half: RuntimeError: no licence"),
        ("Half = 3", {}, "3 is no policy class"),
        (HALF, {"rule": "third"}, "its class is named 'half', expected 'third'"),
        (HALF.replace("def budget", "def other"), {}, "Half lacks budget"),
        (HALF.replace("def budget", "def plan"), {}, "'plan' is the package's own in a BudgetRule"),
    ],
)
def test_what_is_broken_is_refused_in_a_sentence(site: Path, code: str, changed: dict[str, str], words: str) -> None:
    package(site, code, **changed)
    with pytest.raises(InputError, match=words):
        find_policy(changed.get("rule", "half"))
    assert make_policy("hull").lossless, "the others are not held up"


def test_one_name_has_one_owner(site: Path) -> None:
    package(site, HALF, rule="hull")
    with pytest.raises(InputError, match="policy 'hull' of halfway 1.2 is refused: sglang-dspark has a policy"):
        make_policy("fixed:k=3")
    (site / "halfway-1.2.dist-info" / "entry_points.txt").write_text("[sglang_dspark.policies]\nhalf = halfway:Half\n")
    package(site, HALF, module="elsewhere")
    registry.installed.cache_clear()
    with pytest.raises(InputError, match=r"'half' is offered by (halfway|elsewhere) 1\.2 and by (halfway|elsewhere)"):
        make_policy("half")


def test_contributing_s_example_runs_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    assert code is not None
    lines = code[1].splitlines()
    indent = min(len(line) - len(line.lstrip()) for line in lines if line.strip())
    (tmp_path / "example_rule.py").write_text("\n".join(line[indent:] for line in lines))
    monkeypatch.chdir(tmp_path)
    judged = CliRunner().invoke(app, ["policies", "--check", "example_rule:Half"])
    assert judged.exit_code == 0 and "verdict   holds" in judged.stdout, judged.output


def test_check_says_what_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "forgetful.py").write_text(FORGETFUL)
    monkeypatch.chdir(tmp_path)
    judged = CliRunner().invoke(app, ["policies", "--check", "forgetful:Half"])
    assert judged.exit_code == 1 and "check 'pure'" in judged.stdout and "verdict   FAILS" in judged.stdout
