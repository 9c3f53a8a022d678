"""How much a choice loses where the world is not as assumed: regret under wrong costs, confidences and loads.

The engine's costs change, what the policies believe does not: that is what being off means. Regret is what the choice
loses against the best of all that were compared in that world, baselines and runners-up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from sglang_dspark.cost import StepCost
from sglang_dspark.errors import InputError
from sglang_dspark.workers import Crew
from simulator.blocks.random import stream
from simulator.engine.run import Setting
from simulator.tuning.candidate import Candidate
from simulator.tuning.objective import Objective

OFF = (0.05, 0.10, 0.20)
_PREFILL = ("prefill_base_s", "prefill_token_s", "prefill_pair_s")
COSTS = "costs"
"""The kind of the changes that a winner on the exact table alone does not survive."""


@dataclass(frozen=True)
class Changed:
    """One change. kind: `COSTS` or another word. best: who leads there. regret: of the choice, 0 where it leads.

    over_base: gain of the choice over the best baseline there.
    """

    what: str
    kind: str
    best: str
    regret: float
    over_base: float


@dataclass(frozen=True)
class Robustness:
    """changes: in order. exact_only: the choice beats the baselines with the exact costs, and not with wrong ones."""

    changes: tuple[Changed, ...]
    exact_only: bool

    @property
    def worst(self) -> Changed:
        """The change with the largest regret."""
        return max(self.changes, key=lambda change: change.regret)


def robustness(
    setting: Setting,
    chosen: Candidate,
    baselines: Sequence[Candidate],
    others: Sequence[Candidate],
    objective: Objective,
    workers: Callable[[Sequence[Setting]], Crew],
    on_runs: Callable[[int, int], None] | None = None,
) -> Robustness:
    """Regret of `chosen` against baselines and others under each of `worlds`; every one on the windows of the setting.

    A candidate that a world refuses is left out there.
    """
    named = worlds(setting)
    everyone = list(dict.fromkeys([chosen, *baselines, *others]))
    tasks = [
        (number, candidate, replication)
        for number, (_, _, world) in enumerate(named)
        for candidate in everyone
        if _runs(world, candidate)
        for replication in range(world.windows)
    ]
    with workers([world for _, _, world in named]) as processes:
        told = None if on_runs is None else lambda runs: on_runs(runs, len(tasks))
        runs = processes.run(tasks, told)
    values: dict[tuple[int, Candidate], list[float]] = {}
    for (number, candidate, _), figures in zip(tasks, runs, strict=True):
        values.setdefault((number, candidate), []).append(objective.of(figures))
    changes = []
    for number, (what, kind, _) in enumerate(named):
        means = {each: float(np.mean(values[number, each])) for each in everyone if (number, each) in values}
        changes.append(_change(what, kind, means, chosen, baselines, objective))
    return Robustness(tuple(changes[1:]), _exact_only(changes))


def _change(
    what: str,
    kind: str,
    values: dict[Candidate, float],
    chosen: Candidate,
    baselines: Sequence[Candidate],
    objective: Objective,
) -> Changed:
    ranked = sorted(values, key=lambda each: values[each], reverse=objective.more)
    others = [values[each] for each in baselines if each in values]
    base = max(others) if objective.more else min(others)
    best = values[ranked[0]]
    return Changed(
        what,
        kind,
        ranked[0].text,
        max(0.0, -objective.gain(values[chosen], best)),
        objective.gain(values[chosen], base),
    )


def _exact_only(changes: Sequence[Changed]) -> bool:
    """Ahead with the costs as they are, and behind the baselines with costs that are off by at most 10 %."""
    asis, wrong = changes[0], [change for change in changes[1:] if change.kind == COSTS and " 20 %" not in change.what]
    return asis.over_base > 0 and any(change.over_base < 0 for change in wrong)


def worlds(setting: Setting) -> list[tuple[str, str, Setting]]:
    """(what, kind, setting) of every change, the setting as it is first."""
    out = [("as assumed", "", setting)]
    for share in OFF:
        for sign, word in ((1, "dearer"), (-1, "cheaper")):
            by = sign * share
            out.append((f"steps {share:.0%} {word}", COSTS, _costs(setting, scaled(setting.cost, by))))
            out.append((f"verify slope {share:.0%} {word}", COSTS, _costs(setting, sloped(setting.cost, by))))
        for draw in range(2):
            cost = uneven(setting.cost, share, setting.seed + draw)
            out.append((f"tiers off by {share:.0%}, draw {draw + 1}", COSTS, _costs(setting, cost)))
    out = [(what.replace("5%", "5 %").replace("0%", "0 %"), kind, world) for what, kind, world in out]
    out += [(what, "confidences", world) for what, world in _confidences(setting)]
    out += _loads(setting)
    out += [(what, "domains", world) for what, world in _domains(setting)]
    if setting.engine.prefill_elsewhere_s is None:
        terms = {key: 2 * setting.cost.terms[key] for key in _PREFILL}
        out.append(("prefill twice as dear", "prefill", _costs(setting, setting.cost.with_terms(**terms))))
    return out


def scaled(cost: StepCost, by: float) -> StepCost:
    """Every decode step dearer by a share."""
    return _curves(cost, lambda seconds: seconds * (1 + by), bias=1 + by, draft=1 + by)


def sloped(cost: StepCost, by: float) -> StepCost:
    """What verification costs beyond its cheapest step, dearer by a share."""
    return _curves(cost, lambda seconds: seconds + by * (seconds - seconds.min(axis=-1, keepdims=True)))


def uneven(cost: StepCost, most: float, seed: int) -> StepCost:
    """Every probe of the verify curve off by a draw of its own within +-`most`."""
    draws = stream(seed, "uneven").uniform(-most, most, cost.verify.seconds.shape[-1])
    verify = replace(cost.verify, seconds=(cost.verify.seconds + cost.bias_s) * (1 + draws) - cost.bias_s)
    return replace(cost, verify=verify)


def _curves(
    cost: StepCost, change: Callable[[np.ndarray], np.ndarray], bias: float = 1.0, draft: float = 1.0
) -> StepCost:
    eager = None if cost.eager is None else replace(cost.eager, seconds=change(cost.eager.seconds))
    return replace(
        cost,
        verify=replace(cost.verify, seconds=change(cost.verify.seconds)),
        eager=eager,
        draft=replace(cost.draft, seconds=cost.draft.seconds * draft),
        bias_s=cost.bias_s * bias,
    )


def _costs(setting: Setting, cost: StepCost) -> Setting:
    """The engine costs otherwise; the policies believe what they did."""
    return replace(setting, cost=cost)


def _confidences(setting: Setting) -> list[tuple[str, Setting]]:
    if setting.recorded is not None or not setting.drafter.has_confidence or setting.confidence.online:
        return []
    head = setting.confidence
    changed = {
        "confidences too high (bias +1)": replace(head, bias=head.bias + 1),
        "confidences too low (bias -1)": replace(head, bias=head.bias - 1),
        "confidences too sharp (T / 2)": replace(head, temperature=head.temperature / 2),
        "confidences too flat (T x 2)": replace(head, temperature=head.temperature * 2),
    }
    return [(what, replace(setting, confidence=each)) for what, each in changed.items()]


def _loads(setting: Setting) -> list[tuple[str, str, Setting]]:
    if setting.concurrency is not None:
        return [("twice as many in flight", "load", replace(setting, concurrency=2 * setting.concurrency))]
    if setting.request_rate is not None:
        return [("twice the request rate", "load", replace(setting, request_rate=2 * setting.request_rate))]
    faster = replace(setting.trace, arrival_s=setting.trace.arrival_s / 2)
    return [("twice the request rate", "load", replace(setting, trace=faster))]


def _domains(setting: Setting) -> list[tuple[str, Setting]]:
    drafter = setting.drafter
    if setting.recorded is not None or not drafter.knows_domains or setting.trace.domain is not None:
        return []
    return [(f"{name} alone", replace(setting, domain_mix={name: 1.0})) for name in drafter.domains]


def _runs(world: Setting, candidate: Candidate) -> bool:
    try:
        candidate.setting(world).check(candidate.policy)
    except InputError:
        return False
    return True
