"""Policies compared on the same draws: figures of each, and paired differences with their intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sglang_dspark.cost import Assumption
from sglang_dspark.errors import InputError
from simulator.results.figures import more_is_better
from simulator.results.metrics import Figures
from simulator.results.paired import Paired, interval, paired
from simulator.results.plot import plot_gains
from simulator.results.varied import Sensitivity, Surcharge

if TYPE_CHECKING:
    import pandas

COMPARED = (
    "output_throughput",
    "steady_output_throughput",
    "request_goodput",
    "steady_request_goodput",
    "slo_attainment",
    "accept_length",
    "mean_tpot_ms",
    "steady_mean_tpot_ms",
    "mean_ttft_ms",
    "steady_mean_ttft_ms",
    "mean_e2e_latency_ms",
    "steady_mean_e2e_latency_ms",
)
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
class Judged:
    """The figure that decides, in words, and whether more of it is better."""

    figure: str
    words: str
    more_is_better: bool = True

    def ranked(self, results: Sequence[PolicyResult]) -> list[PolicyResult]:
        """The best mean first."""
        return sorted(results, key=lambda result: result.figures[self.figure], reverse=self.more_is_better)


@dataclass(frozen=True, repr=False)
class Comparison:
    """What `simulate` returns. results: one a policy, in the order asked. assumptions: what no source gave.

    warnings: what makes a figure or a difference doubtful, in words. sustainable: by policy, the highest request rate
    at which `setting["find_rate"]` of the requests meet the limits of goodput, where that was asked. surcharge: what
    adaptive verification may cost before the verdict flips. sensitivity: which assumption flips it, where asked.
    accuracy: how far predictions on measured step costs were off, in words; estimates say theirs among the warnings.
    """

    results: tuple[PolicyResult, ...]
    assumptions: tuple[Assumption, ...]
    setting: dict[str, Any]
    warnings: tuple[str, ...] = ()
    sustainable: dict[str, float] | None = None
    surcharge: Surcharge | None = None
    sensitivity: Sensitivity | None = None
    accuracy: str = ""

    def __repr__(self) -> str:
        """A line on the load and one a policy: the figure that decides, and the gain over the first."""
        load = f"{self.setting['concurrency']} in flight" if self.setting["loop"] == "closed" else "open loop"
        by = self.judged
        rows = [
            f"  {result.policy}: {result.figures[by.figure]:,.6g}"
            + ("" if result is self.results[0] else f" ({interval(self.gain(result))})")
            for result in self.results
        ]
        return "\n".join([f"Comparison of {self.setting['trace']}, {load}, by {by.words}", *rows])

    @property
    def judged(self) -> Judged:
        """What decides. Where limits are given, the requests that keep them; a closed loop's steady throughput; an open
        loop's latency, or, where every lossless policy is overloaded throughout, what each sustains."""
        closed = self.setting["loop"] == "closed"
        if self.setting["goodput_slos_ms"]:
            if closed:
                return Judged("steady_request_goodput", "steady goodput (requests a second within the limits)")
            return Judged("slo_attainment", "share of requests within the limits")
        if closed:
            return Judged("steady_output_throughput", "steady output throughput")
        if all(run["overload"] for result in self.lossless for run in result.replications):
            return Judged("output_throughput", "output throughput under overload")
        return Judged("mean_e2e_latency_ms", "mean end-to-end latency", more_is_better=False)

    @property
    def lossless(self) -> tuple[PolicyResult, ...]:
        """The lossless policies, or all where none is."""
        return tuple(result for result in self.results if result.lossless) or self.results

    def best(self, figure: str | None = None) -> PolicyResult:
        """The lossless policy with the best mean of a figure, by default the one that decides.

        Errors: InputError for a figure that these results do not have or that is neither good nor bad, and where no
        lossless policy was compared.
        """
        if figure is None:
            by = self.judged
        else:
            by = Judged(figure, figure, more_is_better(figure, self.results[0].figures))
        found = [result for result in self.results if result.lossless]
        if not found:
            raise InputError("no lossless policy was compared, expected at least one")
        return by.ranked(found)[0]

    def gain(self, result: PolicyResult, base: PolicyResult | None = None, figure: str | None = None) -> Paired:
        """By how much a result is better than another (default: the first one): above 0 is better, in every figure."""
        by = self.judged if figure is None else Judged(figure, figure, more_is_better(figure, result.figures))
        gap = self.paired(result, base or self.results[0], by.figure)
        return gap if by.more_is_better else gap.turned()

    def to_dataframe(self) -> pandas.DataFrame:
        """One row a policy and replication: `policy`, `lossless`, `schedule`, `replication`, and every figure.

        Errors: InputError without pandas.
        """
        try:
            import pandas
        except ImportError:
            raise InputError("to_dataframe needs pandas, which is not installed: pip install pandas") from None
        return pandas.DataFrame(
            [
                {
                    "policy": result.policy,
                    "lossless": result.lossless,
                    "schedule": result.schedule,
                    "replication": number,
                    **run,
                }
                for result in self.results
                for number, run in enumerate(result.replications)
            ]
        )

    def plot(self, path: str | Path | None = None) -> Any:
        """A matplotlib figure of what decides, by policy with intervals; written to `path` (.svg or .png) if given.

        Errors: InputError without matplotlib, and for another ending.
        """
        words = {
            "x": f"gain over {self.results[0].policy} in {self.judged.words}, %",
            "title": f"{self.setting['trace']}; step costs of {self.setting['profile']} (simulated)",
        }
        return plot_gains({result.policy: self.gain(result) for result in self.results}, words, path)

    def paired(self, result: PolicyResult, base: PolicyResult, figure: str) -> Paired:
        """The difference of two results in one figure."""
        values, others = ([run[figure] for run in each.replications] for each in (result, base))
        return paired(values, others, self.setting["windows"])
