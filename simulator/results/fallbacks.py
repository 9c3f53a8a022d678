"""Rules that raised while they were simulated: the fallback of their class decided, and the result says so."""

from __future__ import annotations

from collections.abc import Sequence

from simulator.results.comparison import PolicyResult


def fallbacks(results: Sequence[PolicyResult]) -> tuple[str, ...]:
    """One warning for every policy whose rule raised."""
    return tuple(
        f"warning: the rule of {result.policy} raised, {result.figures['fallbacks']:.0f} times a run: there the fallback "
        "of its class decided"
        for result in results
        if result.figures["fallbacks"]
    )
