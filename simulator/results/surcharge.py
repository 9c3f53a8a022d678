"""What adaptive verification may cost before a verdict for it falls: the surcharge a step at which it is even."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sglang_dspark.policies import Policy
from simulator.engine.run import Setting
from simulator.results.answer import least_trouble
from simulator.results.comparison import Comparison
from simulator.results.run import run_once
from simulator.results.varied import Surcharge

_FIRST_SHARE = 0.02
"""Of a step: the first surcharge that is tried where the gain does not suggest one."""


def flipping_surcharge(setting: Setting, policies: Sequence[Policy], comparison: Comparison) -> Surcharge | None:
    """Where the verdict between adaptive and other policies flips; None unless both kinds are compared.

    The gain is the comparison's own. What a surcharge takes of it is the slope of one replication under it: the policy
    decides the same whatever a step costs on top, so that the figure falls nearly in proportion. The slope is taken
    again at the crossing that the first one gives. None as well where a surcharge does not lower the figure.
    """
    by = comparison.judged
    sign = 1.0 if by.more_is_better else -1.0
    pairs = {result.policy: policy for policy, result in zip(policies, comparison.results, strict=True)}
    kinds = [[one for one in comparison.lossless if pairs[one.policy].adaptive is kind] for kind in (True, False)]
    if not all(kinds):
        return None
    ours, theirs = least_trouble(comparison, by.ranked(kinds[0])), by.ranked(kinds[1])[0]
    assumed = setting.cost.terms["adaptive_s"]
    gap = comparison.paired(ours, theirs, by.figure)
    ahead = sign * (ours.figures[by.figure] - theirs.figures[by.figure])
    if ahead <= 0 or gap.verdict == "no difference":
        return Surcharge(ours.policy, theirs.policy, assumed, None)
    first = ours.replications[0]
    step_s = first["duration"] / max(first["decode_steps"], 1) * setting.engine.replicas
    tried = max(abs(gap.mean), _FIRST_SHARE) * step_s
    for _ in range(2):
        left = run_once(dearer(setting, assumed + tried), pairs[ours.policy])[0][by.figure]
        lost = sign * (first[by.figure] - left)
        if lost <= 0:
            return None
        tried *= ahead / lost
    return Surcharge(ours.policy, theirs.policy, assumed, assumed + tried)


def dearer(setting: Setting, adaptive_s: float) -> Setting:
    """The same setting in which every step of a policy that needs survivals costs `adaptive_s` seconds more."""
    cost = setting.cost.with_terms(adaptive_s=adaptive_s)
    return replace(setting, cost=cost, belief=cost if setting.belief is setting.cost else setting.belief)
