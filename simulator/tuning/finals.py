"""From a study to one winner, and what it is worth: draws and requests that the search never met."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from sglang_dspark.errors import InputError
from sglang_dspark.policies import Fixed, NoDraft, make_policy
from sglang_dspark.workers import Crew
from simulator.baselines import OTHER_SEEDS
from simulator.engine.run import Setting
from simulator.results.metrics import Figures
from simulator.results.paired import Paired, paired
from simulator.tuning.candidate import Candidate
from simulator.tuning.objective import Objective, over_loads
from simulator.tuning.study import Trial

TIE = 0.01
"""Candidates this close to the best are as good as it: the simplest of them wins."""

SGLANG = "argmax:lag=2,pricing=floor"
"""SGLang's own rule on the same table."""

_FINALISTS = 8
_CHOOSING = 2
HELD_OUT = 3
"""Sets of draws of each part of the held-out requests."""


@dataclass(frozen=True)
class Held:
    """One candidate on held-out requests and draws. runs: [loads][replications]."""

    candidate: Candidate
    label: str
    runs: tuple[tuple[Figures, ...], ...]

    def value(self, objective: Objective, load: int | None = None) -> float:
        """Mean over replications, of one load or of all of them."""
        loads = range(len(self.runs)) if load is None else [load]
        return over_loads([float(np.mean([objective.of(run) for run in self.runs[at]])) for at in loads])

    def gain(self, base: Held, objective: Objective, windows: int, load: int | None = None) -> Paired:
        """Paired gain over another: above 0 is better. Of several loads, the gain of their geometric mean."""
        ours, theirs = (each._values(objective, load) for each in (self, base))
        gap = paired(ours, theirs, windows)
        return gap if objective.more else gap.turned()

    def _values(self, objective: Objective, load: int | None) -> list[float]:
        loads = range(len(self.runs)) if load is None else [load]
        return [
            over_loads([objective.of(self.runs[at][number]) for at in loads]) for number in range(len(self.runs[0]))
        ]


@dataclass(frozen=True)
class Finals:
    """winner: of the search, by draws of its own. held: it and the baselines, the winner first. windows: parts of the
    held-out requests, over which intervals are taken. by_load: the best candidate at each load among all of them.
    """

    winner: Candidate
    held: tuple[Held, ...]
    windows: int
    by_load: tuple[tuple[Candidate, float], ...]

    def base(self, objective: Objective) -> Held:
        """The best baseline."""
        best = self.held[1]
        for each in self.held[2:]:
            best = each if objective.better(each.value(objective), best.value(objective)) else best
        return best

    def kept(self, objective: Objective) -> Held:
        """The baseline to keep: the best one, ties within `TIE` to the simplest."""
        found = [(each.candidate, each.value(objective)) for each in self.held[1:]]
        chosen = pick(found, objective)
        return next(each for each in self.held[1:] if each.candidate == chosen)

    def gap(self, objective: Objective) -> Paired:
        """The winner's gain over the best baseline."""
        return self.held[0].gain(self.base(objective), objective, self.windows)

    def better(self, objective: Objective) -> bool:
        """Whether the winner beats the best baseline beyond the noise."""
        return self.gap(objective).verdict == "higher"

    def recommended(self, objective: Objective) -> Held:
        """The winner if it is better than the best baseline, else the baseline to keep."""
        return self.held[0] if self.better(objective) else self.kept(objective)


def pick(found: Sequence[tuple[Candidate, float]], objective: Objective) -> Candidate:
    """The best of (candidate, value), ties within `TIE` to the simplest."""
    best = found[0][1]
    for _, value in found[1:]:
        best = value if objective.better(value, best) else best
    tied = [candidate for candidate, value in found if objective.gain(value, best) >= -TIE]
    return min(tied, key=lambda candidate: candidate.simplicity)


