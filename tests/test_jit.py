"""Compiled code is taken where it is kept, made where it pays, and given up in one sentence."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sglang_dspark import jit

ROOT = Path(__file__).parents[1]
DECIDES = """
import sys
{before}
import numpy as np
from sglang_dspark import jit
from sglang_dspark.policies import allocate, survival_units
raised = jit.prepare()
lengths = allocate(survival_units(np.full((2, 3), 0.5, np.float32)), 3)
print(jit.stated(), jit.compiled(), jit.policy_loops() is not None, raised, lengths.tolist(), sep="|")
"""
NO_HOME = """
import os, pwd
for name in ("DSPARK_COMPILED_CACHE", "XDG_CACHE_HOME", "HOME"):
    os.environ.pop(name, None)
pwd.getpwuid = lambda number: {}[number]
"""
TINY = """
import numpy as np
from sglang_dspark.jit import njit

@njit
def doubled(values):
    for i in range(values.size):
        values[i] *= 2

def warm():
    doubled(np.ones(1))
"""
PREPARES = """
import tiny_loops
from sglang_dspark import jit
assert jit.prepare("tiny_loops") is None and jit.kept("tiny_loops")
stats = tiny_loops.doubled.stats
print(sum(stats.cache_misses.values()), sum(stats.cache_hits.values()))
"""


def python(code: str, folder: Path, **more: str) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(ROOT), str(folder)])
    environment = {**os.environ, "PYTHONPATH": path, jit.FOLDER: str(folder / "kept"), jit.SWITCH: "", **more}
    command = [sys.executable, "-c", code]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def printed(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return out.strip()


@pytest.mark.parametrize(
    "before, more, why",
    [
        ("sys.modules['numba'] = None", {}, "numba cannot be imported"),
        (
            "class B:\n find_spec = lambda s, n, *a: 1 / 0 if n == 'numba' else None\nsys.meta_path.insert(0, B())",
            {},
            "by zero",
        ),
        (NO_HOME, {}, "cannot be kept in DSPARK_COMPILED_CACHE: Could not determine home"),
        ("", {jit.SWITCH: "0"}, "NumPy (DSPARK_COMPILED=0)"),
        ("", {jit.SWITCH: "off"}, "DSPARK_COMPILED=off, expected 0 or 1"),
        ("", {jit.FOLDER: f"{__file__}/below"}, f"cannot be kept in {__file__}/below: Not a directory"),
    ],
)
def test_without_compiled_code_numpy_decides_and_says_why(before, more, why, tmp_path) -> None:
    said, *rest = printed(python(DECIDES.format(before=before), tmp_path, **more)).split("|")
    assert said.startswith("NumPy (") and why in said and "\n" not in said
    assert rest == ["False", "False", "None", "[2, 1]"]


@pytest.fixture
def fresh(monkeypatch, tmp_path) -> Path:
    """This process as if it had just started, with nothing kept in a folder of its own."""
    jit.policy_loops()
    monkeypatch.setattr(jit, "_here", jit._Process())
    monkeypatch.setattr(jit, "_folder_or_why", lambda: (tmp_path, "numba 1.2.3"))
    return tmp_path


def warmed(monkeypatch, warm) -> list[int]:
    """The rules' loops with another `warm`; how often it ran."""
    from sglang_dspark.policies import loops

    ran: list[int] = []
    monkeypatch.setattr(loops, "warm", lambda: (ran.append(1), warm()))
    return ran


def worth(monkeypatch, calls: int) -> None:
    monkeypatch.setattr(jit, "_WORTH_IT", calls)
    monkeypatch.setattr(jit, "_NOW_AND_THEN", 2)


def test_nothing_compiles_for_a_little_work_and_something_does_for_much(fresh, monkeypatch) -> None:
    worth(monkeypatch, 2)
    ran = warmed(monkeypatch, lambda: None)
    assert jit.compiled() and jit.stated() == "compiled (numba 1.2.3)" and not jit.kept()
    assert [jit.policy_loops() is None for _ in range(4)] == [True, True, True, False]
    assert jit.kept() and ran == [1]
    monkeypatch.setattr(jit, "_here", jit._Process())
    assert [jit.policy_loops() is None for _ in range(2)] == [True, False], "what is kept is used soon"
    with jit.numpy_only():
        assert jit.policy_loops() is None and not jit.compiled() and jit.stated() == "NumPy (asked for)"
    assert jit.compiled()


