"""The sentence that a comparison closes with: what to switch on, what it gains, or that nothing beats what is there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from simulator.results.comparison import Comparison, PolicyResult
from simulator.results.paired import Paired, interval
from simulator.results.verdict import verdict, why_none


@dataclass(frozen=True)
class Choice:
    """What to run at one load: `policy`, ahead of `base` by `gain` where it is not the baseline itself.

    base: the best of no speculation and the fixed lengths. rival: the best other policy, or self-tuning where that is
    less than `NEAR` behind it.
    """

    policy: str
    base: str
    rival: str
    gain: Paired

    @property
    def pays(self) -> bool:
        """Whether some policy beats the baselines beyond the noise."""
        return self.policy != self.base


SELF_TUNING = "self-tuning"
NEAR = 0.005
"""So much less is worth a policy that needs no table and no calibration."""


def is_baseline(policy: str) -> bool:
    """No speculation, or a fixed number of draft tokens."""
    return policy.partition(":")[0] in ("none", "fixed")


def choose(comparison: Comparison) -> Choice | None:
    """The choice between the baselines and the others; None where there is no verdict or only one kind."""
    if why_none(comparison):
        return None
    by, lossless = comparison.judged, [result for result in comparison.results if result.lossless]
    kinds = [[one for one in lossless if is_baseline(one.policy) is kind] for kind in (True, False)]
    if not all(kinds) or len(lossless[0].replications) < 2:
        return None
    base = by.ranked(kinds[0])[0]
    rival = least_trouble(comparison, by.ranked(kinds[1]))
    gap = comparison.gain(rival, base)
    return Choice(rival.policy if gap.verdict == "higher" else base.policy, base.policy, rival.policy, gap)


def least_trouble(comparison: Comparison, ranked: Sequence[PolicyResult]) -> PolicyResult:
    """The best, or self-tuning where it is less than `NEAR` behind: it needs no preparation."""
    easy = find(ranked, SELF_TUNING)
    return easy if easy is not None and comparison.gain(easy, ranked[0]).mean > -NEAR else ranked[0]


def answer(comparison: Comparison) -> str:
    """One sentence: what to switch on, that no policy beats a baseline, or why nothing can be said."""
    found = choose(comparison)
    if found is None:
        return verdict(comparison)
    where, by = load_words(comparison.setting), comparison.judged.words
    if found.pays:
        over = f"{found.base} {where}{_over_none(comparison, found)}"
        easy = " (no table or calibration to make)" if found.policy == SELF_TUNING else ""
        return f"switch on {found.policy}{easy}: {interval(found.gain)} over {over} ({by})"
    base = "no speculation" if found.base == "none" else found.base
    return f"no policy beats {base} here: {found.rival} {interval(found.gain)} {where} ({by})"


def load_words(setting: dict[str, Any]) -> str:
    """The load in a sentence."""
    if setting["loop"] == "closed":
        return f"at {setting['concurrency']} in flight"
    if setting["request_rate"] is None:
        return "at the trace's own rate"
    return (
        "with all requests at once"
        if math.isinf(setting["request_rate"])
        else f"at {setting['request_rate']:g} requests/s"
    )


def find(results: Sequence[PolicyResult], policy: str) -> PolicyResult | None:
    """The result of a policy by its text."""
    return next((result for result in results if result.policy == policy), None)


def _over_none(comparison: Comparison, found: Choice) -> str:
    none, best = find(comparison.results, "none"), find(comparison.results, found.policy)
    if none is None or best is None or found.base == "none":
        return ""
    return f", {100 * comparison.gain(best, none).mean:+.1f} % over no speculation"
