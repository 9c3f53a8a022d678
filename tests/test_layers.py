"""The layout: who may import whom, no circle of files, and what imports without torch and sglang.

`MAY_IMPORT` is the one place where the layout is written down; docs/architecture.md draws it.
"""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {"sglang_dspark": "sglang_dspark", "simulator": "simulator", "dspark_kernels": "kernels/dspark_kernels"}

D, S = "sglang_dspark", "sglang_dspark.serving"
BASICS = {f"{D}.{name}" for name in ("errors", "jit", "keys", "workers", "cores", "statistics", "cost", "policies")}
MAY_IMPORT: dict[str, set[str]] = {
    D: set(),
    f"{D}.errors": set(),
    f"{D}.jit": set(),
    f"{D}.keys": set(),
    f"{D}.cores": set(),
    f"{D}.statistics": set(),
    f"{D}.workers": {f"{D}.errors"},
    f"{D}.on_ray": {f"{D}.errors", f"{D}.workers"},
    f"{D}.command": {f"{D}.errors", f"{D}.jit"},
    f"{D}.cost": {f"{D}.errors"},
    f"{D}.policies": {f"{D}.errors", f"{D}.jit", f"{D}.cost"},
    f"{D}.records": BASICS,
    f"{D}.calibration": {*BASICS, f"{D}.records"},
    f"{D}.demo": {f"{D}.errors"},
    f"{D}.audit": BASICS,
    f"{D}.audit.live": {*BASICS, f"{D}.demo"},
    f"{D}.live": {*BASICS, f"{D}.records", f"{D}.calibration"},
    "simulator.blocks": {*BASICS, f"{D}.records"},
    "simulator.traces": {*BASICS, "simulator.blocks"},
    "simulator.engine": {*BASICS, f"{D}.records", "simulator.blocks", "simulator.traces"},
    "simulator.results": {
        *BASICS,
        f"{D}.records",
        f"{D}.calibration",
        "simulator.blocks",
        "simulator.traces",
        "simulator.engine",
    },
    "simulator.report": {
        *BASICS,
        f"{D}.calibration",
        "simulator.blocks",
        "simulator.traces",
        "simulator.engine",
        "simulator.results",
    },
    "simulator": {
        *BASICS,
        f"{D}.command",
        f"{D}.on_ray",
        f"{D}.records",
        "simulator.blocks",
        "simulator.traces",
        "simulator.engine",
        "simulator.results",
        "simulator.report",
    },
    "simulator.tuning": {
        *BASICS,
        "simulator",
        "simulator.blocks",
        "simulator.traces",
        "simulator.engine",
        "simulator.results",
        "simulator.report",
    },
    f"{D}.cli": {
        *BASICS,
        D,
        f"{D}.command",
        f"{D}.records",
        f"{D}.calibration",
        f"{D}.demo",
        f"{D}.audit",
        f"{D}.audit.live",
        f"{D}.live",
        "simulator",
        "simulator.blocks",
        "simulator.report",
        "simulator.results",
        "simulator.tuning",
    },
    "dspark_kernels": set(),
    S: set(),
    f"{S}.base": BASICS,
    f"{S}.cpu": {*BASICS, f"{S}.base"},
    f"{S}.gpu": {*BASICS, f"{S}.base", "dspark_kernels"},
    f"{S}.feedback": {*BASICS, f"{D}.calibration", f"{S}.base"},
    f"{S}.recording": {*BASICS, D, f"{D}.records", f"{D}.calibration", f"{S}.base"},
    f"{S}.control": {*BASICS, f"{S}.base"},
    f"{S}.loop": {*BASICS, f"{S}.base", f"{S}.cpu", f"{S}.gpu", f"{S}.feedback", f"{S}.recording", f"{S}.control"},
    f"{S}.plugin": {
        *BASICS,
        f"{D}.live",
        f"{S}.base",
        f"{S}.cpu",
        f"{S}.gpu",
        f"{S}.feedback",
        f"{S}.recording",
        f"{S}.control",
        f"{S}.loop",
    },
}
"""Room -> rooms that it may import. A room is a folder or a file; a module belongs to the longest name that fits."""

HEAVY = {"torch", "triton", "sglang", "transformers", "tokenizers", "safetensors", "flashinfer"}
MAY_BE_HEAVY = (
    "dspark_kernels",
    f"{D}.demo",
    f"{D}.audit.live",
    f"{S}.cpu",
    f"{S}.gpu",
    f"{S}.base.admission",
    f"{S}.feedback.clock",
    f"{S}.feedback.copies",
    f"{S}.loop.batch_reader",
    f"{S}.loop.engine",
    f"{S}.loop.planner",
    f"{S}.loop.worker",
)
"""Modules (with all below them) that import torch or sglang when they are imported; nothing else does."""


