"""Kernel times of NVIDIA's aiconfigurator-core (Apache-2.0): the only module that imports it.

The library holds times of single kernels, measured under SGLang on its GPUs, and config.json files of known models. It
prices lists of operators at any shape, offline. It is being renamed, so it is pinned (extra `estimate`) and everything
that we take from it passes through here.
"""

from __future__ import annotations

import copy
import importlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, TypeVar

from sglang_dspark.errors import InputError

PACKAGE, VERSION = "aiconfigurator_core", "0.12.0"
BACKEND = "sglang"

# Operators by what their time depends on: keys and values that queries share, attention modules that hold projections
# and pick keys per query, and state that a decode step carries from token to token. All others count tokens.
_SHARED_KV = {"GenerationAttention": "n", "GenerationMla": "num_heads"}
_MODULES = ("Dsv4Generation", "DsaGeneration", "DsaModule", "DsaModuleGeneration", "MsaGeneration")
_RECURRENT = ("Gdn", "Kda", "Mamba", "Mamba2")

Op = dict[str, Any]
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


def _import(name: str = "") -> Any:
    """A module of the library; InputError where it is missing or another version."""
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
    roots = [Path(root) for root in _import("sdk.perf_database").get_systems_paths()]
    return tuple(sorted(folder.parents[1].name for root in roots for folder in root.glob(f"data/*/gemm/{BACKEND}")))


def gpu_of(name: str) -> Gpu:
    """One GPU; InputError lists those that exist."""
    if name not in gpu_names():
        raise InputError(f"unknown GPU '{name}', expected one of {', '.join(gpu_names())}")
    spec = _import("sdk.perf_database").load_system_spec(name)
    # Trays of an NVL72 hold 4 and reach beyond.
    return Gpu(name, spec["gpu"]["mem_capacity"] / 2**30, max(int(spec["node"]["num_gpus_per_node"]), 8))


@lru_cache(maxsize=64)
def precisions_of(gpu: str, part: str) -> tuple[str, ...]:
    """Precisions of "gemm", "moe" or "kv" that have kernel times on a GPU. Takes seconds: it reads their tables."""
    known = _view(gpu, "SILICON").supported_quant_mode
    tables = {"gemm": ["gemm"], "moe": ["moe"], "kv": ["generation_attention", "generation_mla"]}[part]
    return tuple(sorted({name for table in tables for name in known.get(table) or ()}))


@lru_cache(maxsize=1)
def model_names() -> tuple[str, ...]:
    """Models whose config.json the library holds."""
    known = _import("sdk.common").DefaultHFModels
    folder = Path(str(_import("sdk.utils")._get_model_config_path()))
    return tuple(sorted(name for name in known if (folder / f"{name.replace('/', '--')}_config.json").is_file()))


def facts_of(model: str) -> dict[str, Any]:
    """Numbers of a model: layers, hidden_size, n (query heads), n_kv, d (of a head), vocab, architecture, raw_config.

    model: a folder or one of `model_names`. Anything else would be looked up on the network, and is refused.
    """
    if not Path(model).is_dir() and model not in model_names():
        raise InputError(f"unknown model '{model}', expected a folder with a config.json, or one that `--list` names")
    return dict(_guarded(f"model '{model}'", lambda: _import("sdk.utils").get_model_config_from_model_path(model)))


def _view(gpu: str, data: str) -> Any:
    return _import("sdk.perf_database").get_database_view(gpu, BACKEND, "current", database_mode=data)


def _guarded(what: str, call: Callable[[], T]) -> T:
    """The library's errors, of many kinds, as one sentence."""
    try:
        return call()
    except InputError:
        raise
    except (ValueError, RuntimeError, KeyError, TypeError, AssertionError, OSError, NotImplementedError) as error:
        said = " ".join(str(error).split())
        said = said.split(" at /")[0].split(" (first: /")[0]  # where its tables lie helps nobody
        raise InputError(f"{what} has no estimate: {said[:300]}") from error


