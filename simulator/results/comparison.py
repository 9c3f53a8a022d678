"""Policies compared on the same draws: figures of each, and paired differences with their intervals."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from sglang_dspark.cost import Assumption
from sglang_dspark.statistics import t_interval
from simulator.results.metrics import Figures

COMPARED = (
    "output_throughput", "steady_output_throughput", "request_goodput", "accept_length", "mean_tpot_ms",
    "steady_mean_tpot_ms", "mean_ttft_ms", "steady_mean_ttft_ms", "mean_e2e_latency_ms", "steady_mean_e2e_latency_ms",
)  # fmt: skip
"""Figures for which the difference to the first policy is given with an interval, where a run has them."""


@dataclass(frozen=True)
class Paired:
    """Relative difference to another policy, replication by replication: mean and 95 % interval (NaN with one)."""

    mean: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """`higher` and `lower` say more and less, not good and bad; `no difference` when the interval holds 0."""
        if math.isnan(self.low):
            return "one replication"
        return "higher" if self.low > 0 else "lower" if self.high < 0 else "no difference"


@dataclass(frozen=True)
class PolicyResult:
    """One policy: its figures in every replication, their means, and the differences to the first policy."""

    policy: str
    lossless: bool
    schedule: str
    replications: tuple[Figures, ...]
    difference: dict[str, Paired]

    @property
    def figures(self) -> Figures:
        """Mean over replications of every figure."""
        return {name: float(np.mean([run[name] for run in self.replications])) for name in self.replications[0]}


@dataclass(frozen=True)
class Comparison:
    """What `simulate` returns. results: one a policy, in the order asked. assumptions: what no source gave.

    warnings: what makes a figure or a difference doubtful, in words. sustainable: by policy, the highest request rate
    at which `setting["find_rate"]` of the requests meet the limits of goodput, where that was asked.
    """

    results: tuple[PolicyResult, ...]
    assumptions: tuple[Assumption, ...]
    setting: dict[str, Any]
    warnings: tuple[str, ...] = ()
    sustainable: dict[str, float] | None = None

    def best(self, figure: str = "output_throughput") -> PolicyResult:
        """The policy with the largest mean of a figure."""
        return max(self.results, key=lambda result: result.figures[figure])

    def paired(self, result: PolicyResult, base: PolicyResult, figure: str) -> Paired:
        """The difference of two results in one figure."""
        values, others = ([run[figure] for run in each.replications] for each in (result, base))
        return paired(values, others, self.setting["windows"])


def paired(values: list[float], base: list[float], windows: int = 1) -> Paired:
    """Relative mean difference and its 95 % interval from paired replications.

    windows: replication r served window r mod windows of the trace. With several the unit is a window, so that the
    interval covers how much windows differ, and draws with them; with one it covers the draws alone.
    """
    scale = float(np.mean(base))
    if scale == 0 or not math.isfinite(scale):
        return Paired(0.0, math.nan, math.nan)
    gaps = (np.array(values) - np.array(base)) / scale
    if windows > 1:
        gaps = gaps.reshape(-1, windows).mean(axis=0)
    mean, half = t_interval(gaps)
    return Paired(mean, mean - half, mean + half)
