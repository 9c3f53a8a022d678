"""One forward of a model in kernel time: what counts tokens, attention over contexts, prefill, weights and KV bytes."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sglang_dspark.cost.estimate.library import BACKEND, Precisions, facts_of, gpu_of, guarded, module_of, view_of
from sglang_dspark.errors import InputError

# Operators by what their time depends on: keys and values that queries share, attention modules that hold projections
# and pick keys per query, and state that a decode step carries from token to token. All others count tokens.
_SHARED_KV = {"GenerationAttention": "n", "GenerationMla": "num_heads"}
_MODULES = ("Dsv4Generation", "DsaGeneration", "DsaModule", "DsaModuleGeneration", "MsaGeneration")
_RECURRENT = ("Gdn", "Kda", "Mamba", "Mamba2")

Op = dict[str, Any]


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
            guarded(self._what, lambda: self._build(source, gpu, precisions, expert_ranks, data.upper()))

    def _build(self, model: str, gpu: str, precisions: Precisions, expert_ranks: int, data: str) -> None:
        models, engine = module_of("sdk.models"), module_of("sdk.engine")
        config = module_of("sdk.config_builders").build_model_config(
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
        view = view_of(gpu, data)
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
        self._engine = engine.EngineHandle(bytes(module_of().engine_spec_bincode_from_json(spec)))
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
        return 1e-3 * guarded(self._what, lambda: float(self._engine.predict_prefill_latency(1, new + cached, cached)))

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

    @property
    def kv_room(self) -> int:
        """Tokens of KV that memory holds at the very most, beside the weights."""
        free = self.gpu.memory_gib * 2**30 - self.weight_bytes()
        return max(1, int(free / self.kv_bytes_per_token()))

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
        return guarded(
            self._what,
            lambda: list(price(json.dumps(ops), is_context=False, batch_size=batch, s=max(1, context), x=tokens)),
        )


def _without_overlap(op: Op) -> list[Op]:
    """The operators that run beside each other, one by one."""
    return [*op["Overlap"]["group_a"], *op["Overlap"]["group_b"]] if "Overlap" in op else [op]


def _is_shared_weight(name: str) -> bool:
    return any(word in name for word in ("embedding", "logits"))
