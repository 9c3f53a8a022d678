"""What drafting costs: the profile's draft time, turned into that of another drafter, gamma or number of positions.

A profile's draft time is of one block of `meta.gamma` tokens, and `draft_head_s` of it is the head's at every position:
backbone = draft time - meta.gamma * draft_head_s. A drafter takes scale * backbone, and DSpark the head at every
position that it drafts: one pass drafts a whole block, whatever gamma is and whatever is verified. A sequential drafter
(EAGLE-3, MTP) takes a scale a position, and drafts no position that its policy never verifies.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sglang_dspark.cost import Assumption, StepCost
from sglang_dspark.errors import InputError
from sglang_dspark.policies import Policy
from simulator.blocks.drafter import Drafter


def drafted_positions(policy: Policy, drafter: Drafter) -> int:
    """Positions that a step drafts: all of the block, or as many as a sequential drafter's policy may ever verify."""
    if not policy.drafts:
        return 0
    return min(policy.bounds(drafter.gamma)[1], drafter.gamma) if drafter.method.sequential else drafter.gamma


def with_drafter(cost: StepCost, drafter: Drafter, positions: int) -> StepCost:
    """The step costs with `positions` tokens drafted by this drafter.

    Errors: InputError where the profile does not tell draft from verify time, or its head does not fit its block.
    """
    scale, more_heads = _factors(cost, drafter, positions)
    head = cost.terms["draft_head_s"]
    if scale == 1.0 and more_heads * head == 0.0:
        return cost
    if not cost.splits_draft:
        raise InputError(
            f"profile '{cost.name}' does not tell draft from verify time, so drafter '{drafter.name}' cannot be priced"
        )
    seconds = scale * cost.draft.seconds + more_heads * head
    if seconds.min() < 0:
        least = 1e3 * float(cost.draft.seconds.min())
        raise InputError(
            f"draft_head_s={head:g} is refused: {block_of(cost)} positions of it exceed the {least:.3g} ms in which "
            f"profile '{cost.name}' drafts a block"
        )
    terms = {**cost.terms, "draft_context_token_s": scale * cost.terms["draft_context_token_s"]}
    return replace(cost, draft=replace(cost.draft, seconds=seconds), terms=terms)


def _factors(cost: StepCost, drafter: Drafter, positions: int) -> tuple[float, float]:
    """(factor of the profile's draft time, heads to add): scale * (draft - block * head) + positions * head."""
    scale = drafter.cost_scale * (positions if drafter.method.sequential else 1)
    block = block_of(cost)
    if cost.terms["draft_head_s"] and block is None:
        raise InputError(
            f"draft_head_s is refused: profile '{cost.name}' does not say of how many tokens its draft time is, "
            "expected meta.gamma"
        )
    heads = (positions if drafter.method.markov else 0) - scale * (block or 0)
    return scale, heads


def block_of(cost: StepCost) -> int | None:
    """Tokens of the block that the profile's draft time is of; None where it does not say."""
    given: Any = cost.meta.get("gamma")
    if given is not None and (not isinstance(given, int) or isinstance(given, bool) or given < 1):
        raise InputError(f"profile {cost.name}: meta.gamma={given!r} is refused, expected an integer from 1")
    return given


def stated_draft_time(cost: StepCost, drafter: Drafter) -> tuple[Assumption, ...]:
    """How the draft time follows from the profile's, where it is not simply that one."""
    method, gamma, block = drafter.method, drafter.gamma, block_of(cost)
    scale = drafter.cost_scale
    found = []
    if scale != 1.0 or not method.markov:
        unit = "a position" if method.sequential else "a block"
        what = f"{drafter.name} drafts {unit} in {scale:g} of the time of the profile's block"
        why = method.why if scale == method.backbone else "as its acceptance file says"
        if not method.markov and not method.sequential:
            why += "; without the Markov head, whose share is draft_head_s"
        found.append(Assumption("draft_time", scale, "blocks of the profile", why, what))
    if method.sequential or block == gamma:
        return tuple(found)
    why = "one pass drafts a block, whatever its gamma; draft_head_s is what a further position takes"
    if block is None:
        what = f"a block of gamma {gamma} is drafted in the profile's draft time, whose gamma it does not say"
    else:
        what = f"a block of gamma {gamma} is drafted in the profile's draft time for gamma {block}"
        if cost.terms["draft_head_s"]:
            what += f" and {gamma - block:+d} heads of {1e6 * cost.terms['draft_head_s']:.3g} us"
    return (*found, Assumption("draft_gamma", gamma, "draft tokens", why, what))
