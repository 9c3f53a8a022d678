"""Exact joint output law of a policy in a small world: dynamic programming over everything that a decision may see.

A state holds, for every slot of the batch, the owner's output so far and its published survivals, and what the policy
carries. Equal states are merged. Nothing is sampled.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sglang_dspark.audit.engine import Engine
from sglang_dspark.audit.world import World
from sglang_dspark.errors import InputError
from sglang_dspark.policies import (
    SCALE,
    LiveBlock,
    NotAFault,
    Outcome,
    Past,
    Policy,
    StepTiming,
    learned,
    started,
    timing_of,
)

_EMPTY = -1
_UNPUBLISHED = -1
_DROPPED = -2  # a publish at a lag that the policy has not asked for so far

Key = tuple[int, ...]
"""Ids: of the slots' states, then of what the policy carries (one for every step that an outcome is late)."""
SlotLaw = list[tuple[int, int, float]]
"""(slot state, accepted draft tokens, probability)."""


class LagAsked(NotAFault, Exception):
    """A lag was asked for that was dropped to keep the states few; enumerate again with every lag."""


class LagBeyond(NotAFault, InputError):
    """A lag was asked for that the policy did not announce."""


class Slot(NamedTuple):
    """One slot of the batch. owner: request or -1. zombie: finished, but still in the batch. node: the output so far.

    ring: row ids of its publishes, newest first. memory: of the drafter's noise. done: output of the first owner.
    """

    owner: int
    zombie: bool
    node: int
    ring: Key
    memory: Any
    done: int


class Option(NamedTuple):
    """One block that a slot may draft. row: id of its confidences."""

    block: Key
    chance: float
    row: int
    memory: Any


class Seen(NamedTuple):
    """What a decision depends on: of each running slot its publishes and its confidences, then carry and queue."""

    views: tuple[Key, ...]
    rows: Key
    carry: int
    waiting: int


class Draft(NamedTuple):
    """One draft of a batch. running: slots that have a request; blocks: one of each."""

    running: Key
    blocks: tuple[Option, ...]
    chance: float
    seen: Seen


def total_variation(policy: Policy, world: World, engine: Engine, asked: set[int]) -> float:
    """Distance between the joint output law and the product of the targets'.

    asked: the lags that the policy has asked for so far (updated); empty at first.
    """
    try:
        law = Enumeration(policy, world, engine, asked, frozenset(asked) or None).law()
    except LagAsked:
        law = Enumeration(policy, world, engine, asked, None).law()
    return float(0.5 * np.abs(law - world.target_law()).sum())