def test_numpy_goes_on_while_another_process_compiles(fresh, monkeypatch) -> None:
    fcntl = pytest.importorskip("fcntl")
    worth(monkeypatch, 0)
    ran = warmed(monkeypatch, lambda: None)
    with open(fresh / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert [jit.policy_loops() for _ in range(4)] == [None] * 4
    assert [jit.policy_loops() is None for _ in range(2)] == [True, False] and ran == [1]


def test_who_waits_is_told_and_who_loads_is_not(fresh, monkeypatch) -> None:
    said: list[str] = []
    for _ in range(2):
        monkeypatch.setattr(jit, "_here", jit._Process())
        warmed(monkeypatch, lambda: None)
        with jit.telling(said.append):
            assert jit.prepare() is None
    assert said == ["compiling, once on this machine: 10 to 30 s"]


def test_a_compiler_that_raises_leaves_numpy_for_good(fresh, monkeypatch, caplog) -> None:
    worth(monkeypatch, 1)
    ran = warmed(monkeypatch, lambda: 1 / 0)
    assert [jit.policy_loops() for _ in range(5)] == [None] * 5 and ran == [1]
    assert not jit.compiled() and not jit.kept() and jit.prepare() is None
    assert jit.stated() == f"NumPy (compiled code in {fresh} failed: ZeroDivisionError: division by zero)"
    assert [record.getMessage().count(str(fresh)) for record in caplog.records] == [1]


def test_of_two_processes_one_compiles_and_the_other_takes_what_it_kept(tmp_path) -> None:
    (tmp_path / "tiny_loops.py").write_text(TINY)
    both = [python(PREPARES, tmp_path) for _ in range(2)]
    assert sorted(map(printed, both)) == ["0 1", "1 0"]
    assert printed(python(PREPARES, tmp_path)) == "0 1"


def test_changed_sources_are_compiled_anew(monkeypatch, tmp_path) -> None:
    for pattern in jit._SOURCES:
        for source in ROOT.glob(pattern):
            copy = tmp_path / source.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(source.read_bytes())
    monkeypatch.setattr(jit, "__file__", str(tmp_path / "sglang_dspark" / "jit.py"))
    states = [jit._state_of_sources("numba 1", "3.11"), jit._state_of_sources("numba 2", "3.11")]
    for name in ("elementary.py", "loops/order.py"):
        with open(tmp_path / "sglang_dspark" / "policies" / name, "a") as file:
            file.write("# changed\n")
        states.append(jit._state_of_sources("numba 1", "3.11"))
    assert len(set(states)) == 4


def test_work_of_earlier_processes_counts(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(jit, "_folder_or_why", lambda: (tmp_path / "new", "numba 1.2.3"))
    assert [jit.add_work(1.5), jit.add_work(2.0)] == [1.5, 3.5]


def test_what_nothing_has_used_for_a_month_is_removed_and_nothing_else(tmp_path) -> None:
    long_ago = time.time() - 31 * 86_400
    names = {"own": "0" * 16, "old": "1" * 16, "used": "2" * 16, "foreign": "3" * 16, "other": "documents"}
    for what, name in names.items():
        folder = tmp_path / name
        folder.mkdir()
        for file in ("notes.txt",) if what == "foreign" else ("lock", f"{jit.POLICY_LOOPS}.kept"):
            (folder / file).touch()
            os.utime(folder / file, (long_ago, long_ago))
    os.utime(tmp_path / names["used"] / f"{jit.POLICY_LOOPS}.kept")
    jit._forget_unused(tmp_path / names["own"])
    assert {path.name for path in tmp_path.iterdir()} == set(names.values()) - {names["old"]}
