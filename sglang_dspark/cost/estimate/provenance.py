"""What an estimate says of itself: its provenance, and what the kernel times do not say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sglang_dspark.cost.assumptions import Assumption
from sglang_dspark.cost.estimate import guards
from sglang_dspark.cost.estimate.anchors import REFERENCE_CONTEXT, Scale
from sglang_dspark.cost.estimate.asked import Asked
from sglang_dspark.cost.estimate.draft import DraftCost
from sglang_dspark.cost.estimate.fit import Fit, Prefill
from sglang_dspark.cost.estimate.forward import Forward
from sglang_dspark.cost.estimate.library import PACKAGE, VERSION, Gpu
from sglang_dspark.cost.estimate.memory import Capacity
from sglang_dspark.cost.estimate.models import Draft, Model


@dataclass(frozen=True)
class Priced:
    """Everything that was found out, before it is written down. Seconds by batches (draft) and tokens (verify)."""

    asked: Asked
    gpu: Gpu
    target: Model
    draft: Draft
    forward: Forward
    batches: list[int]
    tokens: list[int]
    verify: list[float]
    fit: Fit
    draft_cost: DraftCost
    prefill: Prefill
    capacity: Capacity
    scale: Scale
    over_roofline: tuple[float, str]


def provenance_of(priced: Priced) -> dict[str, Any]:
    """The profile's `meta`."""
    asked, forward, fit = priced.asked, priced.forward, priced.fit
    precisions = {"gemm": forward.precisions.gemm, "kv": forward.precisions.kv}
    if priced.target.has_experts:
        precisions["moe"] = str(forward.precisions.moe)
    anchors = [anchor.text for anchor in asked.anchors]
    return {
        "estimate": True,
        "hardware": f"{asked.tp}x NVIDIA {_words(asked.gpu)}" + (f" (TP{asked.tp})" if asked.tp > 1 else ""),
        "gpu": asked.gpu,
        "gpu_memory_gib": priced.gpu.memory_gib,
        "tp_size": asked.tp,
        **({"ep_size": asked.ep} if asked.ep > 1 else {}),
        "model": f"{priced.target.name}, DSpark draft",
        "draft": ("assumed: " if priced.draft.assumed else "") + priced.draft.words,
        "software": f"{PACKAGE.replace('_', '-')} {VERSION}, kernel tables of {forward.tables}",
        "how": "estimate, not measured: the sum of measured kernel times of one forward"
        + (f", scaled to {', '.join(anchors)} (requests:ms)" if anchors else ""),
        "source": "NVIDIA aiconfigurator-core (Apache-2.0)",
        "gamma": priced.draft.gamma,
        "precisions": precisions,
        "data": asked.data,
        "shares_by_source": {key: round(share, 3) for key, share in forward.shares_by_source(64).items()},
        "fit_error": {
            "verify_mean": round(fit.mean_error, 4),
            "verify_largest": round(fit.largest_error, 4),
            "prefill_largest": round(priced.prefill.largest_error, 4),
        },
        "over_roofline": round(priced.over_roofline[0], 2),
        **({"anchors": anchors} if anchors else {}),
        "assumed": [one.as_plain() for one in _assumed(priced)],
    }


def _words(gpu: str) -> str:
    name, _, form = gpu.partition("_")
    return f"{name.upper()} {form.replace('_', ' ').upper()}".strip()


def _assumed(priced: Priced) -> list[Assumption]:
    """What the kernel times do not say."""
    kernels = "kernel times alone"
    out = [
        Assumption(
            "draft", None, "", "no draft was given" if priced.draft.assumed else "given", f"draft: {priced.draft.words}"
        ),
        Assumption("sampling", 0.0, "s", kernels, "verify steps leave out sampling, and launch gaps inside a graph"),
        Assumption(
            "kv_capacity",
            None,
            "",
            "SGLang's default reserve, weights and KV by the library",
            "KV capacity is computed",
        ),
    ]
    sizes = f"CUDA graphs of {len(priced.batches)} batch sizes up to {priced.batches[-1]} requests"
    out.append(Assumption("captured_tokens", None, "", "SGLang's list for this GPU and TP", sizes))
    if priced.target.is_deepseek_v4 or priced.forward.has_modules:
        said = "the query tokens of a request share what they read of its context"
        out.append(Assumption("sparse_attention", None, "", "the tables hold single queries only", said))
    if priced.asked.kv is None:
        said = f"the KV cache is {priced.forward.precisions.kv}"
        out.append(Assumption("kv_precision", priced.forward.precisions.kv, "", "as SGLang resolves auto", said))
    if priced.forward.expert_routing is not None:
        said = f"tokens hit experts as the measured kernels had it ({priced.forward.expert_routing})"
        out.append(Assumption("expert_routing", None, "", "real routing is not known", said))
    if priced.asked.anchors:
        said = f"a measured step is of {REFERENCE_CONTEXT} context tokens a request, and scales draft and prefill too"
        out.append(Assumption("anchors", priced.scale.overall, "", "no anchor says otherwise", said))
    found = {
        "over_roofline": priced.over_roofline[1],
        "dips": guards.dips(priced.tokens, priced.verify),
        "unmeasured_kernels": guards.unmeasured(priced.forward.shares_by_source(64)),
    }
    return [*out, *(Assumption(key, None, "", "doubtful", said) for key, said in found.items() if said)]
