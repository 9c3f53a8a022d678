"""Compiles what a public function would launch, for a GPU that need not be there, and reads which kernels there are."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import triton
from dspark_kernels import interpreter
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

PACKAGE = Path(interpreter.__file__).parent
SHARED_BYTES = {80: 163 << 10, 90: 227 << 10, 100: 227 << 10}
"""Compute capability -> shared memory that a block may have (CUDA C++ programming guide, compute capabilities)."""


class _Ahead:
    """As much of a Triton driver as compiling asks for. Triton keeps what it compiled by device: one for each
    capability."""

    def __init__(self, capability: int) -> None:
        self._capability = capability

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self._capability, 32)

    def get_current_device(self) -> str:
        return f"sm{self._capability}"

    def get_current_stream(self, device: str) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


@contextmanager
def compiled_ahead(capability: int, cache: Path, *, every: bool = True) -> Iterator[dict[str, list[Any]]]:
    """Inside, a launch on CPU tensors compiles its kernel, specialised for these arguments as a GPU would, and does not
    run it.

    Yields kernel name -> what was compiled (`asm`, `metadata`). cache: an empty folder for Triton's files. every: each
    variant of a kernel, or its first launch alone.
    """
    found: dict[str, list[Any]] = {}
    run, driver = JITFunction.run, triton.runtime.driver
    before = interpreter._active, driver._active

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        compiled = found.setdefault(self.fn.__name__, [])
        if every or not compiled:
            compiled.append(run(self, *args, grid=grid, warmup=True, **kwargs))

    with triton.knobs.cache.scope():
        triton.knobs.cache.dir = str(cache)
        JITFunction.run, interpreter._active, driver._active = compile_only, 1, _Ahead(capability)
        try:
            yield found
        finally:
            JITFunction.run = run
            interpreter._active, driver._active = before


def jit_functions(source: str) -> dict[str, ast.FunctionDef]:
    """The `@triton.jit` functions of a file, with or without options."""

    def jitted(node: ast.expr) -> bool:
        return ast.unparse(node.func if isinstance(node, ast.Call) else node) in ("triton.jit", "jit")

    functions = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef))
    return {function.name: function for function in functions if any(map(jitted, function.decorator_list))}


def kernels_of(package: Path = PACKAGE) -> dict[str, ast.FunctionDef]:
    """The jitted functions that no other one calls: those are launched."""
    functions: dict[str, ast.FunctionDef] = {}
    for file in sorted(package.glob("*.py")):
        functions |= jit_functions(file.read_text())
    called = {
        node.func.id
        for function in functions.values()
        for node in ast.walk(function)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    return {name: function for name, function in functions.items() if name not in called}