def modules(root: Path = ROOT) -> dict[str, Path]:
    """Module name -> file of everything that is installed."""
    found = {}
    for package, folder in FOLDERS.items():
        for file in sorted((root / folder).rglob("*.py")):
            parts = file.relative_to(root / folder).with_suffix("").parts
            found[".".join((package, *(part for part in parts if part != "__init__")))] = file
    return found


def within(name: str, room: str) -> bool:
    return name == room or name.startswith(f"{room}.")


def room_of(name: str) -> str:
    return max((room for room in MAY_IMPORT if within(name, room)), key=len)


def imported(tree: ast.AST, name: str, file: Path, known: set[str]) -> Iterator[tuple[str, int]]:
    """(imported module, line) anywhere below a node of module `name`, lazy and TYPE_CHECKING imports included."""
    package = name.split(".") if file.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, node.module] if node.module else above)
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield (inner if inner in known else base), node.lineno


def arrows(root: Path = ROOT) -> Iterator[tuple[str, str, str]]:
    """(importing module, imported module, place) of all imports inside the project."""
    files = modules(root)
    for name, file in files.items():
        for target, line in imported(ast.parse(file.read_text()), name, file, set(files)):
            if target in files and target != name:
                yield name, target, f"{file.relative_to(root)}:{line}"


def forbidden(root: Path = ROOT) -> list[str]:
    """Imports that the table does not allow."""
    return [
        f"{place} imports {target}: {room_of(name)} may not import {room_of(target)}"
        for name, target, place in arrows(root)
        if room_of(name) != room_of(target) and room_of(target) not in MAY_IMPORT[room_of(name)]
    ]


def circle(graph: dict[str, set[str]]) -> list[str]:
    """A circle of the graph, or nothing."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def circle_of_files(root: Path = ROOT) -> list[str]:
    graph: dict[str, set[str]] = {name: set() for name in modules(root)}
    for name, target, _ in arrows(root):
        graph[name].add(target)
    return circle(graph)


def test_a_room_imports_only_what_lies_below() -> None:
    assert not forbidden(), "\n".join(forbidden())


def test_no_circle_of_files() -> None:
    assert not circle_of_files()


def test_the_table_names_rooms_that_exist_and_goes_one_way() -> None:
    names = set(modules())
    listed = set(MAY_IMPORT) | set().union(*MAY_IMPORT.values())
    assert listed <= names, f"no such rooms: {sorted(listed - names)}"
    assert set().union(*MAY_IMPORT.values()) <= set(MAY_IMPORT), "every room that may be imported has a row"
    assert not circle(MAY_IMPORT)
    assert set(MAY_BE_HEAVY) <= names


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for folder in FOLDERS.values():
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def plant(root: Path, name: str, line: str) -> None:
    file = modules(root)[name]
    file.write_text(file.read_text() + f"\n{line}\n")


@pytest.mark.parametrize(
    "name, line",
    [
        (f"{D}.policies.rules.guard", "from simulator.engine import settings"),
        (f"{D}.cost.model", "def late():\n    from sglang_dspark.policies import Past"),
        (f"{S}.base.steps", "if TYPE_CHECKING:\n    from sglang_dspark.serving.loop.decider import Decider"),
        ("simulator.cli", "import sglang_dspark.cli"),
        (f"{S}.feedback.drift", "from ..loop import decider"),
    ],
)
def test_a_planted_import_is_found(copy: Path, name: str, line: str) -> None:
    plant(copy, name, line)
    (found,) = forbidden(copy)
    assert modules(copy)[name].name in found


def test_a_planted_circle_is_found(copy: Path) -> None:
    plant(copy, f"{D}.cost.curves", "def late():\n    from sglang_dspark.cost.profiles import load_profile")
    found = circle_of_files(copy)
    assert {f"{D}.cost.curves", f"{D}.cost.profiles"} <= set(found)
    assert not forbidden(copy), "within a room every import is allowed, a circle is not"


def is_light(name: str) -> bool:
    return not any(within(name, heavy) for heavy in MAY_BE_HEAVY)


def python(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_all_but_the_listed_modules_import_where_the_heavy_packages_are_missing() -> None:
    names = [name for name in modules() if is_light(name)]
    assert {f"{D}.policies.base", f"{S}.base.options", f"{S}.loop.decider", "simulator.engine.replica"} <= set(names)
    block = f"import sys; sys.modules.update(dict.fromkeys({sorted(HEAVY)}))"
    listed = ", ".join(name for name in names if not name.endswith("__main__"))
    assert python(f"{block}; import {listed}; print('ok')") == "ok"


def test_the_core_imports_nothing_heavy_where_it_is_there() -> None:
    code = f"import sys, sglang_dspark, simulator; print([name for name in {sorted(HEAVY)} if name in sys.modules])"
    assert python(code) == "[]"


def test_the_package_itself_imports_nothing() -> None:
    loaded = python("import sys; before = set(sys.modules); import sglang_dspark; print(set(sys.modules) - before)")
    assert loaded == "{'sglang_dspark'}"
