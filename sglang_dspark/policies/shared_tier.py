"""Ranks that share a tier: what they tell each other, and what a rank may make of it.

Under DP attention every rank has requests and survivals of its own, but all of them execute the largest rank's tier. A
rank first decides by itself, from its own past and its own live survivals: it *asks* for tokens. What every rank asks
for is gathered, the largest of it runs everywhere, and a rank below it may verify up to it for free: the next tokens of
its own live admission order (`filled`).

Why the joint output law stays the target's for every request of every rank: nothing that a rank decided is taken back.
What a rank asks for depends on its past and, with a stopping rule, on survivals up to the rank at which it stopped,
all of them functions of draft tokens that it admits. Whether another rank verifies one token more therefore depends on
the past and on *admitted* draft tokens, its own and the other ranks'; and the law of what comes after a token that is
admitted does not change with what is known of admitted ones. The tier may be gathered before the draft (budget and
fixed rules) or after it (stopping rules): both are exact, and `audit.ranks` enumerates both. Where a rank gives up
what it asked for because of the tier, other ranks have decided on draft tokens that it drops, and the outputs of
*different ranks* become correlated, though each rank's own law is untouched: `audit.ranks` finds that too.

Past tiers are past information. Policies are not shown them: what others asked for would be free to ask for as well,
and two ranks that follow each other's last tier never come down from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sglang_dspark.cost import StepCost
from sglang_dspark.policies.arithmetic import Ints
from sglang_dspark.policies.base import Policy
from sglang_dspark.policies.rules.self_tuning import single_part
from sglang_dspark.policies.state import Past, Plan

_FILLED_KINDS = ("budget", "stopping")


@dataclass(frozen=True, slots=True)
class Asked:
    """What the ranks ask for in one step, by rank: verified tokens (anchors included; 0: idle), requests, context."""

    tokens: tuple[int, ...]
    requests: tuple[int, ...]
    context: tuple[int, ...]

    def tier(self, captured: Ints | None = None) -> int:
        """Tokens that every rank executes: the most that one asks for, rounded up to a captured size [G] if there is
        one that holds it."""
        return executed_tier(max(self.tokens), captured)


def executed_tier(tokens: int, captured: Ints | None) -> int:
    """`tokens` padded to the captured size [G] above; itself without one."""
    if captured is None or captured.size == 0 or tokens > captured[-1]:
        return tokens
    return int(captured[np.searchsorted(captured, tokens)])


def filled(policy: Policy, past: Past, total: int, tier: int) -> Plan | None:
    """What a rank that asked for `total` draft tokens verifies when `tier` tokens run anyway; None: what it asked for.

    The plan says only how many: they are the first of the live admission order, which what the rank asked for was too.
    None for a rule that verifies exactly what it says (`Policy.fills`), and for a length rule, whose tokens are not the
    first of that order: filling would take some of them back.
    """
    if not policy.fills or tier - past.num_requests <= total:
        return None
    rule, _, correction = single_part(policy, past)
    if rule.kind not in _FILLED_KINDS:
        return None
    floor, cap = rule.bounds(past.gamma)
    budget = min(tier - past.num_requests, past.totals(floor, cap)[1])
    return None if budget <= total else Plan(budget, floor, cap, past.caps, None, correction)


def group_seconds(cost: StepCost, asked: Asked, tier: int, *, eager: bool = False) -> tuple[float, float]:
    """(draft, verify) seconds of a step in which every rank executes `tier` tokens: the slowest rank's."""
    ranks = [(count, context) for count, context in zip(asked.requests, asked.context, strict=True) if count]
    draft = max(cost.draft_s(count, context) for count, context in ranks)
    return draft, max(float(cost.verify_s(count, tier, context, eager=eager)) for count, context in ranks)


def ask_for(num_requests: int, gamma: int, total: int | None) -> int:
    """Verified tokens of a decision to verify `total` draft tokens (None: all of them)."""
    return num_requests + (num_requests * gamma if total is None else total)


def gathered(rows: Sequence[Sequence[int]]) -> Asked:
    """From one (tokens, requests, context) a rank."""
    tokens, requests, context = zip(*rows, strict=True)
    return Asked(tuple(tokens), tuple(requests), tuple(context))
