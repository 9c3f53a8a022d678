"""Policies compared on the same draws: figures of each, and paired differences with their intervals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sglang_dspark.cost import Assumption
from simulator.results.metrics import Figures
from simulator.results.paired import Paired, paired
from simulator.results.varied import Sensitivity, Surcharge

COMPARED = (
    "output_throughput", "steady_output_throughput", "request_goodput", "accept_length", "mean_tpot_ms",
    "steady_mean_tpot_ms", "mean_ttft_ms", "steady_mean_ttft_ms", "mean_e2e_latency_ms", "steady_mean_e2e_latency_ms",
)  # fmt: skip
"""Figures for which the difference to the first policy is given with an interval, where a run has them."""


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
    at which `setting["find_rate"]` of the requests meet the limits of goodput, where that was asked. surcharge: what
    adaptive verification may cost before the verdict flips. sensitivity: which assumption flips it, where asked.
    """

    results: tuple[PolicyResult, ...]
    assumptions: tuple[Assumption, ...]
    setting: dict[str, Any]
    warnings: tuple[str, ...] = ()
    sustainable: dict[str, float] | None = None
    surcharge: Surcharge | None = None
    sensitivity: Sensitivity | None = None

    def best(self, figure: str = "output_throughput") -> PolicyResult:
        """The policy with the largest mean of a figure."""
        return max(self.results, key=lambda result: result.figures[figure])

    def paired(self, result: PolicyResult, base: PolicyResult, figure: str) -> Paired:
        """The difference of two results in one figure."""
        values, others = ([run[figure] for run in each.replications] for each in (result, base))
        return paired(values, others, self.setting["windows"])
