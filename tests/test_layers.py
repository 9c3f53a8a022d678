"""Imports point one way, and the core imports without torch and sglang."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

CORE = {"calibration", "cores", "cost", "errors", "policies", "records"}
ALLOWED: dict[str, set[str]] = {
    "sglang_dspark": set(),
    "sglang_dspark.cores": set(),
    "sglang_dspark.errors": set(),
    "sglang_dspark.cost": {"errors"},
    "sglang_dspark.policies": {"cost", "errors"},
    "sglang_dspark.records": {"policies", "cost", "errors"},
    "sglang_dspark.calibration": {"records", "policies", "cost", "errors"},
    "sglang_dspark.demo": {"errors"},
    "sglang_dspark.audit": CORE | {"demo"},
    "sglang_dspark.live": CORE,
    "sglang_dspark.cli": CORE | {"audit", "demo", "live", "simulator", "sglang_dspark"},
    "sglang_dspark.serving": CORE | {"live", "demo", "dspark_kernels", "sglang_dspark"},
    "simulator": CORE | {"cli"},
    "dspark_kernels": set(),
    "dspark_profiles": set(),
}
"""Layer -> layers that it may import (prefix sglang_dspark. left out); none may import one that imports it."""

HEAVY = {"torch", "triton", "sglang", "transformers", "tokenizers", "safetensors", "flashinfer"}
NEEDS_MORE = "sglang_dspark.audit.live"  # talks to a live server: httpx and a tokenizer come with extra `serve`
MAY_BE_HEAVY = {"sglang_dspark.serving", "sglang_dspark.demo", "dspark_kernels"}
FOLDERS = {"sglang_dspark": "sglang_dspark", "simulator": "simulator", "dspark_kernels": "kernels/dspark_kernels"}


def layer_of(module: str) -> str:
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "sglang_dspark" else parts[0]


def modules() -> Iterator[tuple[str, Path]]:
    """(module name, file) of everything that is installed."""
    for package, folder in FOLDERS.items():
        for file in sorted((ROOT / folder).rglob("*.py")):
            parts = file.relative_to(ROOT / folder).with_suffix("").parts
            name = ".".join((package, *(part for part in parts if part != "__init__")))
            yield name, file


def is_core(name: str) -> bool:
    return layer_of(name) not in MAY_BE_HEAVY and not name.startswith(NEEDS_MORE)


def imports(tree: ast.AST, name: str, file: Path) -> Iterator[tuple[str, int]]:
    """(imported module, line) anywhere below a node of module `name`; relative names are resolved."""
    package = name.split(".") if file.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                base = package[: len(package) - node.level + 1]
                yield ".".join([*base, node.module] if node.module else base), node.lineno
            elif node.module == "sglang_dspark":
                named = {alias.name for alias in node.names} - {"__version__"}
                yield from ((f"sglang_dspark.{part}", node.lineno) for part in named)
            elif node.module:
                yield node.module, node.lineno


def runs_at_import(tree: ast.Module) -> Iterator[ast.stmt]:
    """Statements outside functions, classes' methods and TYPE_CHECKING blocks."""
    todo: list[ast.stmt] = list(tree.body)
    while todo:
        node = todo.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        inner = [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]
        todo.extend(inner)
        if not inner:
            yield node


@pytest.mark.parametrize("layer", sorted({layer_of(name) for name, _ in modules()}))
def test_a_layer_imports_only_what_lies_below(layer: str) -> None:
    assert layer in ALLOWED, f"say in ALLOWED what the new layer {layer} may import"
    allowed = {layer, *(name if name in ALLOWED else f"sglang_dspark.{name}" for name in ALLOWED[layer])}
    found = []
    for name, file in modules():
        if layer_of(name) != layer:
            continue
        for imported, line in imports(ast.parse(file.read_text()), name, file):
            target = layer_of(imported)
            if target in ALLOWED and target not in allowed:
                found.append(f"{file.relative_to(ROOT)}:{line} imports {imported}")
    assert not found, "\n".join(found)


def test_the_layers_have_no_cycle() -> None:
    below = {
        layer: {name if name in ALLOWED else f"sglang_dspark.{name}" for name in names}
        for layer, names in ALLOWED.items()
    }
    lazily = {
        ("sglang_dspark.cli", "simulator")
    }  # `dspark tune` runs the simulator, which borrows the cli's error exit

    def reach(layer: str, path: tuple[str, ...]) -> None:
        assert layer not in path, f"cycle: {' -> '.join((*path, layer))}"
        for lower in below[layer]:
            if (layer, lower) not in lazily:
                reach(lower, (*path, layer))

    for layer in below:
        reach(layer, ())


def test_heavy_packages_are_imported_at_the_edge() -> None:
    """Outside serving, demo and the kernels nothing heavy is imported when a module is."""
    found = []
    for name, file in modules():
        if not is_core(name):
            continue
        for statement in runs_at_import(ast.parse(file.read_text())):
            for imported, line in imports(statement, name, file):
                if imported.split(".")[0] in HEAVY:
                    found.append(f"{file.relative_to(ROOT)}:{line} imports {imported}")
    assert not found, "\n".join(found)


def python(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_the_core_imports_where_the_heavy_packages_are_missing() -> None:
    names = [name for name, _ in modules() if is_core(name)]
    assert "sglang_dspark.policies.base" in names and "simulator.engine.replica" in names
    block = f"import sys; sys.modules.update(dict.fromkeys({sorted(HEAVY)}))"
    listed = ", ".join(name for name in names if not name.endswith("__main__"))
    assert python(f"{block}; import {listed}; print('ok')") == "ok"


def test_the_core_imports_nothing_heavy_where_it_is_there() -> None:
    code = f"import sys, sglang_dspark, simulator; print([name for name in {sorted(HEAVY)} if name in sys.modules])"
    assert python(code) == "[]"


def test_the_package_itself_imports_nothing() -> None:
    loaded = python("import sys; before = set(sys.modules); import sglang_dspark; print(set(sys.modules) - before)")
    assert loaded == "{'sglang_dspark'}"
