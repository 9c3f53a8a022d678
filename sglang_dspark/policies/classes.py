"""The policy classes: each hands its rule only what the class may see, so that a leak cannot be written by accident.

A rule subclasses one of
  `BudgetRule`    how many draft tokens, from the past alone;
  `StoppingRule`  rank by rank along the live admission order: go on or stop. `TableStop`: from tables of the past;
  `LengthRule`    per request, position by position, from its own confidences so far;
all three keep the joint output law exactly the target's (design.md 3). `Unrestricted` sees everything, is not lossless
and is refused by the live engine. `Combined` puts policies together and is the package's own.

What walks the live block here (`decide`, `walk`, `lengths`) is sealed (`seal`). What a rule raises is a decision too
(`fallback`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from operator import index
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sglang_dspark.errors import InputError
from sglang_dspark.policies.arithmetic import SCALE, Floats, Ints, allocate, keys_for, survival_units, tau_along
from sglang_dspark.policies.base import Policy
from sglang_dspark.policies.fallback import fault_of
from sglang_dspark.policies.parameters import CAP, FLOOR, parameter
from sglang_dspark.policies.state import Decision, LiveBlock, Outcome, Past, Plan


@dataclass(frozen=True)
class Bounded(Policy):
    """Rules with a floor, the positions that every request verifies anyway, and a cap, the last one that any may."""

    floor: int = parameter(0, *FLOOR)
    cap: int | None = parameter(None, *CAP)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cap is not None and self.floor > self.cap:
            raise InputError(f"policy '{self.name}': floor={self.floor} exceeds cap={self.cap}, expected floor <= cap")

    def bounds(self, gamma: int) -> tuple[int, int]:
        return self.floor, gamma if self.cap is None else self.cap

    def positions(self) -> dict[str, int | None]:
        return {"floor": self.floor, "cap": self.cap}


@dataclass(frozen=True)
class BudgetRule(Bounded):
    """K from past information; then the first K of the live admission order are verified."""

    kind: ClassVar[str] = "budget"
    _supplies: ClassVar[str] = "budget(past)"

    @property
    def lossless(self) -> bool:
        return True

    @property
    def live(self) -> bool:
        return False

    @abstractmethod
    def budget(self, past: Past) -> int:
        """K, the number of draft tokens to verify; clamped to what floor and cap allow."""

    def plan(self, past: Past) -> Plan:
        floor, cap = self.bounds(past.gamma)
        low, high = past.totals(floor, cap)
        try:
            budget, fault = min(max(index(self.budget(past)), low), high), None
        except Exception as error:
            budget, fault = high, fault_of(error, "budget")
        return Plan(budget, floor, cap, past.caps, fault)

    def decide(self, past: Past, live: LiveBlock) -> Decision:
        return of_plan(self.plan(past), live)


@dataclass(frozen=True)
class StoppingRule(Bounded):
    """Walks the live admission order; rank m is admitted or not from survivals of ranks <= m and the past."""

    kind: ClassVar[str] = "stopping"
    _sealed: ClassVar[frozenset[str]] = Policy._sealed | {"walk"}
    _supplies: ClassVar[str] = "admits(past, admitted, tau, survival), or in a TableStop tables(past)"

    @property
    def lossless(self) -> bool:
        return True

    @abstractmethod
    def admits(self, past: Past, admitted: int, tau: int, survival: int) -> bool:
        """Whether to admit the next draft token.

        admitted: draft tokens admitted so far; tau: expected tokens so far, survival: the candidate's, both in units.
        """

    def extend(self, past: Past, admitted: int) -> int:
        """The final count, >= admitted, once the walk has stopped."""
        return admitted

    def tables(self, past: Past) -> Any:
        """What the rule needs of the past, made once a step before the draft is looked at."""
        return None

    def walk(self, past: Past, tables: Any, admitted: int, tau: int, survivals: Ints) -> int:
        """How many the walk admits in all; survivals: [n] units, sorted. An array form is equal to `one_by_one`."""
        return one_by_one(self, past, admitted, tau, survivals)[0]

    def decide(self, past: Past, live: LiveBlock) -> Decision:
        num_requests, gamma = live.units.shape
        floor, cap = self.bounds(gamma)
        start, most = past.totals(floor, cap)
        try:
            tables = self.tables(past)
        except Exception as error:
            return of_plan(past.everything(cap, fault_of(error, "tables")), live)
        tau = num_requests * SCALE + _below(live.units, floor, past.caps)
        order = keys_for(num_requests, floor, cap)
        keys = order.of(live.units, past.caps)
        keys.sort()
        total, fault = self._total(past, tables, start, tau, order.survivals(keys), most)
        lengths = order.counts(keys[: total - start])
        if floor:
            lengths = lengths + (floor if past.caps is None else np.minimum(past.caps, floor))
        return Decision(lengths, total, fault)

    def _total(
        self, past: Past, tables: Any, start: int, tau: int, survivals: Ints, most: int
    ) -> tuple[int, str | None]:
        """(count admitted in the end, what was raised on the way)."""
        fault = None
        try:
            stopped = self.walk(past, tables, start, tau, survivals)
        except Exception as error:
            fault_of(error, "walk")
            # The array form may have raised on a rank that a walk would never have reached.
            stopped, fault = one_by_one(self, past, start, tau, survivals)
        try:
            total = index(self.extend(past, stopped))
        except Exception as error:
            total, fault = stopped, fault_of(error, "extend")
        return min(max(total, stopped), most), fault


def one_by_one(rule: StoppingRule, past: Past, admitted: int, tau: int, survivals: Ints) -> tuple[int, str | None]:
    """What a walk is: ask `admits` rank by rank, stop at the first no; a raise is a no. (count, what was raised)."""
    for survival in survivals.tolist():
        try:
            goes_on = rule.admits(past, admitted, tau, survival)
        except Exception as error:
            return admitted, fault_of(error, "admits")
        if not goes_on:
            break
        admitted, tau = admitted + 1, tau + survival
    return admitted, None


class StopTables(NamedTuple):
    """inverse: [n] float64, 1 / the price of k admitted tokens; no more than n - 1 are walked to. fill_to: [>= n]
    int64, the count that a walk that stopped at k is extended to, or None."""

    inverse: Floats
    fill_to: Ints | None = None


@dataclass(frozen=True)
class TableStop(StoppingRule):
    """Goes on while tau * inverse rises, then fills: both read off tables that are made from the past.

    The fast way to write a stopping rule: it is walked as an array, and on a GPU by a kernel.
    """

    _sealed: ClassVar[frozenset[str]] = StoppingRule._sealed | {"admits", "extend"}
    _supplies: ClassVar[str] = "tables(past)"

    @abstractmethod
    def tables(self, past: Past) -> StopTables:
        """Prices by admitted count, and what a count is filled up to."""

    def admits(self, past: Past, admitted: int, tau: int, survival: int) -> bool:
        inverse = self.tables(past).inverse
        if admitted + 1 >= inverse.size:
            return False
        return bool((tau + survival) * inverse[admitted + 1] > tau * inverse[admitted])

    def extend(self, past: Past, admitted: int) -> int:
        fill_to = self.tables(past).fill_to
        return admitted if fill_to is None else int(fill_to[admitted])

    def walk(self, past: Past, tables: StopTables, admitted: int, tau: int, survivals: Ints) -> int:
        inverse = tables.inverse[admitted:]
        count = min(survivals.size, inverse.size - 1)
        if count <= 0:
            return admitted
        return admitted + first_decline(tau_along(survivals[:count], tau), inverse[: count + 1])


def first_decline(tau: Ints, inverse: Floats) -> int:
    """Index of the last point before tau * inverse first fails to rise. tau, inverse: [n + 1]."""
    theta = tau * inverse
    rises = theta[1:] > theta[:-1]
    first = int(rises.argmin()) if rises.size else 0
    return first if first < rises.size and not rises[first] else rises.size


@dataclass(frozen=True)
class LengthRule(Policy):
    """Per request, position by position, from its own confidences so far and the past."""

    kind: ClassVar[str] = "length"
    reads_confidence: ClassVar[bool] = True
    _sealed: ClassVar[frozenset[str]] = Policy._sealed | {"lengths"}
    _supplies: ClassVar[str] = "admits(past, position, confidence)"

    @property
    def lossless(self) -> bool:
        return True

    @property
    def adaptive(self) -> bool:
        return self.reads_confidence

    @abstractmethod
    def admits(self, past: Past, position: int, confidence: NDArray[np.float32]) -> bool:
        """Whether a request verifies `position` (1..gamma), given its confidences [position] up to that one."""

    def tables(self, past: Past) -> Any:
        """What the rule needs of the past, made once a step before the draft is looked at."""
        return None

    def lengths(self, past: Past, tables: Any, live: LiveBlock) -> Ints:
        """Admitted tokens of each request [R]. An array form is equal to `position_by_position`."""
        return position_by_position(self, past, live)[0]

    def decide(self, past: Past, live: LiveBlock) -> Decision:
        try:
            tables = self.tables(past)
        except Exception as error:
            return of_plan(past.everything(self.bounds(past.gamma)[1], fault_of(error, "tables")), live)
        fault = None
        try:
            lengths = self.lengths(past, tables, live)
        except Exception as error:
            fault_of(error, "lengths")
            lengths, fault = position_by_position(self, past, live)
        if past.caps is not None:
            lengths = np.minimum(lengths, past.caps)
        return Decision(lengths, int(lengths.sum()), fault)


def position_by_position(rule: LengthRule, past: Past, live: LiveBlock) -> tuple[Ints, str | None]:
    """What a length rule is: ask `admits` of every request, a raise is a no. ([R] lengths, what was raised first)."""
    confidence, fault = live.confidence, None
    assert confidence is not None, f"'{rule.name}' reads confidences"
    lengths = np.zeros(len(confidence), dtype=np.int64)
    for request, row in enumerate(confidence):
        for position in range(1, past.gamma + 1):
            try:
                if not rule.admits(past, position, row[:position]):
                    break
            except Exception as error:
                fault = fault or fault_of(error, "admits")
                break
            lengths[request] = position
    return lengths, fault


class LengthTable(NamedTuple):
    """confidence: [gamma] float32, survival: [gamma] int64 units: the least that is verified at each position, or None
    where it is not asked for."""

    confidence: NDArray[np.float32] | None = None
    survival: Ints | None = None


@dataclass(frozen=True)
class TableLength(LengthRule):
    """Verifies up to the first position that is below what a table made from the past asks for: the fast way."""

    _sealed: ClassVar[frozenset[str]] = LengthRule._sealed | {"admits"}
    _supplies: ClassVar[str] = "tables(past)"

    @abstractmethod
    def tables(self, past: Past) -> LengthTable:
        """The least confidence and survival by position."""

    def admits(self, past: Past, position: int, confidence: NDArray[np.float32]) -> bool:
        least = self.tables(past)
        if least.confidence is not None and not confidence[-1] >= least.confidence[position - 1]:
            return False
        return least.survival is None or int(survival_units(confidence[None])[0, -1]) >= least.survival[position - 1]

    def lengths(self, past: Past, tables: LengthTable, live: LiveBlock) -> Ints:
        passes = np.ones(live.units.shape, dtype=np.bool_)
        if tables.survival is not None:
            passes = live.units >= tables.survival
        if tables.confidence is not None:
            assert live.confidence is not None, f"'{self.name}' reads confidences"
            passes &= live.confidence >= tables.confidence
        return np.logical_and.accumulate(passes, axis=1).sum(axis=1)


@dataclass(frozen=True)
class Unrestricted(Policy):
    """For research: sees the whole live block. Not lossless, refused by the live engine."""

    kind: ClassVar[str] = "unrestricted"
    reads_confidence: ClassVar[bool] = True
    knows_depth: ClassVar[bool] = False
    """Whether it is handed a `KnownBlock`, which only the simulator can make."""
    _supplies: ClassVar[str] = "choose(past, live)"

    @property
    def lossless(self) -> bool:
        return False

    @abstractmethod
    def choose(self, past: Past, live: LiveBlock) -> Ints:
        """Admitted tokens of each request, [R] int64."""

    def decide(self, past: Past, live: LiveBlock) -> Decision:
        lengths = self.choose(past, live)
        return Decision(lengths, int(lengths.sum()))


@dataclass(frozen=True)
class Combined(Policy):
    """Policies put together: which of them decides a step is known from the past. Lossless if all of them are."""

    kind: ClassVar[str] = "combined"

    @property
    @abstractmethod
    def parts(self) -> Sequence[Policy]:
        """The policies that it holds."""

    @abstractmethod
    def choose(self, past: Past) -> int:
        """Which part decides, from the past alone. `past.carry` holds what each of them carries."""

    @property
    def lossless(self) -> bool:
        return all(part.lossless for part in self.parts)

    @property
    def learns(self) -> bool:  # type: ignore[override]
        return any(part.learns for part in self.parts)

    @property
    def reads_confidence(self) -> bool:  # type: ignore[override]
        return any(part.reads_confidence for part in self.parts)

    @property
    def live(self) -> bool:
        return any(part.live for part in self.parts)

    @property
    def adaptive(self) -> bool:
        return True

    def bounds(self, gamma: int) -> tuple[int, int]:
        bounds = [part.bounds(gamma) for part in self.parts]
        return min(low for low, _ in bounds), max(high for _, high in bounds)

    def check(self, gamma: int) -> None:
        for part in self.parts:
            part.check(gamma)

    def start(self, gamma: int) -> tuple[Any, ...]:
        """What each part carries."""
        return tuple(part.start(gamma) for part in self.parts)

    def learn(self, carry: tuple[Any, ...], outcome: Outcome) -> tuple[Any, ...]:
        return tuple(part.learn(state, outcome) for part, state in zip(self.parts, carry, strict=True))

    def plan(self, past: Past) -> Plan | None:
        """None in a step in which a live part decides."""
        chosen = self._chosen(past)
        return chosen if isinstance(chosen, Plan) else chosen[0].plan(chosen[1])

    def decide(self, past: Past, live: LiveBlock) -> Decision:
        chosen = self._chosen(past)
        return of_plan(chosen, live) if isinstance(chosen, Plan) else chosen[0].decide(chosen[1], live)

    def _chosen(self, past: Past) -> tuple[Policy, Past] | Plan:
        """The part that decides, with its own carried state in the past; where `choose` raises, what is done then."""
        try:
            chosen = self.choose(past)
            return self.parts[chosen], past.carrying(past.carry[chosen])
        except Exception as error:
            return past.everything(self.bounds(past.gamma)[1], fault_of(error, "choose"))


def of_plan(plan: Plan, live: LiveBlock) -> Decision:
    """What a plan makes of this step's block."""
    return Decision(allocate(live.units, plan.budget, plan.floor, plan.cap, plan.caps), plan.budget, plan.fault)


