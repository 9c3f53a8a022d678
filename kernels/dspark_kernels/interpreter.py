"""Runs the Triton kernels of this package on CPU tensors, in Triton's own interpreter.

`with interpreted():` swaps every `@triton.jit` function that this package and `triton.language` hold for an
interpreted one, and swaps them back. It does not depend on TRITON_INTERPRET or on who imported triton first, so that
a test process, a benchmark and a server can share one interpreter-free import. Slow by design: for tests and
debugging, never for speed figures. Works with Triton 3.6 to 3.8.
"""

from __future__ import annotations

import contextlib
import importlib
import pkgutil
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter as triton_interpreter
from triton.runtime.interpreter import (
    InterpretedFunction,
    InterpreterBuilder,
    TensorHandle,
    interpreter_builder,
)
from triton.runtime.jit import JITFunction

_active = 0


def runs_kernel(tensor: torch.Tensor) -> bool:
    """Whether a public function launches its kernel for this tensor: on CUDA, or inside `interpreted()`."""
    return tensor.is_cuda or _active > 0


@contextlib.contextmanager
def interpreted(*modules: ModuleType) -> Iterator[None]:
    """Inside, public functions of this package launch their kernels on CPU tensors through Triton's interpreter.

    modules: further modules whose kernels are to be interpreted. Not thread-safe: it swaps module attributes. May be
    nested; an inner call changes nothing.
    """
    global _active
    if _active:
        _active += 1
        try:
            yield
        finally:
            _active -= 1
        return
    # Triton imports this lazily at a launch and then asserts that its functions are not interpreted.
    importlib.import_module("triton.experimental.gluon")
    saved = [(owner, dict(vars(owner))) for owner in (*_owners(), *modules)]
    functions: dict[int, InterpretedFunction] = {}
    for owner, names in saved:
        for name, value in names.items():
            if isinstance(value, JITFunction):
                setattr(owner, name, functions.setdefault(id(value), InterpretedFunction(value.fn)))
    interpreter_builder.create_dot, interpreter_builder.cast_impl = _dot, _cast
    _active = 1
    try:
        # Masked lanes compute log(0) and inf - inf on purpose; a GPU does not warn either.
        with np.errstate(all="ignore"), _language_patched_once():
            yield
    finally:
        _active = 0
        del interpreter_builder.create_dot, interpreter_builder.cast_impl
        for owner, names in saved:
            _restore(owner, names)


@contextlib.contextmanager
def _language_patched_once() -> Iterator[None]:
    """Triton's interpreter replaces the whole of `triton.language` at every launch and every inner call, a third of a
    test's time; here once, and what it would have done there is nothing."""
    patch = triton_interpreter._patch_lang
    # It looks for the language among the globals of a function.
    scope = patch(SimpleNamespace(__globals__={"tl": tl, "core": tl.core}))
    # NumPy from 2.5 refuses int() of an array with dimensions, which Triton 3.6 counts on for a scalar.
    scope.set_attr(tl.tensor, "__index__", lambda self: self.handle.data.item())
    triton_interpreter._patch_lang = lambda function: triton_interpreter._LangPatchScope()
    try:
        yield
    finally:
        triton_interpreter._patch_lang = patch
        scope.restore()


# Triton's interpreter keeps bfloat16 as its bits in uint16, multiplies those bits in a dot, and truncates where a
# GPU rounds to nearest even. The three functions below make it compute what the GPU does.


def _dot(
    a: TensorHandle, b: TensorHandle, d: TensorHandle, input_precision: object, max_num_imprecise_acc: object
) -> TensorHandle:
    product = np.matmul(_as_float32(a), _as_float32(b), dtype=np.float32)
    return TensorHandle((product + d.data).astype(d.data.dtype), d.dtype.scalar)


def _cast(source: TensorHandle, dtype: tl.core.dtype) -> TensorHandle:
    if source.dtype.scalar == tl.float32 and dtype.scalar == tl.bfloat16:
        bits = np.ascontiguousarray(source.data, dtype=np.float32).view(np.uint32).astype(np.uint64)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        quiet_nan = (bits >> 16) | 0x40
        return TensorHandle(np.where(np.isnan(source.data), quiet_nan, rounded).astype(np.uint16), dtype.scalar)
    if source.dtype.scalar == tl.bfloat16 and dtype.scalar == tl.float32:
        return TensorHandle(_as_float32(source), dtype.scalar)
    return InterpreterBuilder.cast_impl(interpreter_builder, source, dtype)


def _as_float32(handle: TensorHandle) -> np.ndarray:
    if handle.dtype.scalar == tl.bfloat16:
        return (np.asarray(handle.data).astype(np.uint32) << 16).view(np.float32)
    return handle.data.astype(np.float32)


def _owners() -> list[ModuleType | type]:
    """Everything that holds jitted functions, or that Triton's interpreter patches and leaves patched."""
    package = importlib.import_module(__package__)
    for info in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{__package__}.{info.name}")
    prefixes = ("triton.language", f"{__package__}.")
    modules = [
        module for name, module in sorted(sys.modules.items()) if module is not None and name.startswith(prefixes)
    ]
    return [*modules, tl.core.tensor, tl.core.tensor_descriptor_base, tl.core.dtype]


def _restore(owner: ModuleType | type, names: dict[str, object]) -> None:
    if isinstance(owner, type):
        # Modules keep what Triton's rewriter adds to the globals of a function: it adds it once and caches the
        # function.
        for name in set(vars(owner)) - set(names):
            delattr(owner, name)
    for name, value in names.items():
        if vars(owner).get(name) is not value:
            setattr(owner, name, value)
