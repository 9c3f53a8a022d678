"""What a page is made of: the runs of a comparison, a sweep or a search in one form, and what is said of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from sglang_dspark.cores import available_cores
from sglang_dspark.policies import Policy
from sglang_dspark.workers import Hire, Report, Work, Workers
from simulator.engine.run import Setting
from simulator.report.counts import Counts, counted_run
from simulator.results.metrics import Figures
from simulator.results.paired import Paired, paired
from simulator.results.varied import Sensitivity


@dataclass(frozen=True)
class Entry:
    """One policy at one load. name: what the page calls it; label: its part there, such as "best fixed k".

    setting: what it ran in, with a block size of its own if it has one. runs: by replication.
    """

    name: str
    policy: Policy
    setting: Setting
    runs: tuple[Figures, ...]
    label: str = ""

    def mean(self, figure: str) -> float:
        """Over the runs."""
        return sum(run[figure] for run in self.runs) / len(self.runs)


@dataclass(frozen=True)
class LoadRuns:
    """All policies at one load. base: name of the best baseline (no speculation or a fixed length), None without one.

    best: name of what to run here. figure: what judges; more: whether more of it is better.
    """

    load: str
    size: float
    entries: tuple[Entry, ...]
    base: str | None
    best: str
    figure: str
    more: bool
    windows: int

    def entry(self, name: str) -> Entry | None:
        """By its name."""
        return next((each for each in self.entries if each.name == name), None)

    def gain(self, entry: Entry, base: Entry) -> Paired:
        """By how much an entry is better than another: above 0 is better, whatever the figure."""
        values, others = ([run[self.figure] for run in each.runs] for each in (entry, base))
        gap = paired(values, others, self.windows)
        return gap if self.more else gap.turned()


@dataclass(frozen=True)
class Story:
    """about: what was simulated, in a line. answer: one sentence. sure: how far to trust it, a sentence each.
    words: what else is said, such as crossovers. judged, unit: what decides and what a load counts, in words.

    shown: which of `loads` is shown first. robustness: rows of `what`, `kind`, `regret`, `over_base`, `best`; trials:
    rows of `number`, `value`, `policy`, `best`; None where nothing was searched. made: command, versions and inputs.
    """

    title: str
    about: str
    answer: str
    sure: tuple[str, ...]
    words: tuple[str, ...]
    judged: str
    unit: str
    loads: tuple[LoadRuns, ...]
    shown: int
    warnings: tuple[str, ...]
    assumptions: tuple[str, ...]
    made: dict[str, Any]
    sensitivity: Sensitivity | None = None
    robustness: tuple[dict[str, Any], ...] | None = None
    trials: tuple[dict[str, Any], ...] | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """Every policy once, in order."""
        return list(dict.fromkeys(entry.name for load in self.loads for entry in load.entries))


def count_runs(
    story: Story, jobs: int | Hire | None = None, on_progress: Callable[[int, int], None] | None = None
) -> dict[tuple[int, str], Counts]:
    """Counts of one run of every policy that drafts, by number of the load and name; on_progress: (requests, of)."""
    tasks = [
        (number, entry) for number, load in enumerate(story.loads) for entry in load.entries if entry.policy.drafts
    ]
    total = sum(len(entry.setting.part(0)) for _, entry in tasks)
    told = None if on_progress is None else lambda count: on_progress(min(count, total), total)
    hire = partial(Workers, max(1, min(jobs or available_cores(), len(tasks)))) if not callable(jobs) else jobs
    script = any(type(entry.policy).__module__ == "__main__" for _, entry in tasks)
    with hire(_counter, script=script) as workers:
        found: Sequence[Counts] = workers.run([(entry.setting, entry.policy) for _, entry in tasks], told)
    return {(number, entry.name): counts for (number, entry), counts in zip(tasks, found, strict=True)}


def _counter() -> Work:
    def work(task: tuple[Setting, Policy], report: Report) -> Counts:
        setting, policy = task
        counts = counted_run(setting, policy)
        report(len(setting.part(0)))
        return counts

    return work
