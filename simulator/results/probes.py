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

DIP = 0.15
"""A larger token count that is cheaper than a smaller one by this share is doubtful; the B300 table dips by 10 %."""

SMALL = 0.02
"""Gains below that are not looked at."""


def beyond_probes(setting: Setting, results: Sequence[PolicyResult]) -> tuple[str, ...]:
    """One warning when decode steps ran outside what the profile was measured for, with their share by policy."""
    shares = {result.policy: result.figures["beyond_probes_share"] for result in results}
    if not any(shares.values()):
        return ()
    said = ", ".join(f"{share:.1%} ({policy})" for policy, share in shares.items() if share)
    tokens, requests = setting.cost.measured_tokens, setting.cost.measured_requests
    return (
        f"warning: beyond the probes of profile {setting.cost.name} ({tokens[0]:g} to {tokens[1]:g} tokens, "
        f"{requests[0]:g} to {requests[1]:g} requests) lie these shares of the decode steps, priced as its nearest "
        f"probe: {said}",
    )


def hanging_gains(
    setting: Setting, policies: Sequence[Policy], results: Sequence[PolicyResult], figure: str
) -> tuple[str, ...]:
    """One warning for every policy whose gain over the first one falls by more than half without the deepest dip."""
    probe = deepest_dip(setting.cost)
    gained = [abs(result.difference[figure].mean) >= SMALL for result in results]
    if probe is None or not any(gained):
        return ()
    cost = without_probe(setting.cost, probe)
    belief = cost if setting.belief is setting.cost else setting.belief
    mended = replace(setting, cost=cost, belief=belief)
    first = run_once(mended, policies[0])[0][figure]
    found = []
    for policy, result, looked_at in zip(policies, results, gained, strict=True):
        if not looked_at or not first:
            continue
        gain, left = result.difference[figure].mean, run_once(mended, policy)[0][figure] / first - 1
        if left / gain < 0.5:  # less than half of it, or the other sign
            found.append(
                f"warning: the gain of {result.policy} over {results[0].policy} ({100 * gain:+.1f} %) hangs on one "
                f"probe of profile {setting.cost.name}: {probe} tokens are cheaper than fewer; without that probe it "
                f"is {100 * left:+.1f} %: measure it again"
            )
    return tuple(found)


def deepest_dip(cost: StepCost) -> int | None:
    """The probe of the verify curve that lies deepest below a smaller one, None when none lies `DIP` below."""
    seconds = np.atleast_2d(cost.verify.seconds + cost.bias_s).mean(axis=0)
    depth = 1 - seconds / np.maximum.accumulate(seconds)
    worst = int(np.argmax(depth))
    return int(cost.verify.probes[worst]) if depth[worst] >= DIP else None


def without_probe(cost: StepCost, probe: int) -> StepCost:
    """The same model with one probe of the verify curve left out."""
    curve = cost.verify
    kept = curve.probes != probe
    return replace(cost, verify=replace(curve, probes=curve.probes[kept], seconds=curve.seconds[..., kept]))
