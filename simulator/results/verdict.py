"""What a comparison is judged by, and what it says in one sentence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from simulator.results.comparison import Comparison, PolicyResult
from simulator.results.paired import interval
from simulator.results.steady import ENOUGH

STEADY = "steady_output_throughput"


@dataclass(frozen=True)
class Judged:
    """The figure that decides, in words, and whether more of it is better."""

    figure: str
    words: str
    more_is_better: bool = True


def judged(comparison: Comparison) -> Judged:
    """Goodput where limits are given; a closed loop by its steady throughput; an open one by latency, or, where every
    policy is overloaded, by what each sustains: its latencies grow with the length of the trace."""
    if comparison.setting["goodput_slos_ms"]:
        return Judged("request_goodput", "goodput (requests a second within the limits)")
    if comparison.setting["loop"] == "closed":
        return Judged(STEADY, "steady output throughput")
    if all(result.figures["overload"] for result in comparison.results):
        return Judged("output_throughput", "output throughput under overload")
    return Judged("mean_e2e_latency_ms", "mean end-to-end latency", more_is_better=False)


def verdict(comparison: Comparison) -> str:
    """One sentence: the best lossless policy, that there is no difference, or why nothing can be said."""
    lossless = [result for result in comparison.results if result.lossless]
    doubt = too_short(comparison) or _not_all_keep_up(lossless)
    if doubt or len(lossless) < 2:
        return doubt
    by = judged(comparison)
    ranked = sorted(lossless, key=lambda result: result.figures[by.figure], reverse=by.more_is_better)
    best, second = ranked[:2]
    if len(best.replications) < 2:
        return f"best {by.words}: {best.policy} (one replication: no interval)"
    gap = comparison.paired(best, second, by.figure)
    if gap.verdict == "no difference":
        return f"best {by.words}: {best.policy} and {second.policy}: no difference ({interval(gap)})"
    return f"best {by.words}: {best.policy} ({interval(gap)} against {second.policy})"


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
    factor = result.figures.get("overload", 0.0)
    if not factor:
        return ""
    if math.isinf(factor):
        return f"{result.policy}: all requests come at once; latencies are those of a queue that drains"
    return (
        f"{result.policy}: overloaded: requests come at {factor:.3g}x the rate it sustains "
        f"({result.figures['request_throughput']:.3g} a second); its latencies grow with the length of the trace"
    )


def _not_all_keep_up(results: Sequence[PolicyResult]) -> str:
    late = [result for result in results if result.figures.get("overload")]
    if not late or len(late) == len(results):
        return ""
    kept = ", ".join(result.policy for result in results if result not in late)
    return f"no latency verdict: {', '.join(result.policy for result in late)} overloaded; {kept} keep up"
