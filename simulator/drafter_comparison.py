"""Drafters against each other in one run: throughput at matched speed of a user, and speed at matched throughput."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sglang_dspark.cost import StepCost
from sglang_dspark.errors import InputError
from sglang_dspark.policies import NoDraft, Policy, make_policy
from sglang_dspark.workers import Hire
from simulator.baselines import best_fixed
from simulator.blocks.drafters import Drafter
from simulator.engine.recorded_load import RecordedLoad
from simulator.engine.run import Setting
from simulator.flags.acceptance import HEADLINE
from simulator.inputs import Acceptance, Engine, Load, prepare
from simulator.results.comparison import Comparison
from simulator.results.matched import Frontier
from simulator.results.paired import Paired, paired
from simulator.run_store import RunStore
from simulator.simulate import compare_policies
from simulator.traces import Trace

SCHEDULED = "argmax:lag=2"
"""Where a drafter has a confidence head and no policy is asked: SGLang's own rule."""

_SPEED, _THROUGHPUT = "steady_mean_tpot_ms", "steady_output_throughput"


@dataclass(frozen=True)
class DrafterComparison:
    """drafters: names; the first is what the others are compared with. loads: requests in flight. comparisons: one a
    drafter and load, of the one policy that it runs there.
    """

    drafters: tuple[str, ...]
    loads: tuple[int, ...]
    comparisons: tuple[tuple[Comparison, ...], ...]

    @property
    def base(self) -> str:
        """The drafter that the others are compared with."""
        return self.drafters[0]

    def policies(self, drafter: str) -> list[str]:
        """What the drafter runs under, by load."""
        return [each.results[0].policy for each in self._of(drafter)]

    def frontier(self, drafter: str, replication: int | None = None) -> Frontier:
        """Speed and throughput by load, the means over the sets of draws, or those of one."""
        runs = [each.results[0].replications for each in self._of(drafter)]
        chosen = [each if replication is None else (each[replication],) for each in runs]
        tpot, rate = (
            np.array([np.mean([run[name] for run in each]) for each in chosen]) for name in (_SPEED, _THROUGHPUT)
        )
        return Frontier(1e3 / tpot, rate)

    def more_throughput(self, drafter: str, load: int) -> Paired:
        """Gain in the server's tokens/s at the speed that the base gives each user at this load; NaN where the drafter
        was not simulated at that speed."""
        return self._gain(drafter, lambda frontier, base: frontier.throughput_at(base.speed[load]))

    def more_speed(self, drafter: str, load: int) -> Paired:
        """Gain in each user's speed at the throughput that the base has at this load."""
        return self._gain(drafter, lambda frontier, base: frontier.speed_at(base.throughput[load]))

    def _gain(self, drafter: str, at: Callable[[Frontier, Frontier], float]) -> Paired:
        count = len(self.comparisons[0][0].results[0].replications)
        bases = [self.frontier(self.base, number) for number in range(count)]
        ours = [at(self.frontier(drafter, number), base) for number, base in enumerate(bases)]
        theirs = [at(base, base) for base in bases]
        if not np.isfinite(ours).all():
            return Paired(np.nan, np.nan, np.nan)
        return paired(ours, theirs, self.comparisons[0][0].setting["windows"])

    def words(self) -> list[str]:
        """One sentence a drafter: its gains over the base where both were simulated."""
        said = []
        for drafter in self.drafters[1:]:
            parts = []
            for what, gain in (("speed of each user", self.more_speed), ("throughput", self.more_throughput)):
                found = [100 * gain(drafter, load).mean for load in range(len(self.loads))]
                found = [value for value in found if np.isfinite(value)]
                given = "throughput" if what != "throughput" else "speed"
                if found:
                    parts.append(f"{_span(found)} {what} at matched {given}")
            known = " and ".join(parts) or "never at a speed or throughput that both have: give more loads"
            said.append(f"{drafter} against {self.base}: {known}")
        return said

    def as_json(self) -> dict[str, Any]:
        """Plain values beside the comparisons."""
        return {
            "base": self.base,
            "loads": list(self.loads),
            "drafters": {name: self._plain(name) for name in self.drafters},
            "words": self.words(),
        }

    def _plain(self, drafter: str) -> dict[str, Any]:
        frontier, loads = self.frontier(drafter), range(len(self.loads))
        return {
            "policies": self.policies(drafter),
            "tokens_per_s_per_user": frontier.speed.tolist(),
            "output_throughput": frontier.throughput.tolist(),
            "throughput_gain_at_matched_speed": [_number(self.more_throughput(drafter, load)) for load in loads],
            "speed_gain_at_matched_throughput": [_number(self.more_speed(drafter, load)) for load in loads],
        }

    def _of(self, drafter: str) -> tuple[Comparison, ...]:
        return self.comparisons[self.drafters.index(drafter)]


