"""SGLang's own speculative kernels as a baseline, with SGLang installed or from a folder of its kernel files alone.

The files (sglang 0.5.23, sglang/kernels/ops/speculative) need Triton and torch; what they import of the rest is
types, and questions such as "is this an NPU", which are answered with no. `gpu_wheels.py --sglang DIR` fetches them.
"""

from __future__ import annotations

import importlib
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

NAMES = ("markov_sample", "dspark_accept", "dspark_verify_window", "dspark_schedule")
_PACKAGE = "sglang.kernels.ops.speculative"


def load(folder: str | None) -> SimpleNamespace | None:
    """The modules `NAMES` and `reject_sampling`; None where SGLang is neither installed nor given as a folder."""
    if folder is not None:
        _packages(Path(folder))
        sys.meta_path.append(_Stubs())  # asked last: what is in the folder is SGLang's own
    elif find_spec("sglang") is None:
        return None
    modules = {name: importlib.import_module(f"{_PACKAGE}.dspark.{name}") for name in NAMES}
    return SimpleNamespace(**modules, reject_sampling=importlib.import_module(f"{_PACKAGE}.reject_sampling"))


def _packages(folder: Path) -> None:
    """The packages above the kernel files, without what their own `__init__` would import."""
    name = ""
    for part in f"{_PACKAGE}.dspark".split("."):
        name, folder = f"{name}.{part}".lstrip("."), folder / part
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder} is not there: --sglang expects what gpu_wheels.py --sglang wrote")
        package = ModuleType(name)
        package.__path__ = [str(folder)]
        sys.modules[name] = package


class _Stub(ModuleType):
    """A module of SGLang that is not in the folder: every name in it is a type whose call says no."""

    __path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _No


class _No:
    """Stands for a type and for a question; asked, it is no."""

    def __new__(cls, *args: Any, **named: Any) -> Any:
        return False


class _Stubs(MetaPathFinder, Loader):
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return ModuleSpec(name, self, is_package=True) if name.startswith("sglang.") else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Stub(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass
