"""What policies are compared against: no speculation, the best fixed length, every token verified."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from sglang_dspark.errors import InputError
from sglang_dspark.policies import Fixed, NoDraft, Policy, make_policy, policy_to_string
from sglang_dspark.workers import Hire
from simulator.engine.run import Setting
from simulator.parallel import run_all
from simulator.results.comparison import Comparison, PolicyResult
from simulator.results.stated import stated_setting
from simulator.run_store import RunStore

OTHER_SEEDS = 1 << 31
"""Added to a seed where something is chosen, so that what is chosen is reported on draws that did not choose it."""

ADAPTIVE = ("hull", "argmax:lag=2", "self-tuning")
_MOST_LENGTHS = 16
_FAVOURITES = 3


@dataclass(frozen=True)
class Lineup:
    """policies: in the order of the table, the base of all gains first. fixed: the best fixed length among them.

    mean_batch: of that one's runs, while it was chosen. left_out: why a policy of the default is not there.
    """

    policies: tuple[Policy, ...]
    fixed: Policy | None
    mean_batch: float
    left_out: tuple[str, ...] = ()


def lineup(
    setting: Setting,
    asked: Sequence[Policy] = (),
    *,
    jobs: int | Hire | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    store: RunStore | None = None,
) -> Lineup:
    """No speculation and the best fixed length, then what was asked, or else every token verified and `ADAPTIVE`.

    What this setting cannot run or price is left out of the defaults; of what was asked it is refused (InputError).
    """
    for policy in asked:
        setting.check(policy)
    left_out: list[str] = []
    fixed, batch = best_fixed(setting, jobs=jobs, on_progress=on_progress, store=store)
    none: list[Policy] = [NoDraft()]
    found = [policy for policy in none if _runs(setting, policy, left_out)]
    found += [] if fixed is None else [fixed]
    others: Sequence[Policy] = asked
    if not asked and setting.drafter.name != "none":
        defaults: list[Policy] = [Fixed(setting.drafter.gamma), *map(make_policy, ADAPTIVE)]
        others = [policy for policy in defaults if _runs(setting, policy, left_out)]
    found += [policy for policy in others if policy not in found]
    if not found:
        raise InputError(f"no policy can run here: {'; '.join(left_out)}")
    return Lineup(tuple(found), fixed, batch, tuple(left_out))


def best_fixed(
    setting: Setting,
    *,
    jobs: int | Hire | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    store: RunStore | None = None,
) -> tuple[Policy | None, float]:
    """(the best fixed length on draws of its own, the mean batch of its runs); every length counts, none is inferred.

    All meet one set of draws (or one a window), the best three then another. Blocks beyond 16 tokens are tried at 16
    lengths, then around the best. None where no length can run.
    """
    if setting.drafter.name == "none":
        return None, 0.0
    gamma, unused = setting.drafter.gamma, list[str]()
    lengths = sorted({round(1 + index * (gamma - 1) / (_MOST_LENGTHS - 1)) for index in range(_MOST_LENGTHS)})
    tried: dict[int, PolicyResult] = {}
    other = replace(setting, seed=setting.seed + OTHER_SEEDS)
    count = setting.windows
    while True:
        policies = [Fixed(k) for k in lengths if k not in tried and _runs(setting, Fixed(k), unused)]
        if not policies:
            break
        runs = run_all(other, policies, count, jobs, on_progress, store)
        for policy, figures in zip(policies, runs, strict=True):
            tried[policy.k] = PolicyResult(policy_to_string(policy), True, "", tuple(figures), {})
        best = _best(other, tried, count)
        around = [k for k in sorted(tried) if k < best][-1:] + [k for k in sorted(tried) if k > best][:1]
        lengths = [(best + k) // 2 for k in around if abs(best - k) > 1]
    if not tried:
        return None, 0.0
    left = {k: tried[k] for k in _ranked(other, tried, count)[:_FAVOURITES]}
    again = run_all(replace(other, seed=other.seed + 1), [Fixed(k) for k in left], count, jobs, on_progress, store)
    for (k, result), figures in zip(list(left.items()), again, strict=True):
        left[k] = replace(result, replications=(*result.replications, *figures))
    best = _best(other, left, 2 * count)
    return Fixed(best), tried[best].figures["mean_batch"]


def _best(setting: Setting, tried: dict[int, PolicyResult], count: int) -> int:
    return _ranked(setting, tried, count)[0]


def _ranked(setting: Setting, tried: dict[int, PolicyResult], count: int) -> list[int]:
    results = tuple(tried[k] for k in sorted(tried))
    comparison = Comparison(results, (), stated_setting(setting, [Fixed(k) for k in sorted(tried)], count))
    return [next(k for k, result in tried.items() if result is one) for one in comparison.judged.ranked(results)]


def _runs(setting: Setting, policy: Policy, left_out: list[str]) -> bool:
    try:
        setting.check(policy)
    except InputError as error:
        left_out.append(f"{policy_to_string(policy)} is left out: {error}")
        return False
    return True
