"""The search: generations of trials on Optuna, kept in an SQLite study.

A generation is asked from a sampler that is seeded by its number and has seen the generations before it, then simulated
in any order by any number of processes, and told in the order of its trials. What stops a trial early was settled
before its generation began. So the study is the same whatever the number of workers, and whenever it was interrupted:
the file holds trials in order, and a generation that is incomplete in it is asked again, with the same answers.
"""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from sglang_dspark.errors import InputError
from sglang_dspark.workers import Crew
from simulator.tuning.candidate import Candidate
from simulator.tuning.objective import Objective
from simulator.tuning.space import Space
from simulator.tuning.stored_study import StoredStudy
from simulator.tuning.trials import Outcome, Task

GENERATION = 20
_WARMUP = 20
"""Trials before the sampler models what it saw; the first generation is about what is known anyway."""


@dataclass(frozen=True)
class Trial:
    """One candidate of the study and what came of it."""

    number: int
    candidate: Candidate
    outcome: Outcome


@dataclass(frozen=True)
class Plan:
    """What makes a study: the same plan gives the same study. stated: in plain values, kept in the file. generation:
    trials that are asked for together.
    """

    space: Space
    objectives: tuple[Objective, ...]
    segments: int
    seed: int
    stated: dict[str, Any]
    generation: int = GENERATION


def search(
    plan: Plan,
    trials: int,
    workers: Crew,
    file: Path | None,
    on_trials: Callable[[int, int], None] | None = None,
    check: Callable[[Sequence[Trial]], None] | None = None,
) -> list[Trial]:
    """Run a study up to `trials` trials, or go on with the one in `file`. Errors: InputError.

    on_trials(done, total) is called after every generation, and about every 0.2 s in between. check: sees the first
    generation before it is kept.
    """
    optuna = import_optuna()
    with _quiet(optuna):
        stored = StoredStudy(optuna, file, _directions(plan), plan.stated) if file is not None else None
        kept = [] if stored is None else stored.trials()[:trials]
        found: list[Trial] = []
        memory = optuna.create_study(directions=_directions(plan), sampler=None)
        while len(found) < trials:
            number = len(found) // plan.generation
            count = min(plan.generation, trials - len(found))
            asked = _ask(optuna, memory, plan, number, count)
            known = kept[len(found) : len(found) + count]
            _check_same(asked, known, file)
            outcomes = [_outcome(each) for each in known]
            outcomes += _simulate(plan, [each[1] for each in asked], outcomes, found, workers, trials, on_trials)
            frozen = [_tell(optuna, memory, each, outcome, plan) for each, outcome in zip(asked, outcomes, strict=True)]
            found += [
                Trial(len(found) + at, candidate, outcome)
                for at, ((_, candidate), outcome) in enumerate(zip(asked, outcomes, strict=True))
            ]
            if number == 0 and check is not None:
                check(found)
            if stored is not None:
                stored.add(frozen[len(known) :])
            if on_trials is not None:
                on_trials(len(found), trials)
        return found


def import_optuna() -> Any:
    """Optuna, or one sentence that it is missing."""
    try:
        import optuna
    except ImportError:
        raise InputError(
            "dspark tune needs optuna, which is not installed: pip install 'sglang-dspark[tune]'"
        ) from None
    return optuna


def _directions(plan: Plan) -> list[str]:
    return ["maximize" if objective.more else "minimize" for objective in plan.objectives]


def _ask(optuna: Any, study: Any, plan: Plan, number: int, count: int) -> list[tuple[Any, Candidate]]:
    """The trials of one generation with their candidates, in order."""
    study.sampler = optuna.samplers.TPESampler(
        seed=(plan.seed * 1_000_003 + number) % (1 << 32),
        multivariate=True,
        group=True,
        constant_liar=True,
        n_startup_trials=_WARMUP,
    )
    if number == 0:
        for candidate in plan.space.seeds():
            study.enqueue_trial(plan.space.params(candidate))
    asked = []
    for _ in range(count):
        trial = study.ask()
        asked.append((trial, plan.space.draw(trial)))
    return asked


def _simulate(
    plan: Plan,
    candidates: Sequence[Candidate],
    known: Sequence[Outcome],
    before: Sequence[Trial],
    workers: Crew,
    total: int,
    on_trials: Callable[[int, int], None] | None,
) -> list[Outcome]:
    """Outcomes of the candidates beyond `known`; one that was simulated before is not simulated again."""
    seen = {trial.candidate: trial.outcome for trial in before}
    seen |= dict(zip(candidates, known, strict=False))
    bars = _bars(plan, before)
    new = [candidate for candidate in dict.fromkeys(candidates[len(known) :]) if candidate not in seen]
    done = len(before) + len(known)

    def told(segments: int) -> None:
        if on_trials is not None:
            on_trials(done + segments // plan.segments, total)

    seen |= dict(zip(new, workers.run([Task(each, bars) for each in new], told), strict=True))
    return [seen[candidate] for candidate in candidates[len(known) :]]


def _bars(plan: Plan, before: Sequence[Trial]) -> tuple[float | None, ...]:
    """After each segment but the last, the median of the trials of earlier generations that came so far."""
    if len(plan.objectives) > 1 or not before:
        return ()
    bars: list[float | None] = []
    for segment in range(1, plan.segments):
        means = [trial.outcome.mean(0, upto=segment) for trial in before if len(trial.outcome.values) >= segment]
        bars.append(statistics.median(means) if means else None)
    return tuple(bars)


def _tell(optuna: Any, study: Any, asked: tuple[Any, Candidate], outcome: Outcome, plan: Plan) -> Any:
    """Close one trial; returns it frozen, as the file takes it."""
    trial, candidate = asked
    states = optuna.trial.TrialState
    trial.set_user_attr("candidate", candidate.text)
    trial.set_user_attr("outcome", msgspec.json.encode(outcome).decode())
    if len(plan.objectives) == 1:
        for segment in range(len(outcome.values)):
            trial.report(outcome.mean(0, upto=segment + 1), segment)
    if outcome.pruned or outcome.refused:
        if len(plan.objectives) > 1:
            return study.tell(trial, state=states.FAIL)
        return study.tell(trial, state=states.PRUNED)
    return study.tell(trial, [outcome.mean(number) for number in range(len(plan.objectives))])


def _check_same(asked: Sequence[tuple[Any, Candidate]], known: Sequence[Any], file: Path | None) -> None:
    for (trial, _), kept in zip(asked, known, strict=False):
        if trial.params != kept.params:
            raise InputError(
                f"study {file}: trial {kept.number} is not the one that this search asks for, expected a study of the "
                "same releases: give another --study"
            )


def _outcome(kept: Any) -> Outcome:
    return msgspec.json.decode(kept.user_attrs["outcome"], type=Outcome)


@contextmanager
def _quiet(optuna: Any) -> Iterator[None]:
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of options that Optuna calls experimental; the version is pinned
        try:
            yield
        finally:
            optuna.logging.set_verbosity(level)
