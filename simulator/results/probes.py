"""Gains that hang on one probe of a step-cost table: priced again without it, they are gone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from sglang_dspark.cost import StepCost
from sglang_dspark.policies import Policy
from simulator.engine.run import Setting
from simulator.results.comparison import PolicyResult
from simulator.results.run import run_once

ODD = 0.15
"""A larger token count that is cheaper than a smaller one by this share is doubtful; the B300 table dips by 10 %."""

MOST = 6
"""So many doubtful probes are left out in turn."""

SMALL = 0.02
"""Gains below that are not looked at."""


def beyond_probes(setting: Setting, results: Sequence[PolicyResult]) -> tuple[str, ...]:
    """One warning when decode steps ran outside what the profile was measured for, with their share by policy."""
    shares = {result.policy: result.figures["beyond_probes_share"] for result in results}
    if not any(shares.values()):
        return ()
    said = ", ".join(f"{share:.1%} ({policy})" for policy, share in shares.items() if share)
    requests = setting.cost.measured_requests
    how = "its nearest probe" if setting.graphs == "profile" else "its nearest probe, or on the line of its graphs"
    return (
        f"warning: beyond the probes of profile {setting.cost.name} ({_measured(setting.cost)}, "
        f"{requests[0]:g} to {requests[1]:g} requests) lie these shares of the decode steps, priced as {how}: {said}",
    )


def _measured(cost: StepCost) -> str:
    low, high = cost.measured_tokens
    if cost.eager is None or cost.captured is None:
        return f"{low:g} to {high:g} tokens"
    (first, last), eager = cost.verify.span, cost.eager.span
    return f"{first:g} to {min(last, cost.last_captured):g} tokens in graphs, {eager[0]:g} to {eager[1]:g} eager"


def hanging_gains(
    setting: Setting, policies: Sequence[Policy], results: Sequence[PolicyResult], figure: str
) -> tuple[str, ...]:
    """One warning for every policy whose gain over the first one falls by more than half without some odd probe.

    Every run here is of the first set of draws, with and without.
    """
    gained = {
        result.policy: policy
        for policy, result in zip(policies, results, strict=True)
        if abs(result.difference[figure].mean) >= SMALL
    }
    odd = odd_probes(setting.cost) if gained and not setting.cost.is_estimate else []  # see `results.estimated`
    gain = {result.policy: _ratio(result, results[0], figure) for result in results}
    worst: dict[str, tuple[float, int]] = {}
    for probe in odd:
        cost = without_probe(setting.cost, probe)
        mended = replace(setting, cost=cost, belief=cost if setting.belief is setting.cost else setting.belief)
        first = run_once(mended, policies[0])[0][figure]
        for name, policy in gained.items():
            left = run_once(mended, policy)[0][figure] / first - 1 if first else gain[name]
            worst[name] = min(worst.get(name, (1.0, probe)), (left / gain[name] if gain[name] else 1.0, probe))
    return tuple(
        f"warning: the gain of {name} over {results[0].policy} ({100 * gain[name]:+.1f} %) hangs on one probe of "
        f"profile {setting.cost.name}, {probe} tokens, which is out of line with its neighbours: without it, it is "
        f"{100 * gain[name] * share:+.1f} %: measure it again"
        for name, (share, probe) in worst.items()
        if share < 0.5
    )


def _ratio(result: PolicyResult, base: PolicyResult, figure: str) -> float:
    """The gain of the first replication."""
    ours, theirs = (each.replications[0][figure] for each in (result, base))
    return ours / theirs - 1 if theirs else 0.0


def odd_probes(cost: StepCost) -> list[int]:
    """Probes of the verify curve that cost `ODD` less than a smaller one or more than a larger one, worst first."""
    seconds = np.atleast_2d(cost.verify.seconds + cost.bias_s).mean(axis=0)
    dip = 1 - seconds / np.maximum.accumulate(seconds)
    spike = 1 - np.minimum.accumulate(seconds[::-1])[::-1] / seconds
    odd = np.maximum(dip, spike)
    order = np.argsort(-odd, kind="stable")
    return [int(cost.verify.probes[index]) for index in order if odd[index] >= ODD][:MOST]


def without_probe(cost: StepCost, probe: int) -> StepCost:
    """The same model with one probe of the verify curve left out."""
    curve = cost.verify
    kept = curve.probes != probe
    return replace(cost, verify=replace(curve, probes=curve.probes[kept], seconds=curve.seconds[..., kept]))
