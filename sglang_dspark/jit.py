"""Compiled code: whether there is any here, and how a user learns of it.

What runs often is written twice: in NumPy, and as loops that numba compiles. Both give the same bits, as the contract
of policies and the tests of the simulator prove, so a machine without numba, or without a folder to keep compiled code
in, is slower and nothing else. `DSPARK_COMPILED=0` asks for NumPy.
"""

from __future__ import annotations

import importlib
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

SWITCH = "DSPARK_COMPILED"
"""Environment variable: 0 keeps to NumPy."""

FOLDER = "DSPARK_COMPILED_CACHE"
"""Environment variable: where compiled code is kept, by default below the user's cache folder."""

_SOURCES = (Path(__file__).parent / "policies" / "loops", Path(__file__).parents[1] / "simulator" / "engine" / "loops")
"""Packages whose functions are compiled."""

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass
class _Forced:
    numpy: bool = False


_forced = _Forced()


def compiled() -> bool:
    """Whether compiled code is used."""
    return not _forced.numpy and _folder_or_why()[0] is not None


def stated() -> str:
    """The path taken, in words: "compiled (numba 0.68.1)" or "NumPy (why)"."""
    folder, why = _folder_or_why()
    if _forced.numpy or folder is None:
        return f"NumPy ({why or 'asked for'})"
    return f"compiled ({why})"


def engine_loops() -> Any:
    """`simulator.engine.loops.steps`, or None where NumPy is used."""
    return None if _forced.numpy else _loaded("simulator.engine.loops.steps")


@contextmanager
def numpy_only() -> Iterator[None]:
    """Keep to NumPy for a while, to compare the two."""
    before, _forced.numpy = _forced.numpy, True
    try:
        yield
    finally:
        _forced.numpy = before


def policy_loops() -> Any:
    """`sglang_dspark.policies.loops`, or None where NumPy is used."""
    return None if _forced.numpy else _loaded("sglang_dspark.policies.loops")


def kept() -> bool:
    """Whether the code is on disk already, so that using it costs no compilation."""
    folder = _folder_or_why()[0]
    return folder is not None and any(folder.rglob("*.nbc"))


def njit(function: Function) -> Function:
    """Compile a function when it is first called, and keep it on disk; for modules of the packages above alone.

    Products and sums are rounded one by one, as NumPy's are: no fused operations, no reordering.
    """
    import numba

    folder = _folder_or_why()[0]
    before, numba.config.CACHE_DIR = numba.config.CACHE_DIR, str(folder)
    try:
        return numba.njit(function, cache=True, error_model="numpy")
    finally:
        numba.config.CACHE_DIR = before


@cache
def _loaded(package: str) -> ModuleType | None:
    return importlib.import_module(package) if _folder_or_why()[0] is not None else None


@cache
def _folder_or_why() -> tuple[Path | None, str]:
    """(where compiled code is kept, by what it is compiled), or (None, why NumPy is used)."""
    if os.environ.get(SWITCH, "") == "0":
        return None, f"{SWITCH}=0"
    try:
        import numba
    except ImportError as error:
        return None, f"numba cannot be imported: {error}"
    folder = _cache_folder(numba.__version__)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        return None, f"compiled code cannot be kept in {folder}: {error.strerror}"
    return folder, f"numba {numba.__version__}"


def _cache_folder(version: str) -> Path:
    """A folder of its own for every state of the sources: numba itself sees only the file that a function stands in."""
    base = os.environ.get(FOLDER) or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "sglang-dspark", "compiled"
    )
    state = blake2b(f"{version} {platform.python_version()} {platform.machine()}".encode(), digest_size=8)
    for package in _SOURCES:
        for source in sorted(package.glob("*.py")):
            state.update(source.read_bytes())
    return Path(base) / state.hexdigest()