def finalists(trials: Sequence[Trial], objective: Objective, loads: int) -> list[Candidate]:
    """The best of the whole study, of each load, and of each simpler kind that comes close; each once."""
    done = [trial for trial in trials if not trial.outcome.pruned]
    if not done:
        raise InputError("no candidate of this space can run at this load: widen --space")

    def ranked(load: int | None) -> list[Trial]:
        sign = -1 if objective.more else 1
        return sorted(done, key=lambda trial: (sign * trial.outcome.mean(0, load), trial.candidate.simplicity))

    best = ranked(None)
    kept = [trial.candidate for trial in best[:_FINALISTS]]
    top = best[0].outcome.mean(0)
    close = [each for each in best if objective.gain(each.outcome.mean(0), top) >= -2 * TIE]
    kept += [each.candidate for each in sorted(close, key=lambda trial: trial.candidate.simplicity)[:_FINALISTS]]
    kept += [each.candidate for load in range(loads if loads > 1 else 0) for each in ranked(load)[: _FINALISTS // 2]]
    return list(dict.fromkeys(kept))


def best_length(trials: Sequence[Trial], objective: Objective) -> Candidate | None:
    """The best fixed length at the setting's own gamma and limit; all lengths count: there may be several optima."""
    plain = [
        (trial.candidate, trial.outcome.mean(0))
        for trial in trials
        if isinstance(trial.candidate.policy, Fixed) and trial.candidate == Candidate(trial.candidate.policy)
        if not trial.outcome.pruned
    ]
    best = None
    for candidate, value in dict(plain).items():
        if best is None or objective.better(value, best[1]):
            best = (candidate, value)
    return None if best is None else best[0]


def decide(
    trials: Sequence[Trial],
    objective: Objective,
    settings: Sequence[Setting],
    unseen: Sequence[Setting],
    workers: Callable[[Sequence[Setting]], Crew],
    on_runs: Callable[[int, int], None] | None = None,
) -> Finals:
    """The winner, chosen on other draws of the searched requests, then judged on `unseen` requests and draws.

    settings, unseen: one a load, with as many windows as segments. workers: makes processes that run whole settings.
    """
    left = finalists(trials, objective, len(settings))
    chosen = [replace(setting, seed=setting.seed + OTHER_SEEDS) for setting in settings]
    values = _simulated(left, chosen, _CHOOSING, workers, on_runs)
    means = [[Held(each, "", runs).value(objective, load) for load in range(len(settings))] for each, runs in values]
    winner = pick([(each, over_loads(mean)) for each, mean in zip(left, means, strict=True)], objective)
    by_load = []
    for load in range(len(settings)):
        at = [(each, mean[load]) for each, mean in zip(left, means, strict=True)]
        best = pick(at, objective)
        by_load.append((best, dict(at)[best]))
    named = {"tuned": winner, **_baselines(trials, objective, unseen[0])}
    judged = _simulated(list(dict.fromkeys(named.values())), unseen, HELD_OUT, workers, on_runs)
    runs = dict(judged)
    held = tuple(Held(candidate, label, runs[candidate]) for label, candidate in named.items())
    return Finals(winner, held, unseen[0].windows, tuple(by_load))


def _baselines(trials: Sequence[Trial], objective: Objective, setting: Setting) -> dict[str, Candidate]:
    """No speculation, the best fixed length, every token verified, SGLang's rule: those that run here."""
    fixed = best_length(trials, objective)
    asked = {
        "no speculation": Candidate(NoDraft()),
        **({} if fixed is None else {"best fixed k": fixed}),
        "verify all": Candidate(Fixed(setting.drafter.gamma)),
        "SGLang's rule": Candidate(make_policy(SGLANG)),
    }
    found = {}
    for label, candidate in asked.items():
        try:
            setting.check(candidate.policy)
        except InputError:
            continue
        found[label] = candidate
    if not found:
        raise InputError("no baseline can run at this load, expected policy none or a fixed length to be priced")
    return found


def _simulated(
    candidates: Sequence[Candidate],
    settings: Sequence[Setting],
    draws: int,
    workers: Callable[[Sequence[Setting]], Crew],
    on_runs: Callable[[int, int], None] | None,
) -> list[tuple[Candidate, tuple[tuple[Figures, ...], ...]]]:
    """Runs of every candidate, [loads][draws x windows]."""
    count = draws * settings[0].windows
    tasks = [
        (load, candidate, replication)
        for candidate in candidates
        for load in range(len(settings))
        for replication in range(count)
    ]
    with workers(settings) as processes:

        def told(runs: int) -> None:
            if on_runs is not None:
                on_runs(runs, len(tasks))

        found = processes.run(tasks, told)
    rows = iter(found)
    return [(candidate, tuple(tuple(next(rows) for _ in range(count)) for _ in settings)) for candidate in candidates]
