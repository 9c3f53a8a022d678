"""What a comparison says of itself: its setting in plain values, and everything that no source gave."""

from __future__ import annotations

from typing import Any

from sglang_dspark.cost import provenance
from simulator.engine.run import Setting
from simulator.traces import trace_facts


def stated_assumptions(setting: Setting) -> tuple[str, ...]:
    """Everything that no source gave, in words."""
    out = [*setting.cost.assumptions, *setting.drafter.assumptions]
    if setting.engine.kv_tokens is not None:
        out = [text for text in out if not text.startswith("kv_tokens ")]
    if setting.recorded is not None:
        return tuple(dict.fromkeys(out))
    if setting.trace.domain is None:
        mix = ", ".join(f"{name} {share:.2f}" for name, share in setting.domain_mix.items())
        out.append(f"domains drawn per request: {mix} (the trace has none)")
    if setting.drafter.has_confidence:
        model = setting.confidence
        out.append(
            f"confidence logits spread {model.spread_request:g} between requests, {model.spread_block:g} between "
            f"blocks, {model.spread_position:g} between positions (fitted to the paper's Figure 5; the split between "
            "requests and blocks is assumed)"
        )
        if not model.calibrated:
            parts = f"temperature {model.temperature:g}, bias {model.bias:g}, noise {model.noise:g}"
            out.append(f"confidences miscalibrated: {parts}")
    out.append("prompts share no prefix (no radix-cache hits); requests generate the trace's lengths")
    return tuple(dict.fromkeys(out))


def shares_drawn(setting: Setting, met: dict[str, float]) -> tuple[str, ...]:
    """How much of the acceptance was not recorded where it was met. met: blocks that a run of each policy met."""
    load = setting.recorded
    if load is None:
        return ()
    own, count = load.own_blocks(setting.trace), len(setting.trace)
    shares = ", ".join(f"{max(0.0, 1.0 - own / max(blocks, 1.0)):.0%} ({text})" for text, blocks in met.items())
    out = f"blocks at unrecorded anchors, drawn among the request's nearest ones, at least: {shares}"
    strangers = load.strangers(setting.trace)
    if not strangers:
        return (out,)
    return (out, f"{strangers} of {count} requests have no recorded block: theirs are those of requests alike")


def stated_setting(setting: Setting, replications: int) -> dict[str, Any]:
    """The setting in plain values, for reports."""
    trace = setting.trace
    return {
        "trace": trace.source,
        "requests": len(trace),
        "trace_notes": [*trace.notes, *trace_facts(trace)],
        "profile": setting.cost.name,
        "profile_provenance": provenance(setting.cost),
        "policy_profile": setting.belief.name,
        "drafter": setting.drafter.name,
        "gamma": setting.drafter.gamma,
        "loop": "closed" if setting.concurrency is not None else "open",
        "concurrency": setting.concurrency,
        "request_rate": setting.request_rate,
        "replications": replications,
        "seed": setting.seed,
        **setting.engine.stated(),
        "kv_tokens": setting.kv_tokens,
    }
