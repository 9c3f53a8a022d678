"""One call for a comparison: policies on the same draws, in parallel processes, with paired intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from sglang_dspark.cost import StepCost
from sglang_dspark.errors import InputError
from sglang_dspark.policies import Policy, make_policy, policy_to_string
from sglang_dspark.workers import Hire
from simulator.engine.recorded_load import RecordedLoad
from simulator.engine.run import Setting
from simulator.inputs import Acceptance, Engine, Load, prepare
from simulator.parallel import run_all
from simulator.results.accuracy import accuracy_of
from simulator.results.comparison import COMPARED, Comparison, PolicyResult
from simulator.results.estimated import estimated
from simulator.results.fallbacks import fallbacks
from simulator.results.metrics import Figures
from simulator.results.paired import Paired, paired
from simulator.results.probes import beyond_probes, hanging_gains
from simulator.results.servers import queueing
from simulator.results.stated import shares_drawn, stated_assumptions, stated_setting
from simulator.results.surcharge import flipping_surcharge
from simulator.results.verdict import why_none
from simulator.results.whose import other_model
from simulator.run_store import RunStore
from simulator.traces import Trace


def simulate(
    load: Load | str | Path | Trace | RecordedLoad,
    engine: Engine | str | Path | StepCost,
    policies: Sequence[str | Policy],
    *,
    acceptance: Acceptance | None = None,
    replications: int = 5,
    seed: int = 0,
    jobs: int | Hire | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Comparison:
    """Serve a load under several verification policies on the same draws.

    load: what is asked, see `Load`; a trace alone is an open loop by its stamps. engine: what serves it, see `Engine`;
    a profile alone is SGLang's defaults. acceptance: see `Acceptance`. replications: sets of draws; every policy meets
    the same ones. jobs: processes (default: one a core), or `RayCluster(...).hire` of `sglang_dspark.on_ray`.
    on_progress(completed, total) counts requests over all runs.

    Returns a `Comparison`; figures carry bench_serving's names. Errors: InputError.
    """
    setting = prepare(load, engine, acceptance, seed=seed)
    chosen = [make_policy(policy) if isinstance(policy, str) else policy for policy in policies]
    return compare_policies(setting, chosen, replications=replications, jobs=jobs, on_progress=on_progress)


def compare_policies(
    setting: Setting,
    policies: Sequence[Policy],
    *,
    replications: int = 5,
    jobs: int | Hire | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    store: RunStore | None = None,
) -> Comparison:
    """`simulate` in a setting that `prepare` has made. store: finished runs are kept in it and taken from it."""
    check_runs(policies, setting.windows, replications, jobs)
    for policy in policies:
        setting.check(policy)
    runs = run_all(setting, policies, replications, jobs, on_progress, store)
    return judged_runs(setting, policies, runs)


def judged_runs(setting: Setting, policies: Sequence[Policy], runs: Sequence[Sequence[Figures]]) -> Comparison:
    """The comparison of finished runs, by policy and replication."""
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
    comparison = Comparison(results, assumptions, stated_setting(setting, policies, len(first)))
    by = comparison.judged
    return replace(
        comparison,
        warnings=(
            *queueing(setting, policies),
            *other_model(setting, policies),
            *fallbacks(results),
            *estimated(setting, policies, results, by.figure),
            *beyond_probes(setting, results),
            *hanging_gains(setting, policies, results, by.figure),
        ),
        surcharge=None if why_none(comparison) else flipping_surcharge(setting, policies, comparison),
        accuracy=accuracy_of(setting),
    )


def _differences(runs: Sequence[Figures], base: Sequence[Figures], windows: int) -> dict[str, Paired]:
    return {
        name: paired([run[name] for run in runs], [run[name] for run in base], windows)
        for name in COMPARED
        if name in base[0]
    }


def check_runs(policies: Sequence[Policy], windows: int, replications: int, jobs: int | Hire | None) -> None:
    """Refuse (InputError) what cannot be compared."""
    if replications % windows:
        raise InputError(f"replications={replications} is refused with windows={windows}, expected a multiple of it")
    if not policies:
        raise InputError("no policy is given, expected at least one")
    if not 1 <= replications <= 1000:
        raise InputError(f"replications={replications} is refused, expected 1..1000")
    if isinstance(jobs, int) and not 1 <= jobs <= 1024:
        raise InputError(f"jobs={jobs} is refused, expected 1..1024")
