"""What a result says when its step costs are an estimate: how far such estimates were off, and gains that hang on dips.

An estimated curve dips where kernel times do, over many neighbouring token counts at once: leaving one out changes
nothing, so the gain is priced again on a curve that never falls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from sglang_dspark.cost import StepCost
from sglang_dspark.cost.estimate.accuracy import error_band
from sglang_dspark.cost.estimate.guards import DIP
from sglang_dspark.policies import Policy
from simulator.engine.run import Setting
from simulator.results.comparison import PolicyResult
from simulator.results.run import run_once

SMALL = 0.02
"""Gains below that are not looked at."""


def estimated(
    setting: Setting, policies: Sequence[Policy], results: Sequence[PolicyResult], figure: str
) -> tuple[str, ...]:
    """The error band of an estimate, and one warning for every gain that falls by more than half without its dips."""
    said = error_of_estimate(setting)
    return (*said, *_hanging_on_dips(setting, policies, results, figure)) if setting.cost.is_estimate else said


def error_of_estimate(setting: Setting) -> tuple[str, ...]:
    """How far off such step costs were, and for which draft they are; nothing where they were measured."""
    if setting.cost.is_estimate:
        return (_said("the step costs are", setting.cost),)
    return (_said("what the policies believe is", setting.belief),) if setting.belief.is_estimate else ()


def _said(what: str, cost: StepCost) -> str:
    return f"warning: {what} an {error_band().text}; draft {cost.meta.get('draft', 'unknown')}"


def _hanging_on_dips(
    setting: Setting, policies: Sequence[Policy], results: Sequence[PolicyResult], figure: str
) -> list[str]:
    """Every run here is of the first set of draws, with and without."""
    level, base = levelled(setting.cost), results[0].replications[0][figure]
    pairs = zip(policies[1:], results[1:], strict=True)
    gained = [(policy, result) for policy, result in pairs if abs(result.difference[figure].mean) >= SMALL]
    if level is setting.cost or not gained or not base:
        return []
    mended = replace(setting, cost=level, belief=level if setting.belief is setting.cost else setting.belief)
    first = run_once(mended, policies[0])[0][figure]
    said = []
    for policy, result in gained:
        gain = result.replications[0][figure] / base - 1
        left = run_once(mended, policy)[0][figure] / first - 1 if first else gain
        if gain and left / gain < 0.5:
            said.append(
                f"warning: the gain of {result.policy} over {results[0].policy} ({gain:+.1%}) hangs on dips of the "
                "estimate, where a larger step costs less than a smaller one: on a curve that never falls it is "
                f"{left:+.1%}"
            )
    return said


def levelled(cost: StepCost) -> StepCost:
    """The model with a verify curve that never falls; itself where no dip is worth a word."""
    seconds = np.maximum.accumulate(cost.verify.seconds, axis=-1)
    if (1 - cost.verify.seconds / seconds).max() < DIP:
        return cost
    return replace(cost, verify=replace(cost.verify, seconds=seconds))
