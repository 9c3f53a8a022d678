"""Rules that raised while they were simulated: the fallback of their class decided, and the result says so."""

from __future__ import annotations

from collections.abc import Sequence

from simulator.results.comparison import PolicyResult


def fallbacks(results: Sequence[PolicyResult]) -> tuple[str, ...]:
    """One warning for every policy whose rule raised."""
    raised = [(result.policy, result.figures["fallbacks"]) for result in results if result.figures["fallbacks"]]
    what = "there the fallback of its class decided"
    return tuple(f"warning: the rule of {policy} raised, {count:.0f} times a run: {what}" for policy, count in raised)
