"""Compiled code: whether there is any here, who compiles it, and how a user learns of it.

What runs often is written twice: in NumPy, and as loops that numba compiles. Both give the same bits, as the contract
of policies and the tests of the simulator prove, so a machine without numba, or without a folder to keep compiled code
in, is slower and nothing else.

A package of loops compiles as a whole and before any of it is used (`prepare`), and is kept on disk from then on. A
server asks for that, and so does a simulation that has enough to do; everybody else begins in NumPy, and takes what is
kept once there has been something to do.
"""

from __future__ import annotations

import importlib
import logging
import os
import platform
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import cache
from hashlib import blake2b
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

logger = logging.getLogger(__name__)

SWITCH = "DSPARK_COMPILED"
"""Environment variable: 0 keeps to NumPy."""

FOLDER = "DSPARK_COMPILED_CACHE"
"""Environment variable: where compiled code is kept, by default `sglang-dspark/compiled` in the user's cache folder."""

POLICY_LOOPS = "sglang_dspark.policies.loops"

_SOURCES = (
    "sglang_dspark/jit.py",
    *("sglang_dspark/policies/loops/*.py", "simulator/engine/loops/*.py"),
    *("sglang_dspark/policies/*.py", "sglang_dspark/policies/rules/*.py", "sglang_dspark/cost/model.py"),  # constants
)
"""What compiled code is made from."""

_WORTH_IT = 400_000  # times that one process wanted compiled code: NumPy has taken about as long as compiling takes
_NOW_AND_THEN = 20_000  # every so many of them it looks whether there is some, which takes as long as it would save
_UNUSED_S = 30 * 86_400.0
_LOCK, _WORK = "lock", "work"

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass
class _Process:
    """numpy: kept to for a while. wanted: how often the rules' loops were, and were not there. failed: what raised."""

    numpy: bool = False
    wanted: int = 0
    expected_s: float = 0.0
    failed: str = ""
    ready: dict[str, ModuleType] = field(default_factory=dict)
    tell: Callable[[str], None] | None = None


_here = _Process()


def compiled() -> bool:
    """Whether this machine can use compiled code, and may."""
    return not _here.numpy and not _here.failed and _folder_or_why()[0] is not None


def stated() -> str:
    """The path taken, in words: "compiled (numba 0.68.1)" or "NumPy (why)"."""
    folder, why = _folder_or_why()
    if _here.failed or folder is None:
        return f"NumPy ({_here.failed or why})"
    return "NumPy (asked for)" if _here.numpy else f"compiled ({why})"


@contextmanager
def numpy_only() -> Iterator[None]:
    """Keep to NumPy for a while: to compare the two, or for a glance that is not worth loading anything."""
    before, _here.numpy = _here.numpy, True
    try:
        yield
    finally:
        _here.numpy = before


@contextmanager
def telling(tell: Callable[[str], None]) -> Iterator[None]:
    """Say so when something is compiled meanwhile."""
    before, _here.tell = _here.tell, tell
    try:
        yield
    finally:
        _here.tell = before


def policy_loops() -> Any:
    """`sglang_dspark.policies.loops`, or None where NumPy is used: where little has been done, or nothing is kept."""
    if _here.numpy:
        return None
    found = _here.ready.get(POLICY_LOOPS)
    return found if found is not None else _wanted()


def kept(package: str = POLICY_LOOPS) -> bool:
    """Whether a package's code is on disk already, so that using it costs no compilation."""
    folder = _folder_or_why()[0]
    return folder is not None and _mark(folder, package).exists()


def prepare(package: str = POLICY_LOOPS, wait: bool = True) -> Exception | None:
    """Take a package of loops into use: its `warm` runs every function once, compiled now or taken from disk.

    Of several processes one compiles; the others wait and take what it kept, or go on with NumPy (not `wait`). Returns
    what raised on the way; NumPy is used from then on, and `stated` says why. Does nothing where compiled code cannot
    be used at all.
    """
    folder = _folder_or_why()[0]
    if folder is None or _here.failed or package in _here.ready:
        return None
    began = time.perf_counter()
    try:
        folder.mkdir(exist_ok=True)
        with nullcontext(True) if kept(package) else _alone(folder, wait) as mine:
            if not mine:
                return None
            compiles = not kept(package)
            if compiles and _here.tell is not None:
                _here.tell("compiling, once on this machine: 10 to 30 s")
            module = importlib.import_module(package)
            module.warm()
            with suppress(OSError):
                _mark(folder, package).touch()  # also says that the folder is in use
    except Exception as error:
        _here.failed = f"compiled code in {folder} failed: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        return error
    _here.ready[package] = module
    if compiles:
        logger.info("sglang-dspark: %s compiled in %.1f s, kept in %s", package, time.perf_counter() - began, folder)
        _forget_unused(folder)
    return None


