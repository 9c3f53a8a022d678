"""The scalar terms of a step-cost model: their ranges, and what stands in where a profile does not give them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from sglang_dspark.cost.assumptions import Assumption
from sglang_dspark.cost.curves import Curve
from sglang_dspark.errors import InputError


class Term(NamedTuple):
    """Accepted range, unit and meaning."""

    least: float
    most: float
    unit: str
    meaning: str


TERMS: dict[str, Term] = {
    "host_s": Term(0.0, 10.0, "s", "host work per step (hidden under the GPU's when overlapped)"),
    "copy_s": Term(0.0, 1.0, "s", "device-to-host copy and launch bubble of a synchronous step"),
    "prefill_base_s": Term(0.0, 10.0, "s", "fixed part of a prefill step"),
    "prefill_token_s": Term(0.0, 1.0, "s/token", "prefill per prompt token"),
    "prefill_pair_s": Term(0.0, 1e-3, "s/token^2", "prefill attention per (new token x context token)"),
    "context_token_s": Term(0.0, 1e-3, "s/token", "verify attention per context token of the batch"),
    "draft_context_token_s": Term(0.0, 1e-3, "s/token", "draft attention per context token of the batch"),
    "draft_head_s": Term(0.0, 1.0, "s/position", "DSpark's head at every drafted position, a part of the draft time"),
    "width_context_s": Term(
        0.0, 1e-3, "s/token^2", "verify attention per (verified token beyond a request's first x its context token)"
    ),
    "adaptive_s": Term(0.0, 1.0, "s", "what a step costs more under a policy that needs survivals"),
    "kv_tokens": Term(1.0, 1e12, "tokens", "KV cache capacity of one replica without a draft"),
    "draft_kv_share": Term(0.0, 0.95, "", "share of the KV memory that the draft's own cache takes"),
}
"""A profile gives them or they are stated assumptions."""

_ASSUMED: dict[str, tuple[float, str]] = {
    "host_s": (0.003, "3 ms of scheduler work a step"),
    "copy_s": (0.0001, "100 us for a device-to-host copy and the launch it delays"),
    "prefill_pair_s": (0.0, "prefill attention is inside the per-token time"),
    "context_token_s": (0.0, "the source measured one context length"),
    "draft_context_token_s": (0.0, "the source measured one context length"),
    "draft_head_s": (0.0, "the source does not tell the head from the draft: another gamma takes the same draft time"),
    "width_context_s": (0.0, "the source does not tell attention by width"),
    "adaptive_s": (0.0, "none is seen on B300; 2 ms of it explain ROCm's losses at low load (vLLM #52362)"),
    "kv_tokens": (1_000_000.0, "KV capacity is not part of the source"),
    "draft_kv_share": (0.0, "the source does not say what the draft's cache takes"),
}


def check_terms(terms: Mapping[str, float], where: str) -> None:
    """InputError for an unknown term or a value out of range; `where` begins the sentence."""
    for key, value in terms.items():
        if key not in TERMS:
            raise InputError(f"{where}: unknown cost term {key!r}, expected one of {', '.join(TERMS)}")
        least, most, unit, _ = TERMS[key]
        if not least <= value <= most:
            raise InputError(f"{where}: {key}={value} is refused, expected {least:g}..{most:g} {unit}")


def filled_terms(
    given: dict[str, float], forward: Curve, name: str, base_s: float | None = None
) -> tuple[dict[str, float], tuple[Assumption, ...]]:
    """Scalar terms: what the source gives, and stated assumptions for the rest."""
    check_terms(given, f"profile {name}")
    assumed = dict(_ASSUMED)
    base = base_s if base_s is not None else float(forward.at(1))
    assumed["prefill_base_s"] = (base, "the source's smallest step")
    assumed["prefill_token_s"] = (_slope(forward), "slope through the source's largest forwards")
    terms, stated = dict(given), []
    for key, (value, why) in assumed.items():
        if key not in given:
            terms[key] = value
            stated.append(Assumption(key, value, TERMS[key].unit, why))
    return terms, tuple(stated)


def _slope(curve: Curve) -> float:
    """Seconds per token through the largest half of the probes (least squares), never below 0.1 us."""
    seconds = curve.seconds if curve.seconds.ndim == 1 else curve.seconds[0]
    half = max(2, curve.probes.size // 2)
    if curve.probes.size < 2:
        return 1e-5
    return max(float(np.polyfit(curve.probes[-half:], seconds[-half:], 1)[0]), 1e-7)
