"""The search: generations of trials on Optuna, kept in an SQLite study.

A generation is asked from a sampler that is seeded by its number and has seen the generations before it, then simulated
in any order by any number of processes, and told in the order of its trials. What stops a trial early was settled
before its generation began. So the study is the same whatever the number of workers, and whenever it was interrupted:
the file holds trials in order, and a generation that is incomplete in it is asked again, with the same answers.
"""

from __future__ import annotations

import sqlite3
import statistics
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from sglang_dspark.errors import InputError
from sglang_dspark.workers import Workers
from simulator.tuning.candidate import Candidate
from simulator.tuning.objective import Objective
from simulator.tuning.space import Space
from simulator.tuning.trials import Outcome, Task

VERSION = 1
GENERATION = 20
_NAME = "dspark tune"
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
    """What makes a study: the same plan gives the same study. stated: in plain values, kept in the file."""

    space: Space
    objectives: tuple[Objective, ...]
    segments: int
    seed: int
    stated: dict[str, Any]


def search(
    plan: Plan,
    trials: int,
    workers: Workers,
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
        stored = _Stored(optuna, file, plan) if file is not None else None
        kept = [] if stored is None else stored.trials()[:trials]
        found: list[Trial] = []
        memory = optuna.create_study(directions=_directions(plan), sampler=None)
        while len(found) < trials:
            number = len(found) // GENERATION
            count = min(GENERATION, trials - len(found))
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
    workers: Workers,
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


class _Stored:
    """The study in a file. Errors: InputError for a file of another kind, version or plan."""

    def __init__(self, optuna: Any, path: Path, plan: Plan) -> None:
        self._optuna, self._path = optuna, path
        stated = {"version": VERSION, "optuna": optuna.__version__, "plan": plan.stated}
        with self._told():
            if not path.exists():
                self._create(stated, plan)
            _check_file(path)
            storage = optuna.storages.RDBStorage(f"sqlite:///{path}")
            self._study = optuna.load_study(storage=storage, study_name=_NAME)
            found = self._study.user_attrs.get("dspark")
        self._check(found, stated)

    def _create(self, stated: dict[str, Any], plan: Plan) -> None:
        """Under another name first, so that an interruption leaves no file that is half a study."""
        begun = self._path.with_name(f"{self._path.name}.new")
        begun.unlink(missing_ok=True)
        storage = self._optuna.storages.RDBStorage(f"sqlite:///{begun}")
        study = self._optuna.create_study(storage=storage, study_name=_NAME, directions=_directions(plan))
        study.set_user_attr("dspark", stated)
        storage.engine.dispose()
        begun.replace(self._path)

    def trials(self) -> list[Any]:
        """Finished ones, in order."""
        with self._told():
            return list(self._study.get_trials(deepcopy=False))

    def add(self, trials: Sequence[Any]) -> None:
        """Append finished trials."""
        with self._told():
            self._study.add_trials(trials)

    def _check(self, found: Any, stated: dict[str, Any]) -> None:
        again = f"give another --study, or remove {self._path} to begin anew"
        if not isinstance(found, dict) or found.get("version") != VERSION:
            version = found.get("version") if isinstance(found, dict) else "none"
            raise InputError(f"study {self._path} is of version {version}, expected {VERSION}: {again}")
        if found["optuna"] != stated["optuna"]:
            raise InputError(
                f"study {self._path} was made with optuna {found['optuna']}, expected {stated['optuna']}: {again}"
            )
        plan = msgspec.json.decode(msgspec.json.encode(stated["plan"]))
        other = [key for key in plan if found["plan"].get(key) != plan[key]]
        if other:
            key = other[0]
            was, now = (_short(each.get(key)) for each in (found["plan"], plan))
            raise InputError(f"study {self._path} is of another search ({key}: {was}, expected {now}): {again}")

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Whatever the database says, in one sentence."""
        from sqlalchemy.exc import SQLAlchemyError

        try:
            yield
        except (SQLAlchemyError, self._optuna.exceptions.StorageInternalError, RuntimeError, KeyError) as error:
            reason = " ".join(str(error.__cause__ or error).split())[:160]
            raise InputError(f"study {self._path} cannot be used ({reason}): give another --study") from error


def _check_file(path: Path) -> None:
    try:
        with open(path, "rb") as file:
            head = file.read(16)
        if head[:15] != b"SQLite format 3":
            raise InputError(f"study {path} is no SQLite file, expected one that dspark tune wrote, or a new name")
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as database:
            tables = {row[0] for row in database.execute("select name from sqlite_master")}
        database.close()
    except OSError as error:
        raise InputError(f"study {path} cannot be read: {error.strerror}") from error
    except sqlite3.Error as error:
        raise InputError(f"study {path} cannot be read: {error}") from error
    if "studies" not in tables:
        raise InputError(f"study {path} holds no study of Optuna's, expected one that dspark tune wrote, or a new name")


def _short(value: Any) -> str:
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= 60 else f"{text[:60]}..."