def njit(function: Function) -> Function:
    """Compile a function when it is first called, and keep it on disk; for the sources above alone.

    Products and sums are rounded one by one, as NumPy's are: no fused operations, no reordering. The function makes no
    arrays: nothing counts who holds one, which would take longer than a step of a small batch.
    """
    return _compiled(function, _nrt=False)


def njit_making_arrays(function: Function) -> Function:
    """`njit` for functions that make arrays and hand them out."""
    return _compiled(function)


def _compiled(function: Function, **options: Any) -> Function:
    import numba

    folder = _folder_or_why()[0]
    before, numba.config.CACHE_DIR = numba.config.CACHE_DIR, str(folder)
    try:
        return numba.njit(function, cache=folder is not None, error_model="numpy", **options)
    finally:
        numba.config.CACHE_DIR = before


def in_use(package: str) -> Any:
    """A package of loops that was taken into use, None where NumPy is used."""
    return None if _here.numpy else _here.ready.get(package)


def add_work(seconds: float) -> float:
    """Seconds of work that NumPy has been given on this machine and compiled code would do at once, these included."""
    folder = _folder_or_why()[0]
    if folder is None or _here.numpy:
        return 0.0
    file = folder / _WORK
    with suppress(OSError, ValueError):
        seconds += float(file.read_text())
    with suppress(OSError):
        folder.mkdir(exist_ok=True)
        file.write_text(f"{seconds:.1f}")
    return seconds


def expect(seconds: float, package: str, loads_s: float, compiles_s: float) -> None:
    """So many seconds of work begin that compiled code would do at once: take it into use if that pays by now.

    loads_s, compiles_s: work, all of this process together, that is worth loading what is kept, and worth compiling.
    """
    _here.expected_s += seconds
    if _here.numpy or _here.failed or _here.expected_s < loads_s or package in _here.ready:
        return
    if _here.expected_s >= compiles_s or kept(package):
        prepare(package, wait=False)


def _wanted() -> ModuleType | None:
    _here.wanted += 1
    if _here.wanted % _NOW_AND_THEN == 0 and (_here.wanted > _WORTH_IT or kept()):
        error = prepare(wait=False)
        if error is not None:
            logger.warning("%s; NumPy is used, which gives the same results more slowly", _here.failed)
    return _here.ready.get(POLICY_LOOPS)


@cache
def _folder_or_why() -> tuple[Path | None, str]:
    """(where compiled code is kept, by what it is compiled), or (None, why NumPy is used)."""
    asked = os.environ.get(SWITCH, "")
    if asked not in ("", "1"):
        return None, f"{SWITCH}={asked}" + ("" if asked == "0" else ", expected 0 or 1")
    try:
        import numba
        from llvmlite.binding import get_host_cpu_name

        by = f"numba {numba.__version__}"
        state = _state_of_sources(by, platform.python_version(), get_host_cpu_name())
    except Exception as error:  # whatever a broken installation raises
        return None, f"numba cannot be imported: {' '.join(str(error).split())[:200]}"
    base = Path(FOLDER)
    try:
        base = _base()
        base.mkdir(parents=True, exist_ok=True)
        probe = base / f".{os.getpid()}"
        probe.touch()
        probe.unlink()
    except (OSError, RuntimeError) as error:
        return None, f"compiled code cannot be kept in {base}: {getattr(error, 'strerror', None) or error}"
    return base / state, by


def _base() -> Path:
    """Where the folders are. Errors: RuntimeError where a user has no home and names no other place."""
    given = os.environ.get(FOLDER)
    if given:
        return Path(given).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "sglang-dspark" / "compiled"


def _state_of_sources(*compiled_by: str) -> str:
    """Names a folder of its own for every state of the sources: numba sees only the file that a function stands in.

    Place and time of a source count too, since numba goes by them.
    """
    state = blake2b(" ".join(compiled_by).encode(), digest_size=8)
    for pattern in _SOURCES:
        for source in sorted(Path(__file__).parents[1].glob(pattern)):
            state.update(f"{source} {source.stat().st_mtime_ns}".encode() + source.read_bytes())
    return state.hexdigest()


def _mark(folder: Path, package: str) -> Path:
    """The file that says that all of a package is kept; its time is that of the last use."""
    return folder / f"{package}.kept"


@contextmanager
def _alone(folder: Path, wait: bool) -> Iterator[bool]:
    """Hold the folder's lock, where there are locks; False where another process has it and this one does not wait."""
    mine = True
    with open(folder / _LOCK, "w") as file:
        with suppress(ImportError, OSError):
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                mine = False
        yield mine


def _forget_unused(folder: Path) -> None:
    """Remove the folders of other states of the sources that nothing has used for a month."""
    for other in folder.parent.iterdir():
        ours = any((other / name).exists() for name in (_LOCK, _WORK)) or any(other.glob("*/*.nbi"))
        if ours and other != folder and re.fullmatch(r"[0-9a-f]{16}", other.name):
            with suppress(OSError):
                if time.time() - max(file.stat().st_mtime for file in other.iterdir()) > _UNUSED_S:
                    shutil.rmtree(other, ignore_errors=True)
