"""Two ranks that share a tier, exactly: the joint output law of all requests of both (`policies.shared_tier`).

Each rank has a world of its own, requests, drafter, confidences, past; one policy decides on both. What they share is
what `Sharing` makes of what each would verify by itself. As in `enumeration`, nothing is sampled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from sglang_dspark.audit.engine import Engine
from sglang_dspark.audit.enumeration import Draft, Enumeration, Key, LagAsked
from sglang_dspark.audit.world import World
from sglang_dspark.policies import Decision, LiveBlock, Past, Policy
from sglang_dspark.policies.arithmetic import Ints
from sglang_dspark.policies.classes import of_plan
from sglang_dspark.policies.shared_tier import ask_for, filled, gathered

Pair = tuple[Key, Key]


class Situation(NamedTuple):
    """What one rank sees in a step, and what it would verify by itself."""

    past: Past
    live: LiveBlock
    decision: Decision


class Sharing(Protocol):
    """What the ranks verify in a step. Tests plant leaks here."""

    def lengths(self, policy: Policy, ranks: Sequence[Situation | None], captured: Ints | None) -> list[Ints]:
        """[R] of each rank, empty for one that is idle (None)."""


class SharedTier:
    """The engine's: every rank asks, the largest runs, and a policy that fills fills it."""

    def lengths(self, policy: Policy, ranks: Sequence[Situation | None], captured: Ints | None) -> list[Ints]:
        tier = gathered([_asks(rank) for rank in ranks]).tier(captured)
        return [np.empty(0, np.int64) if rank is None else under_tier(policy, rank, tier) for rank in ranks]


def under_tier(policy: Policy, rank: Situation, tier: int) -> Ints:
    """[R] that one rank verifies when `tier` tokens run anyway."""
    plan = filled(policy, rank.past, rank.decision.total, tier)
    return rank.decision.lengths if plan is None else of_plan(plan, rank.live).lengths


def _asks(rank: Situation | None) -> tuple[int, int, int]:
    if rank is None:
        return 0, 0, 0
    past = rank.past
    return ask_for(past.num_requests, past.gamma, rank.decision.total), past.num_requests, 0


class Distance(NamedTuple):
    """Total variation of the joint output law of both ranks, and of each rank's own."""

    joint: float
    each: tuple[float, float]


def distance(
    policy: Policy, worlds: Sequence[World], engine: Engine, asked: set[int], sharing: Sharing | None = None
) -> Distance:
    """How far two ranks are from the product of their targets. asked: see `enumeration.total_variation`."""
    sharing = sharing or SharedTier()
    try:
        law = _Ranks(policy, worlds, engine, asked, frozenset(asked) or None, sharing).law()
    except LagAsked:
        law = _Ranks(policy, worlds, engine, asked, None, sharing).law()
    targets = [world.target_law() for world in worlds]
    own = law.reshape(targets[0].size, targets[1].size)
    each = [_tv(own.sum(axis=1 - rank), targets[rank].ravel()) for rank in (0, 1)]
    return Distance(_tv(own, np.multiply.outer(targets[0].ravel(), targets[1].ravel())), (each[0], each[1]))


def _tv(law: NDArray[np.float64], target: NDArray[np.float64]) -> float:
    return float(0.5 * np.abs(law - target).sum())


class _Ranks:
    """One policy on two ranks."""

    def __init__(
        self,
        policy: Policy,
        worlds: Sequence[World],
        engine: Engine,
        asked: set[int],
        lags: frozenset[int] | None,
        sharing: Sharing,
    ) -> None:
        self.policy, self.sharing = policy, sharing
        self.one, self.other = (Enumeration(policy, world, engine, asked, lags) for world in worlds)
        self._situations: dict[tuple[int, Draft], Situation] = {}
        self._lengths: dict[object, tuple[Key, Key]] = {}

    def law(self) -> NDArray[np.float64]:
        """Joint law of all outputs, the axes of the first rank first."""
        states: dict[Pair, float] = {(self.one.first(), self.other.first()): 1.0}
        for step in range(1, self.one.world.shape.steps + 1):
            states = self._advance(states, step)
        lengths = [*self.one.world.lengths, *self.other.world.lengths]
        law = np.zeros([self.one.world.shape.vocab**length for length in lengths])
        for (key, other), mass in states.items():
            law[(*self.one.outputs(key), *self.other.outputs(other))] += mass
        return law

    def _advance(self, states: dict[Pair, float], step: int) -> dict[Pair, float]:
        self.one.begin_step()
        self.other.begin_step()
        drafts: tuple[dict[Key, list[Draft]], ...] = ({}, {})
        after: dict[tuple[int, Key, int, Key], dict[Key, float]] = {}

        def follow(which: int, rank: Enumeration, key: Key, number: int, lengths: Key) -> dict[Key, float]:
            memo = (which, key, number, lengths)
            if memo not in after:
                after[memo] = {}
                rank.follow(after[memo], key, drafts[which][key][number], lengths, 1.0, step)
            return after[memo]

        following: dict[Pair, float] = {}
        for (key, other), mass in states.items():
            for known, rank, own in zip(drafts, (self.one, self.other), (key, other), strict=True):
                if own not in known:
                    known[own] = list(rank.drafts(own))
            for number, draft in enumerate(drafts[0][key]):
                for counter, opposite in enumerate(drafts[1][other]):
                    lengths = self._decide(draft, opposite)
                    mine = follow(0, self.one, key, number, lengths[0])
                    theirs = follow(1, self.other, other, counter, lengths[1])
                    chance = mass * draft.chance * opposite.chance
                    for end, p in mine.items():
                        for far, q in theirs.items():
                            following[end, far] = following.get((end, far), 0.0) + chance * p * q
        return following

    def _decide(self, draft: Draft, opposite: Draft) -> tuple[Key, Key]:
        memo = (draft.seen, opposite.seen)
        if memo not in self._lengths:
            seen = [self._situation(0, draft), self._situation(1, opposite)]
            found = self.sharing.lengths(self.policy, seen, self.one.world.cost.captured)
            mine, theirs = (tuple(int(length) for length in lengths) for lengths in found)
            self._lengths[memo] = (
                self.one.checked(mine, len(draft.running)),
                self.other.checked(theirs, len(opposite.running)),
            )
        return self._lengths[memo]

    def _situation(self, which: int, draft: Draft) -> Situation | None:
        if not draft.running:
            return None
        if (which, draft) not in self._situations:
            past, live = (self.one, self.other)[which].situation(draft.seen)
            self._situations[which, draft] = Situation(past, live, self.policy.decide(past, live))
        return self._situations[which, draft]
