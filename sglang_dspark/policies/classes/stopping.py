"""`StoppingRule`: the live admission order, rank by rank; `TableStop`: by tables that are made from the past."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from operator import index
from typing import Any, ClassVar, NamedTuple

import numpy as np

from sglang_dspark.jit import policy_loops
from sglang_dspark.policies.arithmetic import (
    SCALE,
    Floats,
    Ints,
    allocate,
    below,
    plain,
    sealed,
    sorted_survivals,
    tau_along,
)
from sglang_dspark.policies.base import Policy
from sglang_dspark.policies.classes.bounded import Bounded, of_plan
from sglang_dspark.policies.fallback import fault_of
from sglang_dspark.policies.state import Decision, LiveBlock, Past


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
        tau = num_requests * SCALE + below(live.units, floor, past.caps)
        survivals = sorted_survivals(live.units, floor, cap, past.caps)
        total, fault = self._total(past, tables, start, tau, survivals, most)
        return Decision(allocate(live.units, total, floor, cap, past.caps), total, fault)

    def _total(
        self, past: Past, tables: Any, start: int, tau: int, survivals: Ints, most: int
    ) -> tuple[int, str | None]:
        """(count admitted in the end, what was raised on the way)."""
        try:
            if type(self).walk is StoppingRule.walk:
                stopped, fault = one_by_one(self, past, start, tau, survivals)
            else:
                stopped, fault = self.walk(past, tables, start, tau, survivals), None
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
        return admitted + first_decline(survivals[:count], tau, inverse[: count + 1])


def first_decline(survivals: Ints, tau: int, inverse: Floats) -> int:
    """How many are admitted before tau * inverse first fails to rise. survivals: [n] sorted, inverse: [n + 1]."""
    loops = policy_loops()
    if loops is not None and inverse.dtype == np.float64:
        return int(loops.first_decline(plain(survivals), tau, sealed(inverse)))
    theta = tau_along(survivals, tau) * inverse
    rises = theta[1:] > theta[:-1]
    first = int(rises.argmin()) if rises.size else 0
    return first if first < rises.size and not rises[first] else rises.size
