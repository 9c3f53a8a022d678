"""Simulating candidates on the segments of a trace, in worker processes; bad ones stop early."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sglang_dspark.errors import InputError
from sglang_dspark.workers import Report, Work
from simulator.engine.run import Setting
from simulator.results.metrics import Figures
from simulator.results.run import run_once
from simulator.tuning.candidate import Candidate
from simulator.tuning.objective import Objective, over_loads


@dataclass(frozen=True)
class Task:
    """A candidate, and the values that it must reach on the way: bars[s] after segment s (None: any)."""

    candidate: Candidate
    bars: tuple[float | None, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """values: [segments that were run][loads][objectives]. pruned: stopped at a bar. refused: why it cannot run."""

    values: tuple[tuple[tuple[float, ...], ...], ...]
    pruned: bool = False
    refused: str = ""

    def mean(self, objective: int, load: int | None = None, upto: int | None = None) -> float:
        """Mean over segments, of one load or over all of them; upto: of so many segments only."""
        rows = self.values[:upto]
        loads = range(len(rows[0])) if load is None else [load]
        return over_loads([sum(row[at][objective] for row in rows) / len(rows) for at in loads])


def evaluator(settings: Sequence[Setting], objectives: Sequence[Objective], segments: int) -> Work:
    """The work of one process. settings: one a load, each with `segments` windows."""
    first = objectives[0]

    def work(task: Task, report: Report) -> Outcome:
        values: list[tuple[tuple[float, ...], ...]] = []
        try:
            own = [task.candidate.setting(setting) for setting in settings]
            for setting in own:
                setting.check(task.candidate.policy)
        except InputError as error:
            return Outcome((), pruned=True, refused=str(error))
        for segment in range(segments):
            runs = [run_once(setting, task.candidate.policy, segment)[0] for setting in own]
            values.append(tuple(_values(run, objectives) for run in runs))
            report(segment + 1)
            bar = task.bars[segment] if segment < len(task.bars) else None
            if bar is not None and first.better(bar, Outcome(tuple(values)).mean(0)):
                return Outcome(tuple(values), pruned=True)
        return Outcome(tuple(values))

    return work


def _values(figures: Figures, objectives: Sequence[Objective]) -> tuple[float, ...]:
    return tuple(objective.of(figures) for objective in objectives)


def runner(settings: Sequence[Setting]) -> Work:
    """Whole runs: a task is (number of the setting, candidate, replication), its result the figures."""

    def work(task: tuple[int, Candidate, int], report: Report) -> Figures:
        number, candidate, replication = task
        figures = run_once(candidate.setting(settings[number]), candidate.policy, replication)[0]
        report(1)
        return figures

    return work


Told = Callable[[int, int], None]