def compare_drafters(
    load: Load | str | Path | Trace | RecordedLoad,
    engine: Engine | str | Path | StepCost,
    drafters: Sequence[str] = HEADLINE,
    concurrencies: Sequence[int] = (8, 16, 32, 64, 128),
    policy: str | Policy | None = None,
    *,
    replications: int = 5,
    seed: int = 0,
    jobs: int | Hire | None = None,
) -> DrafterComparison:
    """Serve a load with several drafters at several loads, on the same draws; the others are held against the first.

    drafters: names, see `DRAFTERS`. concurrencies: requests in flight, increasing. policy: what every drafter runs
    under; None: `SCHEDULED` with a confidence head, else the best fixed length at each load. Errors: InputError.
    """
    one = load if isinstance(load, Load) else Load(load)
    settings = {
        name: [prepare(replace(one, concurrency=n), engine, Acceptance(name), seed=seed) for n in concurrencies]
        for name in drafters
    }
    asked = make_policy(policy) if isinstance(policy, str) else policy
    return compared(settings, asked, replications=replications, jobs=jobs)


def compared(
    settings: Mapping[str, Sequence[Setting]],
    asked: Policy | None = None,
    *,
    replications: int = 5,
    jobs: int | Hire | None = None,
    on_load: Callable[[str], Callable[[int, int], None] | None] | None = None,
    store: RunStore | None = None,
) -> DrafterComparison:
    """`compare_drafters` in settings that `prepare` has made: by drafter, one a load. on_load: see `sweep`."""
    loads = _check([[each.concurrency for each in of] for of in settings.values()])

    def telling(what: str) -> Callable[[int, int], None] | None:
        return None if on_load is None else on_load(what)

    chosen: dict[str, list[Policy]] = {}
    for name, of in settings.items():
        chosen[name] = []
        for setting in of:
            told = telling(f"lengths of {name} at {setting.concurrency} in flight")
            chosen[name].append(_policy(setting, asked, jobs, told, store))
            setting.check(chosen[name][-1])
    found = []
    for name, of in settings.items():
        runs = []
        for setting, policy in zip(of, chosen[name], strict=True):
            told = telling(f"{name} at {setting.concurrency} in flight")
            runs.append(
                compare_policies(setting, [policy], replications=replications, jobs=jobs, on_progress=told, store=store)
            )
        found.append(tuple(runs))
    return DrafterComparison(tuple(settings), loads, tuple(found))


def _check(loads: list[list[int | None]]) -> tuple[int, ...]:
    if len(loads) < 2:
        raise InputError(f"{len(loads)} drafter is given, expected at least two different ones to compare")
    first = [load for load in loads[0] if load is not None]
    if len(first) < 2 or len(first) != len(loads[0]) or first != sorted(set(first)):
        raise InputError(
            "drafters are compared at matched speed, between loads: expected several increasing concurrencies, such "
            "as 8,16,32,64,128"
        )
    return tuple(first)


def _policy(
    setting: Setting,
    asked: Policy | None,
    jobs: int | Hire | None,
    told: Callable[[int, int], None] | None,
    store: RunStore | None,
) -> Policy:
    drafter: Drafter = setting.drafter
    if drafter.name == "none":
        return NoDraft()
    if asked is not None:
        return asked
    if drafter.has_confidence:
        return make_policy(SCHEDULED)
    fixed, _ = best_fixed(setting, jobs=jobs, on_progress=told, store=store)
    if fixed is None:
        raise InputError(f"drafter '{drafter.name}' has no length that can run at {setting.concurrency} in flight")
    return fixed


def _span(values: list[float]) -> str:
    low, high = min(values), max(values)
    return f"{low:+.0f} %" if round(low) == round(high) else f"{low:+.0f} to {high:+.0f} %"


def _number(gain: Paired) -> dict[str, float | None]:
    values = {"mean": gain.mean, "low": gain.low, "high": gain.high}
    return {key: None if np.isnan(value) else value for key, value in values.items()}