class Enumeration:
    """One policy in one world."""

    def __init__(
        self, policy: Policy, world: World, engine: Engine, asked: set[int], lags: frozenset[int] | None
    ) -> None:
        """lags: the publishes to keep for the policy; None keeps all up to its `max_lag`."""
        self.policy, self.world, self.engine, self.asked = policy, world, engine, asked
        self.lags = frozenset(range(1, policy.max_lag + 1)) if lags is None else lags
        self.delay = (2 if world.overlapped else 1) if policy.learns else 0
        self.slots: list[Slot] = []
        self._slot_ids: dict[Slot, int] = {}
        self._options: dict[int, list[Option]] = {}
        self._slot_laws: dict[tuple[int, int, int], SlotLaw] = {}
        self._decisions: dict[Any, Key] = {}
        self._carries: list[Any] = []
        self._carry_ids: dict[Any, int] = {}
        self._learned: dict[Any, int] = {}

    def law(self) -> NDArray[np.float64]:
        """Joint law of all outputs, axes as in `World.target_law`."""
        shape = self.world.shape
        states = {self.first(): 1.0}
        for step in range(1, shape.steps + 1):
            states = self._advance(states, step)
        law = np.zeros([shape.vocab**length for length in self.world.lengths])
        for key, mass in states.items():
            law[self.outputs(key)] += mass
        return law

    def first(self) -> Key:
        """The state before the first step."""
        shape = self.world.shape
        never = (_UNPUBLISHED,) * self.policy.max_lag
        slots = [self._slot_id(Slot(owner, False, 0, never, None, -1)) for owner in range(shape.requests)]
        carry = self._carry_id(started(self.policy, shape.gamma)[0])
        return (*slots, *(carry,) * max(self.delay, 1))

    def _advance(self, states: dict[Key, float], step: int) -> dict[Key, float]:
        """All states after one more decode step."""
        self.begin_step()
        following: dict[Key, float] = {}
        for key, mass in states.items():
            for draft in self.drafts(key):
                lengths = self._decide(draft)
                self.follow(following, key, draft, lengths, mass * draft.chance, step)
        return following

    def begin_step(self) -> None:
        """Which publishes are kept depends on the step."""
        self._slot_laws.clear()

    def drafts(self, key: Key) -> Iterator[Draft]:
        """Everything that the batch may draft next."""
        ids, queue = key[: self.world.shape.requests], key[self.world.shape.requests :]
        running = tuple(place for place, slot in enumerate(ids) if self.slots[slot].owner != _EMPTY)
        views = tuple(self.slots[ids[place]].ring for place in running)
        waiting = int(self.slots[ids[0]].owner == 0)
        for blocks in itertools.product(*[self._blocks(ids[place]) for place in running]):
            chance = 1.0
            for option in blocks:
                chance *= option.chance
            yield Draft(running, blocks, chance, Seen(views, tuple(option.row for option in blocks), queue[0], waiting))

    def follow(self, following: dict[Key, float], key: Key, draft: Draft, lengths: Key, mass: float, step: int) -> None:
        """Add the states that a draft ends in when `lengths` of it are verified, with their share of `mass`."""
        ids, queue = key[: self.world.shape.requests], key[self.world.shape.requests :]
        laws: list[SlotLaw] = [[(slot, 0, 1.0)] for slot in ids]
        for place, option, length in zip(draft.running, draft.blocks, lengths, strict=True):
            laws[place] = self._slot_law(ids[place], option, length, step)
        if self.delay and draft.running and step + self.delay <= self.world.shape.steps:
            self._spread_and_learn(following, laws, mass, queue, draft, lengths)
        else:
            self._spread(following, laws, mass, (*queue[1:], 0) if self.delay else queue)

    @staticmethod
    def _spread(following: dict[Key, float], laws: list[SlotLaw], mass: float, queue: Key) -> None:
        """Add the product of the slots' laws."""
        partial: list[tuple[Key, float]] = [((), mass)]
        for law in laws[:-1]:
            partial = [((*ids, slot), p * share) for ids, p in partial for slot, _, share in law]
        for ids, p in partial:
            for slot, _, share in laws[-1]:
                key = (*ids, slot, *queue)
                following[key] = following.get(key, 0.0) + p * share

    def _spread_and_learn(
        self,
        following: dict[Key, float],
        laws: list[SlotLaw],
        mass: float,
        queue: Key,
        draft: Draft,
        lengths: Key,
    ) -> None:
        """Add the product of the slots' laws, each with what the policy learns from it."""
        for combination in itertools.product(*laws):
            p = mass
            for _, _, share in combination:
                p *= share
            accepted = tuple(combination[place][1] for place in draft.running)
            learned = self._learn(queue[-1], draft.seen.rows, lengths, accepted)
            key = (*(slot for slot, _, _ in combination), *queue[1:], learned)
            following[key] = following.get(key, 0.0) + p

    def _decide(self, draft: Draft) -> Key:
        """Verify lengths of the running slots, from the policy itself."""
        if not draft.running:
            return ()
        if draft.seen not in self._decisions:
            lengths = tuple(int(length) for length in self.policy.decide(*self.situation(draft.seen)).lengths)
            self._decisions[draft.seen] = self.checked(lengths, len(draft.running))
        return self._decisions[draft.seen]

    def checked(self, lengths: Key, count: int) -> Key:
        """The lengths themselves (InputError where they are none)."""
        if len(lengths) != count or not all(0 <= length <= self.world.shape.gamma for length in lengths):
            raise InputError(f"policy '{self.policy.name}' answered lengths {lengths}, expected {count} in 0..gamma")
        return lengths

    def situation(self, seen: Seen) -> tuple[Past, LiveBlock]:
        """The past and the block of one step, as the policy is given them."""
        shape, count = self.world.shape, len(seen.rows)

        def lagged(lag: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
            if not 1 <= lag <= self.policy.max_lag:
                policy = self.policy
                raise LagBeyond(f"policy '{policy.name}' asks for lag {lag} but its max_lag is {policy.max_lag}")
            self.asked.add(lag)
            young = self.engine.ring_sees_current
            found = seen.rows if young and lag == 1 else tuple(view[lag - 1 - young] for view in seen.views)
            if _DROPPED in found:
                raise LagAsked
            full = (SCALE,) * shape.gamma
            units = [full if row == _UNPUBLISHED else self.world.units[row] for row in found]
            return np.array(units, dtype=np.int64), np.array([row != _UNPUBLISHED for row in found])

        confidence = np.array([self.world.rows[row] for row in seen.rows], dtype=np.float32)
        live = LiveBlock.of(confidence)
        carried = self._carries[seen.carry]
        if self.engine.learn_sees_current:
            nothing = np.zeros(count, dtype=np.int64)
            carried = learned(self.policy, carried, Outcome(live.units, nothing, nothing))[0]
        prices = self.world.cost.prices(count, shape.gamma)
        return Past(count, shape.gamma, prices, lagged, carried, seen.waiting), live

    def _learn(self, carry: int, rows: Key, lengths: Key, accepted: Key) -> int:
        memo = (carry, rows, lengths, accepted)
        if memo not in self._learned:
            survival = np.array([self.world.units[row] for row in rows], dtype=np.int64)
            timing = self._timing(len(rows), sum(lengths))
            outcome = Outcome(survival, np.array(lengths, dtype=np.int64), np.array(accepted, dtype=np.int64), timing)
            self._learned[memo] = self._carry_id(learned(self.policy, self._carries[carry], outcome)[0])
        return self._learned[memo]

    def _timing(self, num_requests: int, total: int) -> StepTiming:
        """A measured step time that tells as much as one can: each admitted count is off by a factor of its own."""
        prices = self.world.cost.prices(num_requests, self.world.shape.gamma)
        return timing_of(prices, num_requests, total, prices.step_s(total) * (1.0 + 0.3 * (total % 3)))

    def _blocks(self, slot_id: int) -> list[Option]:
        """Everything that a slot may draft."""
        if slot_id not in self._options:
            slot, world = self.slots[slot_id], self.world
            self._options[slot_id] = [
                Option(block, chance, world.row_of(slot.owner, slot.node, block), memory)
                for block, chance, memory in self.engine.draws.blocks(world, slot.owner, slot.node, slot.memory)
            ]
        return self._options[slot_id]

    def _slot_law(self, slot_id: int, option: Option, verified: int, step: int) -> SlotLaw:
        """What becomes of a slot that verifies `verified` tokens of a block."""
        memo = (slot_id, id(option), verified)
        if memo not in self._slot_laws:
            slot = self.slots[slot_id]
            merged: dict[tuple[int, int], float] = {}
            for node, accepted, mass in self.world.outcome(slot.owner, slot.node, option.block, verified):
                key = self._slot_id(self._after(slot, option, node, step)), accepted if self.delay else 0
                merged[key] = merged.get(key, 0.0) + mass
            self._slot_laws[memo] = [(after, accepted, mass) for (after, accepted), mass in merged.items()]
        return self._slot_laws[memo]

    def _after(self, slot: Slot, option: Option, node: int, step: int) -> Slot:
        """The slot at the start of the next step: it may go on, linger, or be handed to the request that joins."""
        world = self.world
        if world.depth[node] == world.lengths[slot.owner] and (slot.zombie or not world.overlapped):
            never = (_UNPUBLISHED,) * self.policy.max_lag
            if slot.owner == 0:
                return Slot(world.shape.requests, False, 0, never, None, node)
            done = node if slot.owner < world.shape.requests else slot.done
            return Slot(_EMPTY, False, node if slot.owner == world.shape.requests else -1, never, None, done)
        ring = (option.row, *slot.ring)[: self.policy.max_lag]
        kept = tuple(row if self._is_read(age, step) else _DROPPED for age, row in enumerate(ring))
        memory = self.engine.draws.forget(option.memory, world.depth[node])
        zombie = world.depth[node] == world.lengths[slot.owner]
        return Slot(slot.owner, zombie, node, kept, memory, slot.done)

    def _is_read(self, age: int, step: int) -> bool:
        """Whether the publish of step - age may still be asked for after `step`."""
        return any(step < step - age + lag <= self.world.shape.steps for lag in self.lags)

    def outputs(self, key: Key) -> Key:
        """Axes positions of the finished outputs in `World.target_law`."""
        requests = self.world.shape.requests
        nodes = [-1] * (requests + 1)
        for place, slot_id in enumerate(key[:requests]):
            slot = self.slots[slot_id]
            if place == 0:
                nodes[0], nodes[requests] = slot.done, slot.node
            else:
                nodes[place] = slot.done if slot.owner == _EMPTY else slot.node
        return tuple(self.world.leaf(request, node) for request, node in enumerate(nodes))

    def _slot_id(self, slot: Slot) -> int:
        if slot not in self._slot_ids:
            self._slot_ids[slot] = len(self.slots)
            self.slots.append(slot)
        return self._slot_ids[slot]

    def _carry_id(self, carry: Any) -> int:
        frozen = _freeze(carry)
        if frozen not in self._carry_ids:
            self._carry_ids[frozen] = len(self._carries)
            self._carries.append(carry)
        return self._carry_ids[frozen]


def _freeze(carry: Any) -> Any:
    """A hashable stand-in for carried state: arrays by their bytes, containers by their items."""
    if isinstance(carry, np.ndarray):
        return "array", carry.dtype.str, carry.shape, carry.tobytes()
    if isinstance(carry, tuple | list):
        return type(carry).__name__, tuple(_freeze(item) for item in carry)
    if isinstance(carry, dict):
        return "dict", tuple(sorted((key, _freeze(value)) for key, value in carry.items()))
    return carry
