"""What a simulation is asked: a load, the engine that serves it, and how often drafted tokens are accepted.

`simulate` and the commands build the same three objects; `prepare` checks them together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sglang_dspark.cost import StepCost, load_profile
from sglang_dspark.errors import InputError
from simulator.blocks.confidence import Confidence
from simulator.blocks.drafters import Drafter, choose_drafter
from simulator.blocks.own import Given
from simulator.engine.recorded_load import RecordedLoad, holds_records, load_records, records_cost
from simulator.engine.run import Setting
from simulator.engine.server import Graphs, choose_graphs
from simulator.engine.settings import EngineSettings
from simulator.results.goodput import check_slos
from simulator.traces import Trace, asking_for, example_trace, load_trace


@dataclass(frozen=True)
class Load:
    """The requests, how they come, and what is wanted of them.

    trace: a file, "example", a `Trace`, or records (a folder, or `load_records`), which give the acceptance as well.
    concurrency: closed loop with so many requests in flight; None: open loop by the trace's stamps, or Poisson at
    `request_rate` per second. domain_mix: shares of domains where the trace has none (None: even). max_tokens: what
    every client asks for at most, instead of what the trace says. goodput: limits in milliseconds by bench_serving's
    key (ttft, tpot, e2el). windows: serve so many consecutive parts of the trace in turn, one a replication, so that
    intervals cover how they differ.
    """

    trace: str | Path | Trace | RecordedLoad
    concurrency: int | None = None
    request_rate: float | None = None
    domain_mix: dict[str, float] | None = None
    max_tokens: int | None = None
    goodput: dict[str, float] = field(default_factory=dict)
    windows: int = 1


@dataclass(frozen=True)
class Engine:
    """What serves the load, and what it costs.

    profile: what the engine costs, by name, file, records or model; policy_profile: what the policies believe (default
    the same). settings: default SGLang's, or what records say of their server. graphs: "sglang" (the batch sizes that
    it would capture), "profile" (those that the profile was measured with; default for costs that were recorded on
    SGLang), or captured batch sizes. gpu_memory_gib (of one GPU), tp: on which SGLang's defaults depend, instead of
    the profile's.
    """

    profile: str | Path | StepCost
    policy_profile: str | Path | StepCost | None = None
    settings: EngineSettings | None = None
    graphs: Graphs | Sequence[int] | None = None
    gpu_memory_gib: float | None = None
    tp: int | None = None


@dataclass(frozen=True)
class Acceptance:
    """How often drafted tokens are accepted, and what is known of it beforehand. Records have their own.

    drafter: one of `DRAFTERS` (default dspark). own: one's own acceptance, see `own_drafter`; `drafter` is then its
    kind. gamma: draft block size; of records, the positions of each block that are looked at. confidence: how far
    reported confidences are off.
    """

    drafter: str | None = None
    own: Given | None = None
    gamma: int | None = None
    confidence: Confidence | None = None


def prepare(
    load: Load | str | Path | Trace | RecordedLoad,
    engine: Engine | str | Path | StepCost,
    acceptance: Acceptance | None = None,
    *,
    seed: int = 0,
) -> Setting:
    """The checked setting that policies run in. A trace alone is an open loop, a profile alone an engine by default.

    Errors: InputError names the value and what is accepted.
    """
    load = load if isinstance(load, Load) else Load(load)
    engine = engine if isinstance(engine, Engine) else Engine(engine)
    acceptance = acceptance or Acceptance()
    cost = find_cost(engine.profile)
    found = read_load(load.trace, seed, acceptance.gamma)
    recorded = found if isinstance(found, RecordedLoad) else None
    trace = found.trace if isinstance(found, RecordedLoad) else found
    _check_load(load, trace)
    drafter = _drafter(load, acceptance, recorded)
    settings = engine.settings or (EngineSettings() if recorded is None else recorded.engine)
    return Setting(
        trace=asking_for(trace, load.max_tokens),
        cost=cost,
        belief=cost if engine.policy_profile is None else find_cost(engine.policy_profile),
        drafter=drafter,
        confidence=acceptance.confidence or Confidence(),
        engine=settings,
        concurrency=load.concurrency,
        request_rate=load.request_rate,
        domain_mix=load.domain_mix,
        seed=seed,
        recorded=recorded,
        windows=load.windows,
        slos_ms=dict(load.goodput),
        graphs=choose_graphs(engine.graphs, cost, settings, engine.gpu_memory_gib, engine.tp),
        gpu_memory_gib=engine.gpu_memory_gib,
        tp=engine.tp,
    )


def find_cost(profile: str | Path | StepCost, *, force_diagonal: bool = False) -> StepCost:
    """A step-cost model by shipped name, from a file, or fitted on records."""
    if isinstance(profile, StepCost):
        return profile
    if holds_records(profile):
        return records_cost(profile)
    return load_profile(str(profile), force_diagonal=force_diagonal)


def read_load(trace: str | Path | Trace | RecordedLoad, seed: int, window: int | None) -> Trace | RecordedLoad:
    """The requests, of records with their acceptance; window: positions of recorded blocks that are looked at."""
    if isinstance(trace, Trace | RecordedLoad):
        return trace
    if str(trace) == "example":
        return example_trace()
    if holds_records(trace):
        return load_records(trace, window=window, seed=seed)
    return load_trace(trace, seed=seed)


def _check_load(load: Load, trace: Trace) -> None:
    if load.concurrency is not None and not 1 <= load.concurrency <= 1 << 20:
        raise InputError(f"concurrency={load.concurrency} is refused, expected 1..{1 << 20}")
    if not 1 <= load.windows <= len(trace):
        raise InputError(f"windows={load.windows} is refused, expected 1..{len(trace)} for {len(trace)} requests")
    check_slos(load.goodput)
    if not trace.stamped and load.concurrency is None and load.request_rate is None:
        raise InputError(f"{trace.source} has no stamps for an open loop: give --request-rate or --concurrency")


def _drafter(load: Load, acceptance: Acceptance, recorded: RecordedLoad | None) -> Drafter:
    if recorded is None:
        drafter = choose_drafter(acceptance.drafter, acceptance.own, acceptance.gamma)
        _check_mix(load.domain_mix, drafter)
        return drafter
    if acceptance.gamma not in (None, recorded.blocks.gamma):
        positions = recorded.blocks.gamma
        raise InputError(f"gamma={acceptance.gamma} is refused, these records were loaded with {positions} positions")
    given = {
        "drafter": acceptance.drafter,
        "acceptance": acceptance.own,
        "confidence": acceptance.confidence,
        "domain_mix": load.domain_mix,
    }
    for name, value in given.items():
        if value is not None:
            raise InputError(f"{name} does nothing with records, which have an acceptance of their own")
    return recorded.drafter


def _check_mix(mix: dict[str, float] | None, drafter: Drafter) -> None:
    if mix is None:
        return
    known, shares = set(mix) <= set(drafter.domains), list(mix.values())
    if not known or not all(0 <= share < float("inf") for share in shares) or not sum(shares) > 0:
        raise InputError(f"domain_mix={mix} is refused, expected shares of {', '.join(drafter.domains)}, not all 0")
