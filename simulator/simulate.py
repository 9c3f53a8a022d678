"""One call for a comparison: policies on the same draws, in parallel processes, with paired intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from sglang_dspark.cost import StepCost, load_profile
from sglang_dspark.errors import InputError
from sglang_dspark.policies import Policy, make_policy, policy_to_string
from simulator.blocks.confidence import Confidence
from simulator.blocks.drafters import Drafter, choose_drafter
from simulator.blocks.own import Given
from simulator.engine.recorded_load import RecordedLoad, holds_records, load_records, records_cost
from simulator.engine.run import Setting
from simulator.engine.server import Graphs, choose_graphs
from simulator.engine.settings import EngineSettings
from simulator.parallel import run_all
from simulator.results.comparison import COMPARED, Comparison, PolicyResult
from simulator.results.estimated import estimated
from simulator.results.goodput import check_slos
from simulator.results.metrics import Figures
from simulator.results.paired import Paired, paired
from simulator.results.probes import beyond_probes, hanging_gains
from simulator.results.servers import queueing
from simulator.results.stated import shares_drawn, stated_assumptions, stated_setting
from simulator.results.surcharge import flipping_surcharge
from simulator.results.verdict import why_none
from simulator.results.whose import other_model
from simulator.traces import Trace, asking_for, example_trace, load_trace


def simulate(
    trace: str | Path | Trace | RecordedLoad,
    profile: str | Path | StepCost,
    policies: Sequence[str | Policy],
    *,
    policy_profile: str | Path | StepCost | None = None,
    drafter: str | None = None,
    acceptance: Given | None = None,
    gamma: int | None = None,
    concurrency: int | None = None,
    request_rate: float | None = None,
    engine: EngineSettings | None = None,
    confidence: Confidence | None = None,
    domain_mix: dict[str, float] | None = None,
    goodput: dict[str, float] | None = None,
    graphs: Graphs | Sequence[int] | None = None,
    gpu_memory_gib: float | None = None,
    tp: int | None = None,
    max_tokens: int | None = None,
    windows: int = 1,
    replications: int = 5,
    seed: int = 0,
    jobs: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Comparison:
    """Serve a trace under several verification policies on the same draws.

    trace: a file, "example", a `Trace`, or records (a folder, or `load_records`), which give the acceptance as well.
    profile: what the engine costs, by name, file, records or model; policy_profile: what the policies believe (default
    the same). drafter: one of `DRAFTERS` (default dspark). acceptance: one's own, see `own_drafter`; `drafter` is then
    its kind. gamma: draft block size; of records, the positions of each block that are looked at. concurrency: closed
    loop with so many requests in flight; None: open loop by the trace's stamps or Poisson at `request_rate` per second.
    engine: default SGLang's, or what records say of their server. graphs: "sglang" (the batch sizes that it would
    capture), "profile" (those that the profile was measured with; default for costs that were recorded on SGLang), or
    captured batch sizes. gpu_memory_gib (of one GPU), tp: on which SGLang's defaults depend, instead of the profile's.
    max_tokens: what every client asks for at most, instead of what the trace says. goodput: limits in milliseconds by
    bench_serving's key (ttft, tpot, e2el). windows: serve so many consecutive parts of the trace in turn, one a
    replication, so that intervals cover how they differ. replications: sets of draws; every policy meets the same ones.
    jobs: processes (default: one a core).
    on_progress(completed, total) counts requests over all runs.

    Returns a `Comparison`; figures carry bench_serving's names. Errors: InputError.
    """
    setting = prepare(
        trace,
        profile,
        policy_profile=policy_profile,
        drafter=drafter,
        acceptance=acceptance,
        gamma=gamma,
        concurrency=concurrency,
        request_rate=request_rate,
        engine=engine,
        confidence=confidence,
        domain_mix=domain_mix,
        goodput=goodput,
        graphs=graphs,
        gpu_memory_gib=gpu_memory_gib,
        tp=tp,
        max_tokens=max_tokens,
        windows=windows,
        seed=seed,
    )
    chosen = [make_policy(policy) if isinstance(policy, str) else policy for policy in policies]
    return compare_policies(setting, chosen, replications=replications, jobs=jobs, on_progress=on_progress)


def prepare(
    trace: str | Path | Trace | RecordedLoad,
    profile: str | Path | StepCost,
    *,
    policy_profile: str | Path | StepCost | None = None,
    drafter: str | None = None,
    acceptance: Given | None = None,
    gamma: int | None = None,
    concurrency: int | None = None,
    request_rate: float | None = None,
    engine: EngineSettings | None = None,
    confidence: Confidence | None = None,
    domain_mix: dict[str, float] | None = None,
    goodput: dict[str, float] | None = None,
    graphs: Graphs | Sequence[int] | None = None,
    gpu_memory_gib: float | None = None,
    tp: int | None = None,
    max_tokens: int | None = None,
    windows: int = 1,
    seed: int = 0,
) -> Setting:
    """What `simulate` runs its policies in; the arguments are its own."""
    if concurrency is not None and not 1 <= concurrency <= 1 << 20:
        raise InputError(f"concurrency={concurrency} is refused, expected 1..{1 << 20}")
    cost = find_cost(profile)
    load = _as_load(trace, seed, gamma)
    count = len(load.trace if isinstance(load, RecordedLoad) else load)
    if not 1 <= windows <= count:
        raise InputError(f"windows={windows} is refused, expected 1..{count} for a trace of {count} requests")
    check_slos(goodput or {})
    recorded = load if isinstance(load, RecordedLoad) else None
    _check_stamps(load.trace if isinstance(load, RecordedLoad) else load, concurrency, request_rate)
    if recorded is not None and gamma not in (None, recorded.blocks.gamma):
        raise InputError(f"gamma={gamma} is refused, these records were loaded with {recorded.blocks.gamma} positions")
    given = {"drafter": drafter, "acceptance": acceptance, "confidence": confidence, "domain_mix": domain_mix}
    for name, value in given.items():
        if recorded is not None and value is not None:
            raise InputError(f"{name} does nothing with records, which have an acceptance of their own")
    drafts = choose_drafter(drafter, acceptance, gamma) if recorded is None else recorded.drafter
    _check_mix(domain_mix, drafts)
    engine = engine or (EngineSettings() if recorded is None else recorded.engine)
    whose = choose_graphs(graphs, cost, engine, gpu_memory_gib, tp)
    return Setting(
        trace=asking_for(load.trace if isinstance(load, RecordedLoad) else load, max_tokens),
        cost=cost,
        belief=cost if policy_profile is None else find_cost(policy_profile),
        drafter=drafts,
        confidence=confidence or Confidence(),
        engine=engine,
        concurrency=concurrency,
        request_rate=request_rate,
        domain_mix=domain_mix,
        seed=seed,
        recorded=recorded,
        windows=windows,
        slos_ms=dict(goodput or {}),
        graphs=whose,
        gpu_memory_gib=gpu_memory_gib,
        tp=tp,
    )


def compare_policies(
    setting: Setting,
    policies: Sequence[Policy],
    *,
    replications: int = 5,
    jobs: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Comparison:
    """`simulate` in a setting that `prepare` has made."""
    _check(policies, setting.windows, replications, jobs)
    for policy in policies:
        setting.check(policy)
    runs = run_all(setting, policies, replications, jobs, on_progress)
    first = runs[0]
    results = tuple(
        PolicyResult(
            policy_to_string(policy),
            policy.lossless,
            setting.engine.schedule_for(policy),
            tuple(figures),
            _differences(figures, first, setting.windows),
        )
        for policy, figures in zip(policies, runs, strict=True)
    )
    met = {result.policy: result.figures["decode_steps"] * result.figures["mean_batch"] for result in results}
    assumptions = (*stated_assumptions(setting, policies), *shares_drawn(setting, met))
    comparison = Comparison(results, assumptions, stated_setting(setting, policies, replications))
    by = comparison.judged
    return replace(
        comparison,
        warnings=(
            *queueing(setting, policies),
            *other_model(setting, policies),
            *estimated(setting, policies, results, by.figure),
            *beyond_probes(setting, results),
            *hanging_gains(setting, policies, results, by.figure),
        ),
        surcharge=None if why_none(comparison) else flipping_surcharge(setting, policies, comparison),
    )


def find_cost(profile: str | Path | StepCost, *, force_diagonal: bool = False) -> StepCost:
    """A step-cost model by shipped name, from a file, or fitted on records."""
    if isinstance(profile, StepCost):
        return profile
    if holds_records(profile):
        return records_cost(profile)
    return load_profile(str(profile), force_diagonal=force_diagonal)


def _differences(runs: list[Figures], base: list[Figures], windows: int) -> dict[str, Paired]:
    return {
        name: paired([run[name] for run in runs], [run[name] for run in base], windows)
        for name in COMPARED
        if name in base[0]
    }


def _check(policies: Sequence[Policy], windows: int, replications: int, jobs: int | None) -> None:
    if replications % windows:
        raise InputError(f"replications={replications} is refused with windows={windows}, expected a multiple of it")
    if not policies:
        raise InputError("no policy is given, expected at least one")
    if not 1 <= replications <= 1000:
        raise InputError(f"replications={replications} is refused, expected 1..1000")
    if jobs is not None and not 1 <= jobs <= 1024:
        raise InputError(f"jobs={jobs} is refused, expected 1..1024")


def _check_mix(mix: dict[str, float] | None, drafter: Drafter) -> None:
    if mix is None:
        return
    known, shares = set(mix) <= set(drafter.domains), list(mix.values())
    if not known or not all(0 <= share < float("inf") for share in shares) or not sum(shares) > 0:
        raise InputError(f"domain_mix={mix} is refused, expected shares of {', '.join(drafter.domains)}, not all 0")


def _check_stamps(trace: Trace, concurrency: int | None, request_rate: float | None) -> None:
    if not trace.stamped and concurrency is None and request_rate is None:
        raise InputError(f"{trace.source} has no stamps for an open loop: give --request-rate or --concurrency")


def _as_load(trace: str | Path | Trace | RecordedLoad, seed: int, window: int | None) -> Trace | RecordedLoad:
    if isinstance(trace, Trace | RecordedLoad):
        return trace
    if str(trace) == "example":
        return example_trace()
    if holds_records(trace):
        return load_records(trace, window=window, seed=seed)
    return load_trace(trace, seed=seed)
