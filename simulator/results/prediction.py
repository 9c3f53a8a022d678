"""Prediction against measurement: a recorded load is simulated freely, with step costs fitted on other loads.

Arrivals (or the concurrency of a closed loop), lengths and acceptance come from records; costs from records of *other*
runs or loads. Each repetition is simulated by itself; medians are compared, and the machine's own spread is the bound
where it is larger.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from sglang_dspark.cost import StepCost
from sglang_dspark.errors import InputError
from sglang_dspark.policies import Policy, make_policy, policy_to_string
from sglang_dspark.records import RecordSet
from sglang_dspark.records.blocks import Blocks, uncensored_blocks
from sglang_dspark.records.episodes import Episode, find_episodes
from sglang_dspark.records.fit import FittedCost, StepTimes, fit_times
from simulator.engine.recorded_load import RecordedLoad, stated_blocks
from simulator.engine.run import Setting
from simulator.engine.settings import EngineSettings
from simulator.results.metrics import Figures
from simulator.results.run import run_once

COMPARED = ("mean_tpot_ms", "mean_ttft_ms", "accept_length")
"""Beside the throughput: that of the steady window in a closed loop, that of the whole load in an open one."""

BOUNDS = {"output_throughput": 0.05, "steady_output_throughput": 0.05, "mean_tpot_ms": 0.05, "accept_length": 0.02}
"""Relative errors that a prediction must keep, or the run-to-run spread where that is larger (design.md 8)."""


@dataclass(frozen=True)
class Compared:
    """One figure. spread: (largest - smallest) / median of the measured repetitions, NaN with one; error: relative."""

    predicted: float
    measured: float
    spread: float
    error: float

    def within(self, bound: float) -> bool:
        """Whether the error keeps the bound or the spread, whichever is larger."""
        return bool(abs(self.error) <= np.fmax(bound, self.spread))


@dataclass(frozen=True)
class Prediction:
    """The outcome. figures: by name. repetitions: measured episodes. requests: of all of them together.

    recorded_blocks, request_steps: uncensored blocks that could be met at their own anchor, and blocks that the
    simulation met: the rest was drawn at unrecorded anchors.
    """

    figures: dict[str, Compared]
    policy: str
    concurrency: int | None
    repetitions: int
    requests: int
    recorded_blocks: int
    request_steps: int
    fitted: FittedCost
    notes: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Plain values: figures at the top, the circumstances beside them."""
        out: dict[str, Any] = {
            name: {"predicted": f.predicted, "measured": f.measured, "spread": f.spread, "error": f.error}
            for name, f in self.figures.items()
        }
        return out | {
            "policy": self.policy,
            "concurrency": self.concurrency,
            "repetitions": self.repetitions,
            "requests": self.requests,
            "least_share_drawn": self.least_share_drawn,
            "fit": self.fitted.as_json(),
            "notes": self.notes,
        }

    @property
    def least_share_drawn(self) -> float:
        """At least this share of the simulated blocks was drawn at unrecorded anchors."""
        return max(0.0, 1.0 - self.recorded_blocks / max(self.request_steps, 1))


def predict(
    records: RecordSet,
    fit: RecordSet,
    *,
    acceptance: RecordSet | None = None,
    concurrency: int | None = None,
    under: Policy | None = None,
    policy: Policy | None = None,
    complete: bool = False,
    seeds: int = 3,
) -> Prediction:
    """Predict the load in `records` and compare.

    fit: records whose step times give the costs; requests that are compared are left out of it. acceptance: records
    that give the blocks (default: `records`). concurrency: only the episodes of that closed loop (default: all, which
    must be alike). under: only those that ran under this policy. policy: what to simulate (default: the recorded one).
    complete: draw what trimmed blocks hide from their confidences. seeds: replications of the drawn blocks.
    Errors: InputError where records are censored, unlike each other, or too few.
    """
    episodes = find_episodes(records, lambda episode: concurrency is None or episode.concurrency == concurrency)
    if under is not None:
        episodes = [episode for episode in episodes if _ran_under(episode) == policy_to_string(under)]
        if not episodes:
            raise InputError(f"no recorded load of that kind ran under {policy_to_string(under)}, expected some")
    _check_alike(episodes)
    blocks = uncensored_blocks(acceptance or records, complete=complete, chosen=False)
    fitted = _fit_elsewhere(fit, episodes)
    chosen = policy or make_policy(_ran_under(episodes[0]))
    belief = records.costs()
    runs = [_simulate(episode, chosen, fitted.cost, belief, blocks, seeds) for episode in episodes]
    compared = {}
    measured = [episode.figures() for episode in episodes]
    for name in _compared(episodes[0].concurrency):
        compared[name] = _compare([run[name] for run, _, _ in runs], [one[name] for one in measured])
    notes = _notes(episodes, chosen, blocks, acceptance, [extra for _, _, extra in runs])
    steps = sum(count for _, count, _ in runs)
    known = {request.rid for episode in episodes for request in episode.requests}
    own = int(np.isin(blocks.request, [number for number, rid in enumerate(blocks.rids) if rid in known]).sum())
    return Prediction(
        compared,
        policy_to_string(chosen),
        episodes[0].concurrency,
        len(episodes),
        sum(len(episode.requests) for episode in episodes),
        own,
        steps,
        fitted,
        notes,
    )


