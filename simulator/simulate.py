"""One call for a comparison: policies on the same draws, in parallel processes, with paired intervals."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sglang_dspark.cost import StepCost, load_profile, provenance
from sglang_dspark.errors import InputError
from sglang_dspark.policies import Policy, make_policy, policy_to_string
from simulator.acceptance import Confidence
from simulator.drafters import find_drafter
from simulator.metrics import Figures
from simulator.parallel import run_all
from simulator.run import EVEN_MIX, Setting
from simulator.settings import EngineSettings
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
    trace: str | Path | Trace,
    profile: str | StepCost,
    policies: Sequence[str | Policy],
    *,
    policy_profile: str | StepCost | None = None,
    drafter: str = "dspark",
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

    trace: a file, "example" or a `Trace`. profile: what the engine costs, by name, file or model; policy_profile: what
    the policies believe (default the same). concurrency: closed loop with so many requests in flight; None: open loop
    by the trace's stamps or Poisson at `request_rate` per second. replications: sets of draws; every policy meets the
    same ones. jobs: processes (default: one a core). on_progress(completed, total) counts requests over all runs.

    Returns a `Comparison`; figures carry bench_serving's names. Errors: InputError.
    """
    chosen = [make_policy(policy) if isinstance(policy, str) else policy for policy in policies]
    _check(chosen, concurrency, replications, jobs)
    cost = load_profile(profile) if isinstance(profile, str) else profile
    belief = cost if policy_profile is None else policy_profile
    setting = Setting(
        trace=_as_trace(trace, seed),
        cost=cost,
        belief=load_profile(belief) if isinstance(belief, str) else belief,
        drafter=find_drafter(drafter, gamma),
        confidence=confidence or Confidence(),
        engine=engine or EngineSettings(),
        concurrency=concurrency,
        request_rate=request_rate,
        domain_mix=domain_mix or dict(EVEN_MIX),
        seed=seed,
    )
    for policy in chosen:
        setting.check(policy)
    runs = run_all(setting, chosen, replications, jobs, on_progress)
    first = runs[0]
    results = tuple(
        PolicyResult(
            policy_to_string(policy),
            policy.lossless,
            setting.engine.schedule_for(policy),
            tuple(figures),
            {name: paired([run[name] for run in figures], [run[name] for run in first]) for name in COMPARED},
        )
        for policy, figures in zip(chosen, runs, strict=True)
    )
    return Comparison(results, stated_assumptions(setting), stated_setting(setting, replications))


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


def stated_assumptions(setting: Setting) -> tuple[str, ...]:
    """Everything that no source gave, in words."""
    out = [*setting.cost.assumptions, *setting.drafter.assumptions]
    if setting.engine.kv_tokens is not None:
        out = [text for text in out if not text.startswith("kv_tokens ")]
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


def stated_setting(setting: Setting, replications: int) -> dict[str, Any]:
    """The setting in plain values, for reports."""
    trace = setting.trace
    return {
        "trace": trace.source,
        "requests": len(trace),
        "trace_notes": list(trace.notes),
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


def _check(policies: list[Policy], concurrency: int | None, replications: int, jobs: int | None) -> None:
    if not policies:
        raise InputError("no policy is given, expected at least one")
    if concurrency is not None and not 1 <= concurrency <= 1 << 20:
        raise InputError(f"concurrency={concurrency} is refused, expected 1..{1 << 20}")
    if not 1 <= replications <= 1000:
        raise InputError(f"replications={replications} is refused, expected 1..1000")
    if jobs is not None and not 1 <= jobs <= 1024:
        raise InputError(f"jobs={jobs} is refused, expected 1..1024")


def _as_trace(trace: str | Path | Trace, seed: int) -> Trace:
    if isinstance(trace, Trace):
        return trace
    return example_trace() if str(trace) == "example" else load_trace(trace, seed=seed)
