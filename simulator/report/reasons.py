"""Why a policy verifies what it verifies, in words and as spans of the admission order: asked of the policy itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sglang_dspark.policies import (
    SCALE,
    BudgetRule,
    Decision,
    Fixed,
    Guard,
    LengthRule,
    LiveBlock,
    NoDraft,
    Past,
    Policy,
    StoppingRule,
    TableLength,
    TableStop,
    policy_to_string,
    single_part,
)
from sglang_dspark.policies.arithmetic import Floats, Ints, below, keys_for, tau_along
from sglang_dspark.policies.calibration import corrected_block


@dataclass(frozen=True)
class Reasons:
    """rule: how the policy decides, in a sentence. spans: (first rank, last rank, why) where it goes along the live
    admission order; else yes and no say why a token is verified or not.

    sees: expected tokens a second by admitted count [n] where the rule looks at another curve than the step's own, and
    sees_what: which one that is.
    """

    rule: str
    spans: tuple[tuple[int, int, str], ...] = ()
    yes: str = ""
    no: str = ""
    sees: Floats | None = None
    sees_what: str = ""


def reasons(policy: Policy, past: Past, live: LiveBlock, decision: Decision) -> Reasons:
    """Of one decision. Ranks count from 1, in the admission order of all drafted tokens."""
    rule, view, numbers = single_part(policy, past)
    prefix = ""
    if isinstance(rule, Guard):
        guard, chosen = rule, rule.choose(view)
        rule, view = guard.parts[chosen], guard.seen(view, chosen)
        prefix = f"The past predicts that {policy_to_string(rule)} is the better branch in this step. "
    if numbers is not None:
        prefix += (
            "Confidences are corrected by what earlier steps taught "
            f"(logit c' = {numbers[0]:.2f} logit c {numbers[1]:+.2f}). "
        )
    shown = corrected_block(live, numbers)
    found = _of_rule(rule, view, shown, decision)
    straight = numbers is None and _is_prefix(rule, past.gamma)
    spans = found.spans if straight else ()
    return Reasons(prefix + found.rule, spans, found.yes, found.no, found.sees, found.sees_what)


def _of_rule(rule: Policy, past: Past, live: LiveBlock, decision: Decision) -> Reasons:
    if isinstance(rule, LengthRule):
        return _of_length(rule, past)
    if isinstance(rule, StoppingRule):
        return _of_stopping(rule, past, live, decision)
    if isinstance(rule, BudgetRule):
        return _of_budget(rule, past, decision)
    if rule.lossless:
        return Reasons("It puts other rules together.", yes="one of its rules took it", no="none of its rules took it")
    said = "It looks at the whole block before it decides, so it is not lossless and never served."
    return Reasons(said, yes="chosen with the whole block in view", no="left out with the whole block in view")


def _of_length(rule: LengthRule, past: Past) -> Reasons:
    if isinstance(rule, NoDraft):
        return Reasons("No drafter runs: one token a request and step.", no="nothing is drafted")
    if isinstance(rule, Fixed):
        k = rule.bounds(past.gamma)[0]
        said = f"The first {k} draft tokens of every request are verified, whatever their confidence."
        return Reasons(said, yes=f"among the first {k} of its request", no=f"beyond the first {k} of its request")
    if isinstance(rule, TableLength):
        table = rule.tables(past)
        least, what = (
            (table.confidence, "confidence")
            if table.confidence is not None
            else (None if table.survival is None else table.survival / SCALE, "survival")
        )
        asked = "" if least is None else f" of {', '.join(f'{value:g}' for value in dict.fromkeys(least.tolist()))}"
        said = f"Each request is verified up to its first token whose {what} is below the least{asked}."
        return Reasons(
            said, yes=f"no {what} of its request is too low up to here", no=f"a {what} was too low here or before"
        )
    said = "Each request is verified token by token until the rule declines one."
    return Reasons(said, yes="the rule took it", no="the rule declined this token or one before it")


def _of_stopping(rule: StoppingRule, past: Past, live: LiveBlock, decision: Decision) -> Reasons:
    floor, cap = rule.bounds(past.gamma)
    start, _ = past.totals(floor, cap)
    order = keys_for(past.num_requests, floor, cap)
    keys = np.sort(order.of(live.units.copy(), past.caps))
    survivals = order.survivals(keys)
    tau = past.num_requests * SCALE + below(live.units, floor, past.caps)
    tables = rule.tables(past)
    walked = rule.walk(past, tables, start, tau, survivals)
    count, everything = decision.total, past.num_requests * past.gamma
    spans = [(1, walked, "admitted on the way: going on promises more tokens a second")]
    if count > walked:
        spans.append((walked + 1, count, "filled: the graph that runs anyway has room for it"))
    spans.append((count + 1, count + 1, "declined: the walk ends here, and nothing behind it is looked at"))
    spans.append((count + 2, everything, "never looked at: the walk had ended"))
    said = f"Walks the live admission order and stops after {walked} of {everything} tokens"
    said += f", then fills up to {count}." if count > walked else "."
    kept = tuple(span for span in spans if span[0] <= min(span[1], everything))
    if not isinstance(rule, TableStop):
        return Reasons(said, kept)
    inverse = tables.inverse
    sees = tau_along(survivals, tau)[: inverse.size - start] / SCALE * inverse[start : start + survivals.size + 1]
    if inverse is past.prices.inverse:
        return Reasons(said, kept)
    return Reasons(said, kept, sees=sees, sees_what="as the rule sees it, on the convex hull of the step cost")


def _of_budget(rule: BudgetRule, past: Past, decision: Decision) -> Reasons:
    asked: list[tuple[int, Ints]] = []

    def lagged(lag: int) -> Any:
        assert past.lagged is not None
        units, published = past.lagged(lag)
        asked.append((lag, units))
        return units, published

    spying = None if past.lagged is None else lagged
    watched = Past(past.num_requests, past.gamma, past.prices, spying, past.carry, past.waiting, past.caps)
    rule.plan(watched)
    count, everything = decision.total, past.num_requests * past.gamma
    said = f"The budget of {count} draft tokens was set before this draft was drawn"
    spans = tuple(
        span
        for span in (
            (1, count, "inside the budget, which goes to the likeliest tokens of the live block"),
            (count + 1, everything, "beyond the budget"),
        )
        if span[0] <= span[1]
    )
    if not asked:
        return Reasons(f"{said}; the likeliest tokens of the live block get it.", spans)
    lag, units = asked[-1]
    tau = tau_along(np.sort(units.ravel())[::-1], past.num_requests * SCALE) / SCALE
    said += f", from survivals {lag} steps old; the likeliest tokens of the live block get it."
    return Reasons(said, spans, sees=tau * past.prices.inverse, sees_what=f"as expected from survivals {lag} steps old")


def _is_prefix(rule: Policy, gamma: int) -> bool:
    """Whether what the rule verifies is the beginning of the raw admission order."""
    return not isinstance(rule, LengthRule) and rule.bounds(gamma) == (0, gamma)