def best_budget(past: Past, units: Ints, inverse: Floats, floor: int, cap: int, least: int = 0) -> int:
    """argmax over K of tau(K) / T(K) on the survivals `units` [R, gamma], floor included; first maximum wins.

    inverse: [R * gamma + 1] float64, 1 / T by admitted count. Survivals below `least` units are left out.
    """
    num_requests = past.num_requests
    start = past.totals(floor, cap)[0]
    if past.caps is None:
        candidates = units[:, floor:cap].astype(np.int32).ravel()  # 25 bits; half the width sorts twice as fast
    else:
        positions = np.arange(floor, cap)
        candidates = units[:, floor:cap][positions < past.caps[:, None]].astype(np.int32)
    candidates.sort()
    candidates = candidates[::-1]
    if least:
        candidates = candidates[: candidates.size - int(candidates[::-1].searchsorted(least))]
    tau = tau_along(candidates, num_requests * SCALE + _below(units, floor, past.caps))
    return start + int((tau * inverse[start : start + tau.size]).argmax())


def _below(units: Ints, floor: int, caps: Ints | None) -> int:
    """The summed survivals of the positions before the walk."""
    if not floor:
        return 0
    if caps is None:
        return int(units[:, :floor].sum())
    return int(units[:, :floor][np.arange(floor) < caps[:, None]].sum())
