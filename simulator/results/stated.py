"""What a comparison says of itself: its setting in plain values, and everything that no source gave."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from sglang_dspark.cost import TERMS, Assumption, StepCost, provenance
from sglang_dspark.policies import Policy
from simulator.blocks.draft_time import stated_draft_time
from simulator.engine.run import Setting
from simulator.results.confidence_error import stated_confidences
from simulator.results.prefixes import assumed_of_prefixes
from simulator.results.servers import assumed_of_servers, stated_servers
from simulator.results.whose import acceptance_text
from simulator.traces import trace_facts


def stated_assumptions(setting: Setting, policies: Sequence[Policy]) -> tuple[Assumption, ...]:
    """Everything that no source gave."""
    out = [*assumed_of_servers(setting, policies), *setting.cost.assumptions, *setting.drafter.assumptions]
    if setting.belief is not setting.cost:
        out += [_of_belief(setting.belief, one) for one in setting.belief.assumptions if one.key not in TERMS]
    if setting.engine.kv_tokens is not None:
        out = [one for one in out if one.key != "kv_tokens"]
    if setting.graphs != "profile":
        out = [one for one in out if one.key != "captured_tokens"]
    if setting.engine.prefill_elsewhere_s is not None:
        out.append(_of_decode_server(setting.engine.prefill_elsewhere_s))
    if setting.recorded is None:
        out += _of_drawn_blocks(setting)
    return tuple(dict.fromkeys(out))


def _of_decode_server(delay_s: float) -> Assumption:
    why = "KV on its way holds no memory here; what is retracted waits on the host and resumes at no cost"
    said = f"prefill elsewhere: first token and KV come {1e3 * delay_s:g} ms after a request is sent"
    return Assumption("prefill_elsewhere", delay_s, "s", why, said)


def _of_belief(belief: StepCost, assumption: Assumption) -> Assumption:
    return replace(assumption, what=f"policies believe profile {belief.name}: {assumption.what or assumption.key}")


def _of_drawn_blocks(setting: Setting) -> list[Assumption]:
    """What stands in for the content of requests, which a trace does not have."""
    out = [] if setting.drafter.name == "none" else _of_draft(setting)
    out += assumed_of_prefixes(setting)
    said = "requests generate the trace's lengths"
    out.append(Assumption("output_length", None, "", "under every policy", said))
    return out


def _of_draft(setting: Setting) -> list[Assumption]:
    drafter = setting.drafter
    out = [*stated_draft_time(setting.cost, drafter)]
    if setting.trace.domain is None and drafter.knows_domains:
        even = dict.fromkeys(drafter.domains, 1 / len(drafter.domains))
        mix = ", ".join(f"{name} {share:.2f}" for name, share in (setting.domain_mix or even).items())
        said = f"domains drawn per request: {mix}"
        out.append(Assumption("domain_mix", mix, "share of requests", "the trace has none", said))
    return [*out, *stated_confidences(setting)]


def shares_drawn(setting: Setting, met: dict[str, float]) -> tuple[Assumption, ...]:
    """How much of the acceptance was not recorded where it was met. met: blocks that a run of each policy met."""
    load = setting.recorded
    if load is None:
        return ()
    parts = [setting.part(number) for number in range(setting.windows)]
    own, count = sum(map(load.own_blocks, parts)) / len(parts), len(setting.trace)
    shares = ", ".join(f"{max(0.0, 1.0 - own / max(blocks, 1.0)):.0%} ({text})" for text, blocks in met.items())
    drawn = Assumption(
        "blocks_drawn",
        shares,
        "least share of blocks",
        "drawn among the request's nearest ones",
        f"blocks at unrecorded anchors, at least: {shares}",
    )
    strangers = load.strangers(setting.trace)
    if not strangers:
        return (drawn,)
    unknown = Assumption(
        "requests_without_blocks",
        strangers,
        "requests",
        "theirs are those of requests alike",
        f"{strangers} of {count} requests have no recorded block",
    )
    return (drawn, unknown)


def stated_setting(setting: Setting, policies: Sequence[Policy], replications: int) -> dict[str, Any]:
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
        "acceptance": {"text": acceptance_text(setting), **setting.drafter.stated()},
        "gamma": setting.drafter.gamma,
        "loop": "closed" if setting.concurrency is not None else "open",
        "concurrency": setting.concurrency,
        "request_rate": setting.request_rate,
        "replications": replications,
        "windows": setting.windows,
        "goodput_slos_ms": setting.slos_ms,
        "seed": setting.seed,
        **setting.engine.stated(),
        **stated_servers(setting, policies),
        "caches_prefixes": setting.caches_prefixes,
    }
