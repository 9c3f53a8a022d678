"""From a load to a policy: search, choose, judge on what was not seen, and ask how much hangs on assumptions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from sglang_dspark.cores import available_cores
from sglang_dspark.errors import InputError
from sglang_dspark.workers import Crew, Hire, Workers
from simulator.engine.compiling import compile_ahead
from simulator.engine.run import Setting
from simulator.results.steady import ENOUGH
from simulator.run_store import digest, release
from simulator.traces import requests_between
from simulator.tuning.finals import Finals, decide
from simulator.tuning.objective import Objective, objectives
from simulator.tuning.robustness import Robustness, robustness
from simulator.tuning.space import Space, default_space
from simulator.tuning.space_file import read_space
from simulator.tuning.study import GENERATION, Plan, Trial, import_optuna, search
from simulator.tuning.trials import evaluator, runner

MOST_SEGMENTS = 4
"""Parts of a trial's requests, after each of which a bad trial stops."""

_SPARE = 1.3
"""A segment holds this much more than the steady window of a closed loop needs."""
_LEAST_OPEN = 100
_RUNNERS_UP = 2
UNSEEN_SEEDS = 1 << 30

Told = Callable[[str], Callable[[int, int], None] | None]
"""Given what is under way, who is told how far it is."""


@dataclass(frozen=True)
class Tuned:
    """trials: the study. finals: the winner and what it is worth. space, objectives, settings (one a load, of the
    searched requests), unseen: how it was found. requests: of a trial, and those held out.
    """

    trials: tuple[Trial, ...]
    finals: Finals
    robustness: Robustness | None
    space: Space
    objectives: tuple[Objective, ...]
    settings: tuple[Setting, ...]
    unseen: tuple[Setting, ...]

    @property
    def requests(self) -> tuple[int, int]:
        """(of a trial, held out)."""
        return len(self.settings[0].trace), len(self.unseen[0].trace)

    @property
    def frontier(self) -> list[Trial]:
        """With several objectives: the trials that no other beats in all of them, by the first objective."""
        done = [trial for trial in self.trials if not trial.outcome.pruned]
        values = {trial.number: [trial.outcome.mean(at) for at in range(len(self.objectives))] for trial in done}
        out: dict[tuple[float, ...], Trial] = {}  # of those that are equal, the simplest
        for trial in sorted(done, key=lambda each: each.candidate.simplicity):
            own = values[trial.number]
            if not any(self._dominates(values[other.number], own) for other in done):
                out.setdefault(tuple(own), trial)
        sign = -1 if self.objectives[0].more else 1
        return sorted(out.values(), key=lambda trial: sign * values[trial.number][0])

    def _dominates(self, one: Sequence[float], other: Sequence[float]) -> bool:
        pairs = list(zip(self.objectives, one, other, strict=True))
        return all(not each.better(b, a) for each, a, b in pairs) and any(each.better(a, b) for each, a, b in pairs)


def tune(
    settings: Sequence[Setting],
    *,
    objective: Sequence[str] = (),
    space: Path | None = None,
    trials: int = 200,
    requests: int = 2000,
    workers: int | None = None,
    hire: Hire | None = None,
    generation: int = GENERATION,
    study: Path | None = None,
    robust: bool = True,
    on_progress: Told | None = None,
) -> Tuned:
    """Search the policy for a load, or for several loads with the same candidates.

    settings: one a load, of the same trace (`prepare` makes them). objective: figures of a run; the first one decides,
    several give a frontier. space: a YAML file (see `space`). requests: of a trial; as many others are held out.
    workers: processes of this machine; hire: workers elsewhere instead (`on_ray`). Neither changes what is found, but
    generation does: trials that are asked for together, the most that are simulated at once. study: an SQLite file that
    is kept, and gone on with. robust: whether the winner is held against wrong assumptions.
    Errors: InputError.
    """
    import_optuna()
    if not 1 <= trials <= 100_000:
        raise InputError(f"trials={trials} is refused, expected 1..100000")
    if not 1 <= generation <= 10_000:
        raise InputError(f"generation={generation} is refused, expected 1..10000")
    if workers is not None and not 1 <= workers <= 1024:
        raise InputError(f"workers={workers} is refused, expected 1..1024")
    seen, unseen = _split(settings, requests)
    wanted = objectives(objective, seen[0])
    running = _running(seen[0])
    searched = default_space(seen[0], running) if space is None else read_space(space, seen[0], running)
    hired = hire or partial(Workers, workers or available_cores())
    stated = _stated(seen, searched, wanted, generation)
    plan = Plan(searched, tuple(wanted), seen[0].windows, seen[0].seed, stated, generation)

    def telling(what: str) -> Callable[[int, int], None] | None:
        return None if on_progress is None else on_progress(what)

    def whole(each: Sequence[Setting]) -> Crew:
        return hired(runner, list(each))

    if hire is None:
        compile_ahead([(one.part(0), one.concurrency) for one in seen] * trials, workers or available_cores())
    with hired(evaluator, seen, wanted, plan.segments) as processes:
        reachable = partial(_check_reachable, plan, seen[0])
        found = search(plan, trials, processes, study, telling("trials"), reachable)
    first = wanted[0]
    finals = decide(found, first, seen, unseen, whole, telling("runs on what was not seen"))
    tested = None
    if robust:
        best = finals.recommended(first)
        rest = [each.candidate for each in finals.held[1:]]
        others = [each for each, _ in finals.by_load][:_RUNNERS_UP]
        others = list(dict.fromkeys([finals.winner, *others]))
        tested = robustness(
            _one_window(unseen[0]), best.candidate, rest, others, first, whole, telling("runs under wrong assumptions")
        )
    return Tuned(tuple(found), finals, tested, searched, tuple(wanted), tuple(seen), tuple(unseen))