class Forward:
    """One forward of a model on so many GPUs, in kernel time alone: no host, no launch gaps, no graph padding.

    model: a folder with a config.json, or one of `model_names`. config: the content of a config.json instead.
    ranks: tensor-parallel size. expert_ranks: of these, how many hold different experts. data: "silicon" (measured
    tables), "hybrid" (and models of what is not in them) or "sol" (rooflines). All times are in seconds. Errors:
    InputError.
    """

    def __init__(
        self,
        model: str,
        gpu: str,
        precisions: Precisions,
        *,
        config: Mapping[str, Any] | None = None,
        ranks: int = 1,
        expert_ranks: int = 1,
        data: str = "silicon",
    ) -> None:
        self.gpu = gpu_of(gpu)
        self.ranks = ranks
        self._what = f"'{model}' on {ranks} x {gpu}"
        self._by_tokens: dict[int, float] = {}
        if config is None:
            facts_of(model)  # never a download
        with TemporaryDirectory() as folder:
            if config is not None:
                Path(folder, "config.json").write_text(json.dumps(config))
            source = model if config is None else folder
            _guarded(self._what, lambda: self._build(source, gpu, precisions, expert_ranks, data.upper()))

    def _build(self, model: str, gpu: str, precisions: Precisions, expert_ranks: int, data: str) -> None:
        models, engine = _import("sdk.models"), _import("sdk.engine")
        config = _import("sdk.config_builders").build_model_config(
            self.ranks,
            1,
            1,
            self.ranks // expert_ranks,
            expert_ranks,
            gemm_quant_mode=precisions.gemm,
            kvcache_quant_mode=precisions.kv,
            moe_quant_mode=precisions.moe,
        )
        config.system, config.nextn = gpu, 0
        view = _view(gpu, data)
        models.resolve_dsv4_moe_arch(config, model, system_name=gpu, backend_name=BACKEND)
        models.resolve_nvfp4_for_system(config, gpu, model, backend_name=BACKEND)
        models.resolve_context_fmha_by_data(config, model, view, BACKEND, is_context_role=True)
        self._model = models.get_model(model, config, BACKEND)
        spec = engine.build_engine_spec_json(
            self._model,
            model_path=model,
            system=gpu,
            backend=BACKEND,
            backend_version=view.version,
            kv_block_size=None,
            systems_path=None,
            nextn=0,
            database=view,
        )
        self._engine = engine.EngineHandle(bytes(_import().engine_spec_bincode_from_json(spec)))
        self.tables = f"{BACKEND} {view.version}"
        self.precisions = Precisions(
            config.gemm_quant_mode.name, config.moe_quant_mode.name, config.kvcache_quant_mode.name
        )
        self._sort(json.loads(spec)["generation_ops"])

    def _sort(self, ops: Sequence[Op]) -> None:
        """Operators by what their time depends on."""
        flat: list[Op] = []
        for op in ops:  # SGLang has no times of whole MLA modules: the list of parts is what it runs
            flat += op["Fallback"]["fallback"] if "Fallback" in op else [op]
        kinds = [(next(iter(op)), op) for op in flat]
        recurrent = sorted({kind for kind, _ in kinds if kind in _RECURRENT})
        if recurrent:
            raise InputError(
                f"{self._what} has no estimate: there are no times of its recurrent layers ({', '.join(recurrent)}) "
                "for several tokens a request"
            )
        self._shared_kv = [op for kind, op in kinds if kind in _SHARED_KV]
        self._modules = [op for kind, op in kinds if kind in _MODULES]
        self._tokenwise = [op for kind, op in kinds if kind not in _SHARED_KV and kind not in _MODULES]

    @property
    def has_modules(self) -> bool:
        """Whether attention is priced as modules that pick their keys per query (DeepSeek V3.2 and V4, GLM-5)."""
        return bool(self._modules)

    @cached_property
    def expert_routing(self) -> str | None:
        """How the measured kernels spread tokens over experts; None without experts."""
        text = json.dumps(self._tokenwise)
        at = text.find('"workload_distribution": "')
        return text[at:].split('"')[3] if at >= 0 else None

    def tokens_s(self, tokens: int) -> float:
        """Everything that counts tokens: GEMMs, experts, all-reduce, norms, head."""
        if tokens not in self._by_tokens:
            self._by_tokens[tokens] = self._seconds(self._tokenwise, tokens, 1024, tokens)
        return self._by_tokens[tokens]

    def body_s(self, tokens: int) -> float:
        """`tokens_s` without embedding and head, which a draft shares with its target."""
        ops = [op for op in self._tokenwise if not _is_shared_weight(next(iter(op.values()))["name"])]
        return self._seconds(ops, tokens, 1024, tokens)

    def attention_s(self, requests: int, width: int, context: int) -> float:
        """Attention of `width` query tokens a request over `context` tokens that they share.

        Queries of one request read the same keys and values: as decode attention with `width` times the query heads.
        Modules pick keys per query: `width` rows a request, which together read what the request holds.
        """
        wide = copy.deepcopy(self._shared_kv)
        for op in wide:
            ((kind, body),) = op.items()
            body[_SHARED_KV[kind]] *= width
        seconds = self._seconds(wide, requests, context)
        if not self._modules:
            return seconds
        return seconds + self._seconds(self._modules, requests * width, context // width)

    def prefill_s(self, new: int, cached: int = 0) -> float:
        """Prefill of one prompt chunk of `new` tokens behind `cached` ones."""
        return 1e-3 * _guarded(self._what, lambda: float(self._engine.predict_prefill_latency(1, new + cached, cached)))

    def gemm_s(self, rows: int, out: int, inner: int) -> float:
        """A bfloat16 matrix product [rows, inner] x [inner, out]."""
        body = {"name": "gemm", "scale_factor": 1.0, "n": out, "k": inner, "quant_mode": "bfloat16"}
        more = {"scale_num_tokens": 1, "low_precision_input": False, "seq_split": 1, "below_grid_sol": False}
        return self._seconds([{"Gemm": body | more}], rows, 1, rows)

    def traffic_s(self, rows: int, bytes_each: float) -> float:
        """Reading and writing so many bytes a row."""
        body = {"name": "traffic", "scale_factor": 1.0, "bytes_per_token": float(bytes_each)}
        return self._seconds([{"Elementwise": body | {"scale_num_tokens": 1, "seq_split": 1}}], rows, 1, rows)

    def weight_bytes(self, *, body_only: bool = False) -> float:
        """Weights on one GPU; body_only: without embedding and head."""
        ops = [op for op in self._model.context_ops if not (body_only and _is_shared_weight(op._name))]
        return float(sum(op.get_weights() for op in ops))

    def kv_bytes_per_token(self, length: int = 4096) -> float:
        """KV cache of one token on one GPU, in a request of `length` tokens."""
        return float(self._model.get_kvcache_bytes_per_sequence(length)) / length

    def shares_by_source(self, tokens: int) -> dict[str, float]:
        """Shares of the token-wise time by where it comes from: silicon (measured), empirical, sol, ..."""
        alone = [each for op in self._tokenwise for each in _without_overlap(op)]
        rows = self._rows(alone, tokens, 1024, tokens)
        whole = sum(row[1] for row in rows) or 1.0
        found: dict[str, float] = {}
        for _, milliseconds, *_, source in rows:
            found[source] = found.get(source, 0.0) + milliseconds / whole
        return dict(sorted(found.items()))

    def _seconds(self, ops: list[Op], batch: int, context: int, tokens: int | None = None) -> float:
        return 1e-3 * sum(row[1] for row in self._rows(ops, batch, context, tokens)) if ops else 0.0

    def _rows(self, ops: list[Op], batch: int, context: int, tokens: int | None) -> list[Any]:
        """(name, milliseconds, energy, source) of each operator."""
        price = self._engine.evaluate_ops_json
        return _guarded(
            self._what,
            lambda: list(price(json.dumps(ops), is_context=False, batch_size=batch, s=max(1, context), x=tokens)),
        )


def _without_overlap(op: Op) -> list[Op]:
    """The operators that run beside each other, one by one."""
    return [*op["Overlap"]["group_a"], *op["Overlap"]["group_b"]] if "Overlap" in op else [op]


def _is_shared_weight(name: str) -> bool:
    return any(word in name for word in ("embedding", "logits"))
