"""Kernel times of NVIDIA's aiconfigurator-core (Apache-2.0): the only module that imports it.

The library holds times of single kernels, measured under SGLang on its GPUs, and config.json files of known models. It
prices lists of operators at any shape, offline (`forward`). It is being renamed, so it is pinned (extra `estimate`) and
everything that we take from it passes through here.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from sglang_dspark.errors import InputError

PACKAGE, VERSION = "aiconfigurator_core", "0.12.0"
BACKEND = "sglang"

T = TypeVar("T")


class Precisions(NamedTuple):
    """By part of the model, under the library's names; None: as the checkpoint has it."""

    gemm: str | None = None
    moe: str | None = None
    kv: str | None = None


class Gpu(NamedTuple):
    """memory_gib: of one. per_node: the largest tensor-parallel size."""

    name: str
    memory_gib: float
    per_node: int


def module_of(name: str = "") -> Any:
    """A module of the library by its name inside it; InputError where it is missing or another version."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        found = version("aiconfigurator-core")
    except PackageNotFoundError:
        raise InputError(
            'an estimate needs aiconfigurator-core, which is not installed: pip install "sglang-dspark[estimate]", or '
            "take one of the estimates that are shipped as files (`dspark profiles`)"
        ) from None
    if found != VERSION:
        raise InputError(
            f"aiconfigurator-core {found} is installed and estimates were checked with {VERSION} only: "
            'pip install "sglang-dspark[estimate]"'
        )
    logging.getLogger(PACKAGE).setLevel(logging.ERROR)
    return importlib.import_module(f"{PACKAGE}.{name}" if name else PACKAGE)


@lru_cache(maxsize=1)
def gpu_names() -> tuple[str, ...]:
    """GPUs with kernel times of SGLang."""
    roots = [Path(root) for root in module_of("sdk.perf_database").get_systems_paths()]
    return tuple(sorted(folder.parents[1].name for root in roots for folder in root.glob(f"data/*/gemm/{BACKEND}")))


def gpu_of(name: str) -> Gpu:
    """One GPU; InputError lists those that exist."""
    if name not in gpu_names():
        raise InputError(f"unknown GPU '{name}', expected one of {', '.join(gpu_names())}")
    spec = module_of("sdk.perf_database").load_system_spec(name)
    # Trays of an NVL72 hold 4 and reach beyond.
    return Gpu(name, spec["gpu"]["mem_capacity"] / 2**30, max(int(spec["node"]["num_gpus_per_node"]), 8))


@lru_cache(maxsize=64)
def precisions_of(gpu: str, part: str) -> tuple[str, ...]:
    """Precisions of "gemm", "moe" or "kv" that have kernel times on a GPU. Takes seconds: it reads their tables."""
    known = view_of(gpu, "SILICON").supported_quant_mode
    tables = {"gemm": ["gemm"], "moe": ["moe"], "kv": ["generation_attention", "generation_mla"]}[part]
    return tuple(sorted({name for table in tables for name in known.get(table) or ()}))


@lru_cache(maxsize=1)
def model_names() -> tuple[str, ...]:
    """Models whose config.json the library holds."""
    known = module_of("sdk.common").DefaultHFModels
    folder = Path(str(module_of("sdk.utils")._get_model_config_path()))
    return tuple(sorted(name for name in known if (folder / f"{name.replace('/', '--')}_config.json").is_file()))


def facts_of(model: str) -> dict[str, Any]:
    """Numbers of a model: layers, hidden_size, n (query heads), n_kv, d (of a head), vocab, architecture, raw_config.

    model: a folder or one of `model_names`. Anything else would be looked up on the network, and is refused.
    """
    if not Path(model).is_dir() and model not in model_names():
        raise InputError(f"unknown model '{model}', expected a folder with a config.json, or one that `--list` names")
    return dict(guarded(f"model '{model}'", lambda: module_of("sdk.utils").get_model_config_from_model_path(model)))


def view_of(gpu: str, data: str) -> Any:
    """The kernel tables of a GPU under SGLang; data: SILICON, HYBRID or SOL."""
    return module_of("sdk.perf_database").get_database_view(gpu, BACKEND, "current", database_mode=data)


def guarded(what: str, call: Callable[[], T]) -> T:
    """The library's errors, of many kinds, as one sentence."""
    try:
        return call()
    except InputError:
        raise
    except (ValueError, RuntimeError, KeyError, TypeError, AssertionError, OSError, NotImplementedError) as error:
        said = " ".join(str(error).split())
        said = said.split(" at /")[0].split(" (first: /")[0]  # where its tables lie helps nobody
        raise InputError(f"{what} has no estimate: {said[:300]}") from error