def _split(settings: Sequence[Setting], requests: int) -> tuple[list[Setting], list[Setting]]:
    """The first requests to search on, those after them held out, both in as many segments as they fill."""
    count = len(settings[0].trace)
    in_flight = max(setting.concurrency or 0 for setting in settings)
    least = round(_SPARE * ENOUGH * in_flight) or _LEAST_OPEN
    if requests < least:
        raise InputError(
            f"requests={requests} of a trial are too few for {in_flight} in flight, expected at least {least}"
        )
    if count < 2 * least:
        load = f"{in_flight} in flight" if in_flight else "an open loop"
        raise InputError(
            f"{settings[0].trace.source} has {count} requests, expected at least {2 * least} for {load}: half of them "
            "are held out"
        )
    size = min(requests, count // 2)
    parts = (
        [_taken(setting, 0, size) for setting in settings],
        [_taken(setting, size, 2 * size) for setting in settings],
    )
    segments = max(1, min(MOST_SEGMENTS, int(size / least)))
    seen, unseen = ([replace(each, windows=segments) for each in part] for part in parts)
    return seen, [replace(each, seed=each.seed + UNSEEN_SEEDS) for each in unseen]


def _taken(setting: Setting, begin: int, end: int) -> Setting:
    return replace(setting, trace=requests_between(setting.trace, begin, end), windows=1)


def _one_window(setting: Setting) -> Setting:
    return replace(setting, windows=1)


def _running(setting: Setting) -> int:
    """Requests that run at once."""
    from sglang_dspark.policies import Fixed

    most = setting.server(Fixed(1)).max_running_requests * setting.engine.replicas
    return most if setting.concurrency is None else min(most, setting.concurrency)


def _stated(
    settings: Sequence[Setting], space: Space, wanted: Sequence[Objective], generation: int
) -> dict[str, object]:
    """What the study depends on, in words where they are short and as a digest as a whole."""
    first = settings[0]
    return {
        "trace": f"{first.trace.source}, {len(first.trace)} requests",
        "profile": first.cost.name,
        "acceptance": first.drafter.name,
        "loads": [each.concurrency or each.request_rate or "trace" for each in settings],
        "objectives": [each.name for each in wanted],
        "goodput": first.slos_ms,
        "seed": first.seed,
        "segments": first.windows,
        **({"generation": generation} if generation != GENERATION else {}),
        "space": space.stated(),
        "release": release(),
        "digest": digest(list(settings)),
    }


def _check_reachable(plan: Plan, setting: Setting, trials: Sequence[Trial]) -> None:
    """Limits that nothing keeps leave nothing to search."""
    first = plan.objectives[0]
    done = [trial.outcome.mean(0) for trial in trials if trial.outcome.values]
    if not setting.slos_ms or not first.more or not done or max(done) > 1e-9:
        return
    limits = " ".join(f"{key}:{limit:g}" for key, limit in setting.slos_ms.items())
    raise InputError(
        f"no request of {len(done)} candidates keeps --goodput {limits}, no speculation and every fixed length among "
        "them: expected larger limits, or a smaller load"
    )
