"""`LengthRule`: each request by itself, position by position; `TableLength`: by a table made from the past."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sglang_dspark.jit import policy_loops
from sglang_dspark.policies.arithmetic import NO_CAPS, Ints, plain, sealed, survival_units
from sglang_dspark.policies.base import Policy
from sglang_dspark.policies.classes.bounded import of_plan
from sglang_dspark.policies.fallback import fault_of
from sglang_dspark.policies.state import Decision, LiveBlock, Past

NOTHING = np.empty((0, 0), dtype=np.float32), sealed(np.empty(0, dtype=np.float32))
"""For compiled code: the confidences and their least where none are asked for."""


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
        try:
            if type(self).lengths is LengthRule.lengths:
                lengths, fault = position_by_position(self, past, live)
            else:
                lengths, fault = self.lengths(past, tables, live), None
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

    @property
    def is_plain(self) -> bool:
        """Whether the types are those: others are NumPy's, nothing is compiled for them."""
        right = self.confidence is None or self.confidence.dtype == np.float32
        return right and (self.survival is None or self.survival.dtype == np.int64)


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
        loops = policy_loops()
        if loops is not None and tables.is_plain:
            confidence, least = NOTHING
            if tables.confidence is not None:
                assert live.confidence is not None, f"'{self.name}' reads confidences"
                confidence, least = plain(live.confidence), sealed(tables.confidence)
            survival = NO_CAPS if tables.survival is None else plain(tables.survival)
            lengths = np.empty(len(live.units), dtype=np.int64)
            loops.table_lengths(confidence, plain(live.units), least, survival, lengths)
            return lengths
        passes = np.ones(live.units.shape, dtype=np.bool_)
        if tables.survival is not None:
            passes = live.units >= tables.survival
        if tables.confidence is not None:
            assert live.confidence is not None, f"'{self.name}' reads confidences"
            passes &= live.confidence >= tables.confidence
        return np.logical_and.accumulate(passes, axis=1).sum(axis=1)