def _compared(concurrency: int | None) -> tuple[str, ...]:
    return ("output_throughput" if concurrency is None else "steady_output_throughput", *COMPARED)


def _check_alike(episodes: Sequence[Episode]) -> None:
    kinds = sorted({episode.concurrency or 0 for episode in episodes})
    if len(kinds) > 1:
        shown = ", ".join("open loop" if kind == 0 else str(kind) for kind in kinds)
        raise InputError(f"the records hold loads of concurrency {shown}: choose one with --concurrency")
    policies = {_ran_under(episode) for episode in episodes}
    if len(policies) != 1 or "" in policies:
        raise InputError(f"the loads ran under {', '.join(sorted(policies)) or 'no policy'}: choose one with --under")


def _ran_under(episode: Episode) -> str:
    """The policy of most of its decode steps."""
    return max(episode.policies, key=episode.policies.__getitem__, default="")


def _fit_elsewhere(fit: RecordSet, episodes: Sequence[Episode]) -> FittedCost:
    """Costs from the steps of `fit` in which no compared request took part."""
    compared = {request.rid for episode in episodes for request in episode.requests}
    times = StepTimes()
    for _, step in fit.steps():
        if step.rids is None or compared.isdisjoint(step.rids):
            times.add(step)
    if not times.seconds:
        raise InputError("--fit holds no decode step outside the compared loads: costs must come from other ones")
    return fit_times(times)


def _simulate(
    episode: Episode, policy: Policy, cost: StepCost, tables: dict[str, StepCost], blocks: Blocks, seeds: int
) -> tuple[Figures, int, str]:
    """(mean figures over seeds, request-steps of the last one, note) of one repetition."""
    table = max(episode.tables, key=episode.tables.__getitem__, default="")
    load = RecordedLoad.of(episode.requests, blocks, episode.header)
    setting = Setting(
        load.trace,
        cost,
        tables.get(table, cost),
        load.drafter,
        engine=_settings(load.engine, episode, policy),
        concurrency=episode.concurrency,
        recorded=load,
        graphs="profile",
        explore=episode.explore,
    )
    found, met = [], 0
    for seed in range(seeds):
        one, recorder = run_once(setting, policy, seed)
        found.append(one)
        met = recorder.request_steps
    strangers = load.strangers(load.trace)
    note = "" if not strangers else f"{strangers} of {len(load.trace)} requests draw from blocks of others alike"
    return {name: float(np.mean([one[name] for one in found])) for name in _compared(episode.concurrency)}, met, note


def _settings(engine: EngineSettings, episode: Episode, policy: Policy) -> EngineSettings:
    """The server's own, with the schedule that it ran, or that the policy needs."""
    schedule = max(episode.schedules, key=episode.schedules.__getitem__)
    if schedule == "overlapped" and (policy.live or policy.max_lag == 1):
        schedule = "synchronous"
    return replace(engine, schedule=schedule)


def _compare(predicted: list[float], measured: list[float]) -> Compared:
    expected, seen = float(np.median(predicted)), float(np.median(measured))
    spread = (max(measured) - min(measured)) / seen if len(measured) > 1 else float("nan")
    return Compared(expected, seen, spread, (expected - seen) / seen)


def _notes(
    episodes: Sequence[Episode], policy: Policy, blocks: Blocks, acceptance: RecordSet | None, extra: list[str]
) -> list[str]:
    notes = []
    first = episodes[0]
    loop = f"closed loop of {first.concurrency}" if first.concurrency else "open loop by the recorded arrivals"
    notes.append(f"{loop}; {len(episodes)} repetition(s); policy {policy_to_string(policy)}")
    if len(episodes) < 3:
        notes.append(f"{len(episodes)} repetition(s) give no spread to judge by, expected at least 3")
    notes += [assumption.text for assumption in stated_blocks(blocks)]
    if acceptance is not None:
        notes.append("acceptance comes from other records than those compared")
    if first.explore:
        notes.append(f"{first.explore:.0%} of the steps explore, as on the server")
    return [*notes, *dict.fromkeys(text for text in extra if text)]
