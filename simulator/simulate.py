"""One call for a comparison: policies on the same draws, in parallel processes, with paired intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sglang_dspark.cost import StepCost, load_profile
from sglang_dspark.errors import InputError
from sglang_dspark.policies import Policy, make_policy, policy_to_string
from simulator.acceptance import Confidence
from simulator.drafters import DEFAULT_DRAFTER, find_drafter
from simulator.metrics import Figures
from simulator.parallel import run_all
from simulator.recorded_load import RecordedLoad, holds_records, load_records, records_cost
from simulator.run import EVEN_MIX, Setting
from simulator.settings import EngineSettings
from simulator.stated import shares_drawn, stated_assumptions, stated_setting
from simulator.traces import Trace, example_trace, load_trace

COMPARED = ("output_throughput", "accept_length", "mean_tpot_ms", "mean_ttft_ms", "mean_e2e_latency_ms")
"""Figures for which the difference to the first policy is given with an interval."""

# 97.5 % quantiles of Student's t for 1..30 degrees of freedom; beyond, the normal one is within 2 %.
_T975 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


@dataclass(frozen=True)
class Paired:
    """Relative difference to the first policy, replication by replication: mean and 95 % interval (NaN with one)."""

    mean: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """`better` and `worse` say more and less, not good and bad; `no difference` when the interval holds 0."""
        if math.isnan(self.low):
            return "one replication"
        return "higher" if self.low > 0 else "lower" if self.high < 0 else "no difference"


@dataclass(frozen=True)
class PolicyResult:
    """One policy: its figures in every replication, their means, and the differences to the first policy."""

    policy: str
    lossless: bool
    schedule: str
    replications: tuple[Figures, ...]
    difference: dict[str, Paired]

    @property
    def figures(self) -> Figures:
        """Mean over replications of every figure."""
        return {name: float(np.mean([run[name] for run in self.replications])) for name in self.replications[0]}


@dataclass(frozen=True)
class Comparison:
    """What `simulate` returns. results: one a policy, in the order asked. assumptions: what no source gave."""

    results: tuple[PolicyResult, ...]
    assumptions: tuple[str, ...]
    setting: dict[str, Any]

    def best(self, figure: str = "output_throughput") -> PolicyResult:
        """The policy with the largest mean of a figure."""
        return max(self.results, key=lambda result: result.figures[figure])


def simulate(
    trace: str | Path | Trace | RecordedLoad,
    profile: str | Path | StepCost,
    policies: Sequence[str | Policy],
    *,
    policy_profile: str | Path | StepCost | None = None,
    drafter: str | None = None,
    gamma: int | None = None,
    concurrency: int | None = None,
    request_rate: float | None = None,
    engine: EngineSettings | None = None,
    confidence: Confidence | None = None,
    domain_mix: dict[str, float] | None = None,
    replications: int = 5,
    seed: int = 0,
    jobs: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Comparison:
    """Serve a trace under several verification policies on the same draws.

    trace: a file, "example", a `Trace`, or records (a folder, or `load_records`), which give the acceptance as well.
    profile: what the engine costs, by name, file, records or model; policy_profile: what the policies believe (default
    the same). drafter: one of `DRAFTERS` (default dspark). gamma: draft block size; of records, the positions of each
    block that are looked at. concurrency: closed loop with so many requests in flight; None: open loop by the trace's
    stamps or Poisson at `request_rate` per second. engine: default SGLang's, or what records say of their server.
    replications: sets of draws; every policy meets the same ones. jobs: processes (default: one a core).
    on_progress(completed, total) counts requests over all runs.

    Returns a `Comparison`; figures carry bench_serving's names. Errors: InputError.
    """
    setting = prepare(
        trace, profile, policy_profile=policy_profile, drafter=drafter, gamma=gamma, concurrency=concurrency,
        request_rate=request_rate, engine=engine, confidence=confidence, domain_mix=domain_mix, seed=seed,
    )  # fmt: skip
    chosen = [make_policy(policy) if isinstance(policy, str) else policy for policy in policies]
    return compare_policies(setting, chosen, replications=replications, jobs=jobs, on_progress=on_progress)


def prepare(
    trace: str | Path | Trace | RecordedLoad,
    profile: str | Path | StepCost,
    *,
    policy_profile: str | Path | StepCost | None = None,
    drafter: str | None = None,
    gamma: int | None = None,
    concurrency: int | None = None,
    request_rate: float | None = None,
    engine: EngineSettings | None = None,
    confidence: Confidence | None = None,
    domain_mix: dict[str, float] | None = None,
    seed: int = 0,
) -> Setting:
    """What `simulate` runs its policies in; the arguments are its own."""
    if concurrency is not None and not 1 <= concurrency <= 1 << 20:
        raise InputError(f"concurrency={concurrency} is refused, expected 1..{1 << 20}")
    cost = find_cost(profile)
    load = _as_load(trace, seed, gamma)
    recorded = load if isinstance(load, RecordedLoad) else None
    if recorded is not None and gamma not in (None, recorded.blocks.gamma):
        raise InputError(f"gamma={gamma} is refused, these records were loaded with {recorded.blocks.gamma} positions")
    for name, value in {"drafter": drafter, "confidence": confidence, "domain_mix": domain_mix}.items():
        if recorded is not None and value is not None:
            raise InputError(f"{name} does nothing with records, which have an acceptance of their own")
    return Setting(
        trace=load.trace if isinstance(load, RecordedLoad) else load,
        cost=cost,
        belief=cost if policy_profile is None else find_cost(policy_profile),
        drafter=find_drafter(drafter or DEFAULT_DRAFTER, gamma) if recorded is None else recorded.drafter,
        confidence=confidence or Confidence(),
        engine=engine or (EngineSettings() if recorded is None else recorded.engine),
        concurrency=concurrency,
        request_rate=request_rate,
        domain_mix=domain_mix or dict(EVEN_MIX),
        seed=seed,
        recorded=recorded,
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
    _check(policies, replications, jobs)
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
            {name: paired([run[name] for run in figures], [run[name] for run in first]) for name in COMPARED},
        )
        for policy, figures in zip(policies, runs, strict=True)
    )
    met = {result.policy: result.figures["decode_steps"] * result.figures["mean_batch"] for result in results}
    assumptions = (*stated_assumptions(setting), *shares_drawn(setting, met))
    return Comparison(results, assumptions, stated_setting(setting, replications))


def find_cost(profile: str | Path | StepCost, *, force_diagonal: bool = False) -> StepCost:
    """A step-cost model by shipped name, from a file, or fitted on records."""
    if isinstance(profile, StepCost):
        return profile
    if holds_records(profile):
        return records_cost(profile)
    return load_profile(str(profile), force_diagonal=force_diagonal)


def paired(values: list[float], base: list[float]) -> Paired:
    """Relative mean difference and its 95 % interval from paired replications."""
    scale = float(np.mean(base))
    if scale == 0:
        return Paired(0.0, math.nan, math.nan)
    gaps = (np.array(values) - np.array(base)) / scale
    mean, count = float(gaps.mean()), gaps.size
    if count < 2:
        return Paired(mean, math.nan, math.nan)
    quantile = _T975[count - 2] if count - 2 < len(_T975) else 1.96
    half = quantile * float(gaps.std(ddof=1)) / math.sqrt(count)
    return Paired(mean, mean - half, mean + half)


def _check(policies: Sequence[Policy], replications: int, jobs: int | None) -> None:
    if not policies:
        raise InputError("no policy is given, expected at least one")
    if not 1 <= replications <= 1000:
        raise InputError(f"replications={replications} is refused, expected 1..1000")
    if jobs is not None and not 1 <= jobs <= 1024:
        raise InputError(f"jobs={jobs} is refused, expected 1..1024")


def _as_load(trace: str | Path | Trace | RecordedLoad, seed: int, window: int | None) -> Trace | RecordedLoad:
    if isinstance(trace, Trace | RecordedLoad):
        return trace
    if str(trace) == "example":
        return example_trace()
    if holds_records(trace):
        return load_records(trace, window=window, seed=seed)
    return load_trace(trace, seed=seed)
