"""What adaptive verification may cost before a verdict for it falls: the surcharge a step at which it is even."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sglang_dspark.policies import Policy
from simulator.engine.run import Setting
from simulator.results.comparison import PolicyResult
from simulator.results.run import run_once
from simulator.results.varied import Surcharge
from simulator.results.verdict import Judged

_FIRST_SHARE = 0.02
"""Of a step: the first surcharge that is tried where the gain does not suggest one."""


def flipping_surcharge(
    setting: Setting, policies: Sequence[Policy], results: Sequence[PolicyResult], by: Judged
) -> Surcharge | None:
    """Where the verdict between adaptive and other policies flips; None unless both kinds are compared.

    One run under a surcharge gives the slope, and the crossing is read off the line: the policy decides the same
    whatever a step costs on top, so that the figure falls nearly in proportion. Where the crossing lies far from that
    run, one more run is made there.
    """
    sign = 1.0 if by.more_is_better else -1.0
    kinds: dict[bool, list[tuple[float, Policy, PolicyResult]]] = {True: [], False: []}
    for policy, result in zip(policies, results, strict=True):
        if policy.lossless:
            kinds[policy.adaptive].append((sign * result.figures[by.figure], policy, result))
    if not kinds[True] or not kinds[False]:
        return None
    (_, policy, ours), (_, _, theirs) = (max(kinds[kind], key=lambda each: each[0]) for kind in (True, False))
    assumed = setting.cost.terms["adaptive_s"]
    own, goal = (sign * result.replications[0][by.figure] for result in (ours, theirs))
    if own <= goal:
        return Surcharge(ours.policy, theirs.policy, assumed, None)
    figures = ours.replications[0]
    step_s = figures["duration"] / max(figures["decode_steps"], 1) * setting.engine.replicas
    tried = max(abs(own / goal - 1) if goal else 0.0, _FIRST_SHARE) * step_s
    for _ in range(2):
        left = sign * run_once(dearer(setting, assumed + tried), policy)[0][by.figure]
        if left >= own:
            return Surcharge(ours.policy, theirs.policy, assumed, assumed + 10 * tried)
        tried *= (own - goal) / (own - left)
    return Surcharge(ours.policy, theirs.policy, assumed, assumed + tried)


def dearer(setting: Setting, adaptive_s: float) -> Setting:
    """The same setting in which every step of a policy that reads confidences costs `adaptive_s` seconds more."""
    cost = setting.cost.with_terms(adaptive_s=adaptive_s)
    return replace(setting, cost=cost, belief=cost if setting.belief is setting.cost else setting.belief)
