"""Several loads at once: which policy from which load on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from sglang_dspark.errors import InputError
from sglang_dspark.policies import Fixed, Policy, Schedule, policy_to_string
from sglang_dspark.workers import Hire
from simulator.baselines import Lineup, lineup
from simulator.engine.run import Setting
from simulator.results.answer import Choice, choose
from simulator.results.comparison import Comparison, PolicyResult
from simulator.results.paired import interval
from simulator.results.plot import plot_loads
from simulator.run_store import RunStore
from simulator.simulate import compare_policies

BEST = "best fixed k"


@dataclass(frozen=True)
class Sweep:
    """loads: requests in flight, or requests a second. comparisons: one a load, of the same policies but for the best
    fixed length, which is chosen for each load. schedule: read off those lengths; None where one length serves all.
    """

    closed: bool
    loads: tuple[float, ...]
    comparisons: tuple[Comparison, ...]
    fixed: tuple[str | None, ...]
    schedule: str | None

    @property
    def unit(self) -> str:
        """What a load counts."""
        return "in flight" if self.closed else "requests/s"

    @property
    def rows(self) -> list[str]:
        """The policies, the best fixed length of every load as one."""
        names = dict.fromkeys(
            BEST if result.policy == fixed and number == self._fixed_at(comparison, fixed) else result.policy
            for comparison, fixed in zip(self.comparisons, self.fixed, strict=True)
            for number, result in enumerate(comparison.results)
        )
        return list(names)

    def result(self, row: str, load: int) -> PolicyResult | None:
        """The result of a row at a load; None where that policy did not run there under this name."""
        comparison, fixed = self.comparisons[load], self.fixed[load]
        if row == BEST:
            at = self._fixed_at(comparison, fixed)
            return None if at is None else comparison.results[at]
        return next((result for result in comparison.results if result.policy == row), None)

    @property
    def choices(self) -> list[Choice | None]:
        """What to run at each load."""
        return [choose(comparison) for comparison in self.comparisons]

    def words(self) -> list[str]:
        """The crossovers, and below which load nothing pays."""
        said = []
        stretches = groupby(zip(self.loads, self.choices, strict=True), lambda pair: pair[1] and pair[1].policy)
        for policy, stretch in stretches:
            pairs = list(stretch)
            first, last = pairs[0][0], pairs[-1][0]
            span = f"at {first:g}" if first == last else f"from {first:g} to {last:g}"
            if policy is None:
                said.append(f"{span} {self.unit}: no verdict")
                continue
            load, found = max(
                ((load, choice) for load, choice in pairs if choice is not None), key=lambda pair: pair[1].gain.mean
            )
            if found.pays:
                said.append(f"{span} {self.unit}: {policy}, {interval(found.gain)} over {found.base} at {load:g}")
            elif policy == "none":
                said.append(
                    f"{span} {self.unit}: none, nothing pays ({found.rival} {interval(found.gain)} at {load:g})"
                )
            else:
                said.append(
                    f"{span} {self.unit}: {policy}, nothing beats it ({found.rival} {interval(found.gain)} at {load:g})"
                )
        return said

    def summary(self) -> str:
        """One sentence for the whole sweep."""
        choices = [(load, choice) for load, choice in zip(self.loads, self.choices, strict=True) if choice is not None]
        paying = [(load, choice) for load, choice in choices if choice.pays]
        if not choices:
            return "no verdict at any load"
        if not paying:
            return f"no policy beats a fixed length (or no speculation) at any of these loads ({self.unit})"
        load, best = max(paying, key=lambda pair: pair[1].gain.mean)
        below = [at for at, choice in choices if at < paying[0][0] and not choice.pays]
        tail = f"; below {paying[0][0]:g} nothing beats the baselines" if below else ""
        return f"switch on {best.policy}: {interval(best.gain)} over {best.base} at {load:g} {self.unit}{tail}"

    def plot(self, path: Path) -> Any:
        """Gains over the first policy by load, written to .svg or .png."""
        base, by = self.comparisons[0].results[0].policy, self.comparisons[0].judged
        lines = {}
        for row in self.rows:
            found = [self.result(row, load) for load in range(len(self.loads))]
            if row == base or any(result is None for result in found):
                continue
            gains = [c.gain(r) for c, r in zip(self.comparisons, found, strict=True) if r is not None]
            lines[row] = [(100 * gap.mean, 100 * gap.low, 100 * gap.high) for gap in gains]
        setting = self.comparisons[0].setting
        words = {
            "x": "requests in flight" if self.closed else "requests a second",
            "y": f"gain over {base} in {by.words}, %",
            "title": f"{setting['trace']}; step costs of {setting['profile']} (simulated)",
        }
        return plot_loads(self.loads, lines, words, path)

    def as_json(self) -> dict[str, Any]:
        """Plain values beside the comparisons."""
        return {
            "closed_loop": self.closed,
            "loads": list(self.loads),
            "best_fixed": list(self.fixed),
            "schedule": self.schedule,
            "choices": [
                None
                if choice is None
                else {"policy": choice.policy, "base": choice.base, "pays": choice.pays, "gain": choice.gain.mean}
                for choice in self.choices
            ],
            "words": self.words(),
            "summary": self.summary(),
        }

    @staticmethod
    def _fixed_at(comparison: Comparison, fixed: str | None) -> int | None:
        """Where the best fixed length stands: the first of its name."""
        names = [result.policy for result in comparison.results]
        return names.index(fixed) if fixed in names else None


def sweep(
    settings: Sequence[Setting],
    asked: Sequence[Policy] = (),
    *,
    only: bool = False,
    replications: int = 5,
    jobs: int | Hire | None = None,
    on_load: Callable[[str], Callable[[int, int], None] | None] | None = None,
    store: RunStore | None = None,
) -> Sweep:
    """Compare the same policies at every load. settings: they differ in `concurrency`, or in `request_rate`.

    only: the policies that were asked, without baselines and without a schedule. on_load(load in words) gives what is
    told of progress there. Errors: InputError.
    """
    closed = settings[0].concurrency is not None
    loads = [float(each.concurrency if closed else each.request_rate or 0) for each in settings]  # type: ignore[arg-type]

    def telling(what: str, load: float) -> Callable[[int, int], None] | None:
        return None if on_load is None else on_load(f"{what} {load:g} {'in flight' if closed else 'requests/s'}")

    found: list[Lineup] = []
    for setting, load in zip(settings, loads, strict=True):
        if only:
            for policy in asked:
                setting.check(policy)
            found.append(Lineup(tuple(asked), None, 0.0))
            continue
        told = telling("lengths at", load)
        found.append(lineup(setting, asked, jobs=jobs, on_progress=told, store=store))
    schedule = None if only else read_schedule(found)
    comparisons = []
    for setting, load, each in zip(settings, loads, found, strict=True):
        policies = each.policies if schedule is None or schedule in each.policies else (*each.policies, schedule)
        told = telling("policies at", load)
        comparisons.append(
            compare_policies(setting, policies, replications=replications, jobs=jobs, on_progress=told, store=store)
        )
    fixed = tuple(None if each.fixed is None else policy_to_string(each.fixed) for each in found)
    text = None if schedule is None else policy_to_string(schedule)
    return Sweep(closed, tuple(loads), tuple(comparisons), fixed, text)


def read_schedule(found: Sequence[Lineup]) -> Schedule | None:
    """The best fixed length of every load by the batch that it met there, the boundary half way between two batches.

    None where one length is the best everywhere, or batches do not grow from load to load.
    """
    steps = [(each.mean_batch, each.fixed.k) for each in found if isinstance(each.fixed, Fixed)]
    lengths = [steps[0][1]] if steps else []
    upto: list[int] = []
    for (batch, k), (larger, other) in zip(steps, steps[1:], strict=False):
        if other == k:
            continue
        boundary = round((batch * larger) ** 0.5)
        if boundary < 1 or (upto and boundary <= upto[-1]):
            return None
        upto.append(boundary)
        lengths.append(other)
    if not upto:
        return None
    try:
        return Schedule(upto=tuple(upto), k=tuple(lengths))
    except InputError:
        return None
