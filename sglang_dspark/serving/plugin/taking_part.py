"""What our worker does not serve, and in which mode it verifies: decided before anything of SGLang's is touched."""

from __future__ import annotations

import json
import os
from typing import Any

COMPACT, CAP_ACCEPT, STATIC = "compact", "cap-accept", "static"

RAGGED_BACKENDS = ("fa3", "fa4", "trtllm_mha", "trtllm_mla", "dsv4")
"""Attention backends of SGLang that verify ragged blocks in graphs; `ragged_backends` adds what this machine has."""

_FP4_KV = ("nvfp4", "fp4_mx_block16")


def why_not(config: Any) -> str | None:
    """Why SGLang's own planner has to stay on this server, or None.

    config: a `ServerArgs` as parsed, or a view of it that resolves. A PD decode server takes part.
    """
    if (getattr(config, "pp_size", None) or 1) > 1:
        return "pipeline parallelism"
    if dp_attention(config):
        reason = _no_lock_step(config)
        if reason is not None:
            return reason
    if getattr(config, "disaggregation_mode", "null") == "prefill":
        return "a prefill server, which decodes nothing"
    if getattr(config, "enable_lora", False) or getattr(config, "lora_paths", None):
        return "LoRA adapters, which SGLang verifies at one width only"
    return None


def dp_attention(config: Any) -> bool:
    """Whether data-parallel ranks share the layers after attention, and with them the tier that is executed."""
    return (getattr(config, "attn_dp_size", None) or 1) > 1 or bool(getattr(config, "enable_dp_attention", False))


def _no_lock_step(config: Any) -> str | None:
    """What keeps DP-attention ranks from deciding every step together, or None."""
    if getattr(config, "disaggregation_mode", "null") != "null":
        return "DP attention on a PD server, whose ranks decode at different times"
    if getattr(config, "enable_dp_attention_local_control_broadcast", False):
        return "--enable-dp-attention-local-control-broadcast, with which ranks learn of a switch at different steps"
    if (getattr(config, "attn_cp_size", None) or 1) > 1:
        return "DP attention with context parallelism"
    if getattr(config, "elastic_ep_backend", None):
        return "DP attention whose ranks come and go (--elastic-ep-backend)"
    for name in _OWN_PACE:
        if os.environ.get(name, "").lower() in ("1", "true", "yes", "y", "on", "t"):
            return f"{name}, with which DP-attention ranks decode at different times"
    return None


_OWN_PACE = ("SGLANG_SCHEDULER_SKIP_ALL_GATHER", "SGLANG_ENABLE_DP_SPEC_PREFILL_COORDINATION")


def why_not_under_graphs(config: Any) -> str | None:
    """Why a compact verify of DP-attention ranks cannot run in CUDA graphs, with the remedy, or None: SGLang captures
    none for ranks without requests unless the draft is DeepSeek's mixture of experts (dspark_worker_v2.py:336)."""
    if not dp_attention(config) or not _decode_graphs(config):
        return None
    path = os.path.join(config.speculative_draft_model_path or "", "config.json")
    if not os.path.isfile(path):
        return None  # a draft on a hub: the worker says SGLang's own sentence
    with open(path, "rb") as file:
        names = json.load(file).get("architectures") or ()
    if any(name.startswith("DeepseekV4") for name in names):
        return None
    return (
        "a dense draft under DP attention verifies blocks of different lengths outside of CUDA graphs only: add "
        "--cuda-graph-backend-decode disabled (as exact), or drop the DSpark flags: SGLang's static verify has graphs"
    )


def _decode_graphs(config: Any) -> bool:
    if getattr(config, "disable_cuda_graph", False) or getattr(config, "disable_decode_cuda_graph", False):
        return False
    decode = getattr(getattr(config, "cuda_graph_config", None), "decode", None)
    return str(getattr(decode, "backend", "")).lower().rpartition(".")[2] != "disabled"


def not_served(reason: str) -> str:
    """The sentence for a server that takes no part."""
    return (
        f"the DSpark flags have no effect with {reason}: drop them, or add --speculative-dspark-if-possible to serve "
        "with SGLang's own planner"
    )


def verifying_backend(config: Any) -> str | None:
    """The attention backend that the target's verify runs on: the prefill one, unless SGLang is told otherwise."""
    from sglang.srt.arg_groups.overrides import attention_backends_of

    prefill, decode = attention_backends_of(config)
    return decode if getattr(config, "speculative_attention_mode", "prefill") == "decode" else prefill


def ragged_backends() -> tuple[str, ...]:
    """Attention backends that serve compact verification here."""
    from sglang_dspark.serving import cpu

    on_cpu = ("torch_native",) if cpu.activate() is not None else ()
    return (*RAGGED_BACKENDS, *on_cpu, "flashinfer")


def why_not_compact(config: Any, backend: str | None, model: Any) -> str | None:
    """Why this server cannot verify blocks of different lengths, or None. model: SGLang's `ModelConfig`."""
    if backend is not None and backend not in ragged_backends():
        return f"attention backend {backend} verifies blocks of one length"
    if backend == "flashinfer" and not _is_mla(model):
        if has_windows(model):
            return "FlashInfer with sliding-window or cross attention verifies blocks of one length"
        changes = _flashinfer_moved()
        if changes:
            return f"this SGLang's FlashInfer backend is not the one that ours extends ({changes[0]})"
        if config.kv_cache_dtype in _FP4_KV:
            return f"FlashInfer with --kv-cache-dtype {config.kv_cache_dtype} verifies blocks of one length"
    for flag in ("enable_two_batch_overlap", "disable_cuda_graph_padding"):
        if getattr(config, flag, False):
            return f"SGLang's compact verify does not go with --{flag.replace('_', '-')}"
    return None


def _flashinfer_moved() -> list[str]:
    """What moved under our FlashInfer backend; it is looked at in the launcher, where the mode can still change."""
    from sglang_dspark.serving.base.contract import moved
    from sglang_dspark.serving.gpu.flashinfer_ragged.contract import CALLS

    return moved(CALLS)


def has_windows(model: Any) -> bool:
    """Whether the target's layers need more than one FlashInfer wrapper."""
    layers = getattr(model.hf_text_config, "layer_types", None) or ()
    windows = getattr(model, "is_hybrid_swa", False) and getattr(model, "sliding_window_size", None) is not None
    chunks = getattr(model, "attention_chunk_size", None) is not None
    return bool(windows or chunks or getattr(model, "is_encoder_decoder", False) or "sliding_attention" in layers)


def _is_mla(model: Any) -> bool:
    from sglang.srt.configs.model_config import AttentionArch

    return bool(model.attention_arch == AttentionArch.MLA)
