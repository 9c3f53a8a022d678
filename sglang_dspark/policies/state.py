"""What a policy may see: the past, and (for live rules) this step's block."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sglang_dspark.cost import StepPrices
from sglang_dspark.policies.arithmetic import SCALE, Ints, probabilities, survival_units

Lagged = Callable[[int], tuple[Ints, NDArray[np.bool_]]]


@dataclass(frozen=True, slots=True)
class Past:
    """What was known before this step's draft was drawn.

    num_requests: R, requests in the decode batch. gamma: draft block size.
    prices: step seconds for every admitted count, as the policy believes them.
    lagged: see `survival`. carry: what the policy itself carried from earlier steps (`Policy.start`, `Policy.learn`).
    waiting: requests that wait for admission. caps: [R] int64 in 0..gamma, the last position that each request lets the
    server verify (it said so when it came; 0 exempts it), or None where none said anything. The classes keep them.
    """

    num_requests: int
    gamma: int
    prices: StepPrices
    lagged: Lagged | None = None
    carry: Any = None
    waiting: int = 0
    caps: Ints | None = None

    def totals(self, floor: int, cap: int) -> tuple[int, int]:
        """(admitted tokens at the least, at the most) of the batch, with `floor` and `cap` of every request."""
        if self.caps is None:
            return self.num_requests * floor, self.num_requests * cap
        return int(np.minimum(self.caps, floor).sum()), int(np.minimum(self.caps, cap).sum())

    def everything(self, cap: int, fault: str | None = None) -> Plan:
        """Verify all that `cap` and `caps` allow."""
        return Plan(self.totals(0, cap)[1], 0, cap, self.caps, fault)

    def carrying(self, carry: Any) -> Past:
        """The same past for a policy that carries something else."""
        return Past(self.num_requests, self.gamma, self.prices, self.lagged, carry, self.waiting, self.caps)

    def survival(self, lag: int) -> tuple[Ints, NDArray[np.bool_]]:
        """Survivals published `lag` decode steps ago.

        Returns ([R, gamma] int64 units, [R] bool "published"); rows that published nothing then hold survival 1.
        """
        if self.lagged is None:
            ones = np.full((self.num_requests, self.gamma), SCALE, dtype=np.int64)
            return ones, np.zeros(self.num_requests, dtype=bool)
        return self.lagged(lag)


@dataclass(slots=True)
class LiveBlock:
    """This step's draft as the confidence head sees it.

    units: [R, gamma] int64 survivals. confidence: [R, gamma] float32 in 0..1, only needed by length rules.
    invalid: confidences that were no probabilities and count as 0.
    """

    units: Ints
    confidence: NDArray[np.float32] | None = None
    invalid: int = 0

    @classmethod
    def of(cls, confidence: NDArray[np.float32]) -> LiveBlock:
        """From confidences [R, gamma] float32."""
        valid = probabilities(confidence)
        invalid = 0 if valid is confidence else int(np.count_nonzero(~((confidence >= 0) & (confidence <= 1))))
        return cls(survival_units(valid), valid, invalid)


@dataclass(slots=True)
class KnownBlock(LiveBlock):
    """A block whose true accepted depth [R] int64 is known: the simulator's, for research alone."""

    depth: Ints = field(default_factory=lambda: np.empty(0, dtype=np.int64))


class StepTiming(NamedTuple):
    """What an ended step took. tokens: executed ones, the tier's; believed_s, measured_s: seconds of the whole step."""

    tokens: int
    believed_s: float
    measured_s: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an earlier step ended, as the host learns it. All arrays are [R] of that step; survivals [R, gamma].

    timing: None where it was not measured or nothing was believed.
    """

    survival: Ints
    lengths: Ints
    accepted: Ints
    timing: StepTiming | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """A decision made before the draft: how many draft tokens to verify; which ones the live order says.

    budget: K, floor included. floor, cap: positions admitted before the walk, and the last one it may admit. caps: [R]
    the last one of each request, see `Past`. correction: (a, b) of the confidences that order the batch, see
    `calibration`, None where they count as they are. fault: what the rule raised, where this is what was done instead.
    """

    budget: int
    floor: int
    cap: int
    caps: Ints | None = None
    fault: str | None = None
    correction: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """lengths: [R] int64 admitted draft tokens of each request (anchor excluded). total: their sum, K.

    fault: what the rule raised, where this is what was decided instead.
    """

    lengths: Ints
    total: int
    fault: str | None = None


def carry_as_json(carry: Any) -> Any:
    """Carried state in plain values, for records: arrays and tuples become lists."""
    if isinstance(carry, tuple | list):
        return [carry_as_json(item) for item in carry]
    return carry.tolist() if isinstance(carry, np.ndarray | np.generic) else carry


def carry_from_json(value: Any) -> Any:
    """Carried state as a policy holds it: what was a tuple comes back from a file as a list."""
    return tuple(carry_from_json(item) for item in value) if isinstance(value, list | tuple) else value


class SurvivalRing:
    """Published survivals of every request slot, by decode publishes ago. One ring for the simulator and the engine.

    A slot holds what its present owner published; `generation` tells owners apart, so that a slot that was handed on
    counts as unpublished. Late or missing publishes are the caller's business: it then has no past to show.
    """

    def __init__(self, num_slots: int, gamma: int, depth: int, room: tuple[Ints, Ints] | None = None) -> None:
        """depth: the largest lag that will be asked for, >= 1. room: where to keep [depth, slots, gamma] survivals and
        [depth, slots] owners, for whoever shares them; all 0."""
        self.depth = depth
        units, owners = room or (np.zeros((depth, num_slots, gamma), np.int64), np.zeros((depth, num_slots), np.int64))
        units[:] = SCALE
        self._units, self._generation = list(units), list(owners)
        # A row as one item: NumPy scatters single items several times faster than rows.
        self._item = np.dtype((np.void, gamma * 8))
        self._rows = [each.view(self._item).reshape(-1) for each in self._units]
        self.head = 0

    def publish(self, slots: Ints, generation: Ints, units: Ints) -> None:
        """One decode step's survivals: units [R, gamma] for slots [R] owned by generation [R] (>= 1)."""
        newest = (self.head + 1) % self.depth
        if newest != self.head and slots.size < self._generation[0].size:  # else every slot is written below
            np.copyto(self._units[newest], self._units[self.head])
            np.copyto(self._generation[newest], self._generation[self.head])
        if not units.flags.c_contiguous or units.dtype != np.int64:
            units = np.ascontiguousarray(units, dtype=np.int64)
        self._rows[newest][slots] = units.view(self._item).reshape(-1)
        self._generation[newest][slots] = generation
        self.head = newest

    def look(self, slots: Ints, generation: Ints, lag: int) -> tuple[Ints, NDArray[np.bool_]]:
        """What `Past.survival(lag)` answers for these slots and owners."""
        if not 1 <= lag <= self.depth:
            raise ValueError(f"lag {lag} was asked of a ring that keeps 1..{self.depth} publishes")
        at = (self.head - lag + 1) % self.depth
        published = self._generation[at].take(slots) == generation
        units = self._units[at].take(slots, axis=0)
        if np.count_nonzero(published) != published.size:
            units[~published] = SCALE
        return units, published
