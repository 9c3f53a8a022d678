"""What a comparison is judged by, and what it says in one sentence."""

from __future__ import annotations

import math

import numpy as np

from simulator.results.comparison import Comparison, PolicyResult
from simulator.results.paired import interval
from simulator.results.steady import ENOUGH


def verdict(comparison: Comparison) -> str:
    """One sentence: the best lossless policy, that there is no difference, or why nothing can be said."""
    doubt = why_none(comparison)
    if doubt or len(comparison.lossless) < 2:
        return doubt
    by = comparison.judged
    best, second = by.ranked(comparison.lossless)[:2]
    if len(best.replications) < 2:
        return f"best {by.words}: {best.policy} (one replication: no interval)"
    gap = comparison.paired(best, second, by.figure)
    if gap.verdict == "no difference":
        return f"best {by.words}: {best.policy} and {second.policy}: no difference ({interval(gap)})"
    return f"best {by.words}: {best.policy} ({interval(gap)} against {second.policy})"


def why_none(comparison: Comparison) -> str:
    """Why a comparison gives no verdict; empty when it does."""
    return too_short(comparison) or _nothing_served(comparison) or _backlog(comparison) or _all_keep(comparison)


def too_short(comparison: Comparison) -> str:
    """Why a closed loop's steady window is too short for a verdict; empty if it is not."""
    if comparison.setting["loop"] != "closed":
        return ""
    in_flight = comparison.setting["concurrency"]
    runs = [run for result in comparison.results for run in result.replications]
    least = min(runs, key=lambda run: run["steady_requests"])
    if least["steady_requests"] >= ENOUGH * in_flight:
        return ""
    return (
        f"no verdict: {least['steady_requests']:.0f} requests were sent inside the steady window of "
        f"{least['steady_window_s']:.1f} s, expected at least {ENOUGH * in_flight} ({ENOUGH} x {in_flight} in flight): "
        "give a longer trace or fewer requests in flight"
    )


def overload_words(result: PolicyResult) -> str:
    """What an overloaded policy's figures mean; empty where it keeps up."""
    runs = [run for run in result.replications if run.get("overload")]
    if not runs:
        return ""
    which = "" if len(runs) == len(result.replications) else f" in {len(runs)} of {len(result.replications)} runs"
    factor = float(np.mean([run["overload"] for run in runs]))
    if math.isinf(factor):
        return f"{result.policy}: all requests come at once{which}; latencies are those of a queue that drains"
    sustained = float(np.mean([run["sustained_request_rate"] for run in runs]))
    return (
        f"{result.policy}: overloaded{which}: requests come at {factor:.3g}x the rate it sustains ({sustained:.3g} a "
        "second); its latencies grow with the length of the trace"
    )


def _nothing_served(comparison: Comparison) -> str:
    for result in comparison.lossless:
        if any(not run["completed"] for run in result.replications):
            return f"no verdict: a run of {result.policy} served no request"
    return ""


def _backlog(comparison: Comparison) -> str:
    """Latencies and limits of latency say nothing under a growing backlog; throughput does, where all have one."""
    if comparison.setting["loop"] == "closed":
        return ""
    runs = [run for result in comparison.lossless for run in result.replications]
    late = [result.policy for result in comparison.lossless if any(run["overload"] for run in result.replications)]
    if not late or (all(run["overload"] for run in runs) and not comparison.setting["goodput_slos_ms"]):
        return ""
    kept = [result.policy for result in comparison.lossless if result.policy not in late]
    return f"no verdict: {', '.join(late)} overloaded" + (f"; {', '.join(kept)} keep up" if kept else "")


def _all_keep(comparison: Comparison) -> str:
    """Where every request is within the limits they tell no policy from another."""
    if not comparison.setting["goodput_slos_ms"] or comparison.setting["loop"] == "closed":
        return ""
    runs = [run for result in comparison.lossless for run in result.replications]
    return (
        "no verdict: every policy keeps the limits for every request"
        if all(run["slo_attainment"] == 1 for run in runs)
        else ""
    )
