"""Differences of two policies on the same draws, with what their interval covers."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from sglang_dspark.statistics import t_interval


@dataclass(frozen=True)
class Paired:
    """Relative difference to another policy, replication by replication: mean and 95 % interval (NaN with one)."""

    mean: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """`higher` and `lower` say more and less, not good and bad; `no difference` when the interval holds 0."""
        if math.isnan(self.mean):
            return "nothing to compare with"
        if math.isnan(self.low):
            return "one replication"
        return "higher" if self.low > 0 else "lower" if self.high < 0 else "no difference"

    def turned(self) -> Paired:
        """The same with the other sign: of a figure of which less is better, so that above 0 is always better."""
        return Paired(-self.mean, -self.high, -self.low)


def paired(values: list[float], base: list[float], windows: int = 1) -> Paired:
    """Relative difference of the means, and its 95 % interval by the residuals of their ratio.

    windows: replication r served window r mod windows of the trace. With several the unit is a window, so that the
    interval covers how much windows differ, and draws with them; with one it covers the draws alone. All NaN where the
    base is 0 or not finite.
    """
    ours, theirs = np.array(values), np.array(base)
    if windows > 1:
        ours, theirs = (each.reshape(-1, windows).mean(axis=0) for each in (ours, theirs))
    scale = float(theirs.mean())
    if scale == 0 or not math.isfinite(scale):
        return Paired(math.nan, math.nan, math.nan)
    ratio = float(ours.mean()) / scale
    _, half = t_interval((ours - ratio * theirs) / scale)
    return Paired(ratio - 1, ratio - 1 - half, ratio - 1 + half)


def interval(gap: Paired) -> str:
    """A relative difference with its interval, in words."""
    if math.isnan(gap.mean):
        return "the other is 0"
    if math.isnan(gap.low):
        return f"{100 * gap.mean:+.1f} %"
    text = f"{100 * gap.mean:+.1f} % [{100 * gap.low:+.1f}, {100 * gap.high:+.1f}]"
    return text + (" no difference" if gap.verdict == "no difference" else "")
