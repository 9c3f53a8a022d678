"""An estimate as a profile: the table that every loader reads, with provenance that says what it is."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from sglang_dspark.cost.estimate import guards
from sglang_dspark.cost.estimate.anchors import REFERENCE_CONTEXT, scale_to
from sglang_dspark.cost.estimate.asked import Asked
from sglang_dspark.cost.estimate.draft import price_draft
from sglang_dspark.cost.estimate.fit import Fit, fit_context, fit_prefill, step_s
from sglang_dspark.cost.estimate.forward import Forward
from sglang_dspark.cost.estimate.library import Gpu, Precisions, gpu_of, precisions_of
from sglang_dspark.cost.estimate.memory import kv_capacity
from sglang_dspark.cost.estimate.models import Model, find_draft, find_model
from sglang_dspark.cost.estimate.provenance import Priced, provenance_of
from sglang_dspark.cost.graphs import Machine, listed_batches
from sglang_dspark.cost.tables import MeasuredDraft, MeasuredVerify, SpsAdditiveCostTable, Tiered
from sglang_dspark.errors import InputError

_SMALL = (1, 2, 3, 4, 5, 6, 7)
_ROOFLINED = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
_DIGITS = 6


@lru_cache(maxsize=64)
def estimate_table(asked: Asked) -> SpsAdditiveCostTable:
    """The profile of what is asked for. Deterministic, offline. Errors: InputError names what exists."""
    gpu, target = gpu_of(asked.gpu), find_model(asked.model)
    _check(asked, gpu, target)
    try:
        return _table(_price(asked, gpu, target))
    except InputError:
        _check_precisions(asked)
        raise


def _check_precisions(asked: Asked) -> None:
    """Whether it was a precision that has no times; looked up when pricing has failed, for it takes seconds."""
    for part in ("gemm", "moe", "kv"):
        value = getattr(asked, part)
        if value is not None and value not in precisions_of(asked.gpu, part):
            known = ", ".join(precisions_of(asked.gpu, part))
            raise InputError(f"{part}={value} is refused on {asked.gpu}, expected one of {known}")


def _price(asked: Asked, gpu: Gpu, target: Model) -> Priced:
    draft = find_draft(asked.draft, target, asked.gamma)
    machine = Machine(gpu.memory_gib, asked.tp)
    forward = _forward(asked, target, asked.data)
    batches = listed_batches(machine.graph_limit(), drafting=True)
    alone = listed_batches(machine.graph_limit(), drafting=False)  # the graphs of a server without a draft
    tokens = sorted({*_SMALL, *alone, *(batch * (1 + draft.gamma) for batch in batches)})
    fit = fit_context(forward, tokens[-1], forward.kv_room)
    cost = price_draft(draft, target, forward, asked.gpu, asked.tp, batches, asked.data)
    scale = scale_to(asked.anchors, lambda count: step_s(forward, count, fit), fit.context_s)
    verify = [step_s(forward, count, fit) for count in tokens]
    return Priced(
        asked,
        gpu,
        target,
        draft,
        forward,
        batches,
        tokens,
        (np.array(verify) * scale.at(tokens)).tolist(),
        fit,
        cost,
        fit_prefill(forward, machine.prefill_chunk()),
        kv_capacity(forward, cost, machine),
        scale,
        _roofline(asked, target, forward, fit, [count for count in _ROOFLINED if count <= tokens[-1]]),
    )


def _check(asked: Asked, gpu: Gpu, target: Model) -> None:
    """Refuse what the tables or the model do not have, naming what they do."""
    if asked.moe is not None and not target.has_experts:
        raise InputError(f"moe={asked.moe} does nothing: {target.name} has no experts")
    if asked.ep > 1 and not target.has_experts:
        raise InputError(f"ep={asked.ep} does nothing: {target.name} has no experts")
    heads = int(target.facts["n"])
    if heads % asked.tp:
        fitting = [count for count in range(1, gpu.per_node + 1) if heads % count == 0]
        raise InputError(
            f"tp={asked.tp} is refused: the {heads} attention heads of {target.name} do not divide by it, expected one "
            f"of {', '.join(map(str, fitting))}"
        )
    if asked.tp > gpu.per_node:
        raise InputError(
            f"tp={asked.tp} is refused: a node has {gpu.per_node} x {gpu.name}, expected 1..{gpu.per_node}"
        )


def _forward(asked: Asked, target: Model, data: str) -> Forward:
    kv = asked.kv or ("fp8" if target.is_deepseek_v4 else "bfloat16")  # never the library's guess
    return Forward(
        target.source,
        asked.gpu,
        Precisions(asked.gemm, asked.moe, kv),
        config=target.config,
        ranks=asked.tp,
        expert_ranks=asked.ep,
        data=data,
    )


def _roofline(asked: Asked, target: Model, forward: Forward, fit: Fit, counts: Sequence[int]) -> tuple[float, str]:
    """Decode steps of so many requests against the least that memory and arithmetic allow."""
    ideal = _forward(asked, target, "sol")
    context = REFERENCE_CONTEXT
    ours = np.array([step_s(forward, count, fit) + fit.context_s * count * context for count in counts])
    least = np.array([ideal.tokens_s(count) + ideal.attention_s(count, 1, context) for count in counts])
    return guards.over_roofline(counts, ours, least)


def _table(priced: Priced) -> SpsAdditiveCostTable:
    verify, draft, cost = priced.verify, priced.draft, priced.draft_cost
    factors = priced.scale.at([batch * draft.gamma for batch in priced.batches])
    drafting = (np.array(cost.seconds) * factors).tolist()
    by_tokens, by_requests = [_round(value) for value in verify], [_round(value) for value in drafting]
    overall = priced.scale.overall
    terms = {
        "prefill_base_s": overall * priced.prefill.base_s,
        "prefill_token_s": overall * priced.prefill.token_s,
        "prefill_pair_s": overall * priced.prefill.pair_s,
        "context_token_s": overall * priced.fit.context_s,
        "width_context_s": overall * priced.fit.width_s,
        "draft_context_token_s": overall * cost.context_s,
        "draft_head_s": min(overall, float(factors.min())) * cost.head_s,
        "draft_kv_share": priced.capacity.draft_share,
    }
    captured = [batch * (1 + draft.gamma) for batch in priced.batches]
    return SpsAdditiveCostTable(
        bias_seconds=by_tokens[0],
        bs_probes=priced.batches,
        alpha_seconds=by_requests,
        m_probes=priced.tokens,
        theta_seconds=[_round(value - by_tokens[0]) for value in by_tokens],
        meta=provenance_of(priced),
        tiered=Tiered(
            draft=MeasuredDraft(priced.batches, list(by_requests)),
            verify=MeasuredVerify(priced.tokens, list(by_tokens)),
            captured_tokens=captured,
            captured_requests=priced.batches[-1],
            terms={**{key: _round(value) for key, value in terms.items()}, "kv_tokens": priced.capacity.kv_tokens},
        ),
    )


def _round(value: float) -> float:
    """Six digits: what is beyond differs between builds of the same tables and means nothing."""
    return float(f"{value:.{_DIGITS}g}")
