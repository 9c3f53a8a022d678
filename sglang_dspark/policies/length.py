"""Length rules: the verify length of a request from its own confidences, position by position."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from sglang_dspark.policies.arithmetic import SCALE, Ints
from sglang_dspark.policies.base import LengthRule
from sglang_dspark.policies.parameters import CAP, FLOOR, parameter
from sglang_dspark.policies.state import LiveBlock, Past, Plan


@dataclass(frozen=True)
class NoDraft(LengthRule):
    """No drafter at all: one token a step, no draft cost."""

    name: ClassVar[str] = "none"
    reads_confidence: ClassVar[bool] = False

    @property
    def drafts(self) -> bool:
        return False

    @property
    def live(self) -> bool:
        return False

    def plan(self, past: Past) -> Plan:
        return Plan(0, 0, 0)

    def admits(self, past: Past, position: int, confidence: NDArray[np.float32]) -> bool:
        return False

    def lengths(self, past: Past, live: LiveBlock) -> Ints:
        return np.zeros(past.num_requests, dtype=np.int64)


@dataclass(frozen=True)
class Fixed(LengthRule):
    """The first k draft tokens of every request; k = 0 still drafts and pays for it."""

    name: ClassVar[str] = "fixed"
    reads_confidence: ClassVar[bool] = False
    k: int = parameter(7, 0, 64, "verified draft tokens of every request", shown=True)

    @property
    def live(self) -> bool:
        return False

    def plan(self, past: Past) -> Plan:
        return Plan(past.num_requests * self.k, self.k, self.k)

    def admits(self, past: Past, position: int, confidence: NDArray[np.float32]) -> bool:
        return position <= self.k

    def lengths(self, past: Past, live: LiveBlock) -> Ints:
        return np.full(past.num_requests, min(self.k, past.gamma), dtype=np.int64)


@dataclass(frozen=True)
class Threshold(LengthRule):
    """Verify up to the first draft token whose confidence (or survival) is below t."""

    name: ClassVar[str] = "threshold"
    t: float = parameter(0.5, 0.0, 1.0, "the least confidence that is still verified", shown=True)
    on: str = parameter("confidence", ("confidence", "survival"), doc="what is compared with t")
    floor: int = parameter(0, *FLOOR)
    cap: int | None = parameter(None, *CAP)

    def admits(self, past: Past, position: int, confidence: NDArray[np.float32]) -> bool:
        if position <= self.floor:
            return True
        if self.cap is not None and position > self.cap:
            return False
        if self.on == "confidence":
            return bool(confidence[position - 1] >= np.float32(self.t))
        survival = np.multiply.accumulate(confidence, dtype=np.float32)[-1]
        return int(np.rint(survival * np.float32(SCALE))) >= self._least_units()

    def lengths(self, past: Past, live: LiveBlock) -> Ints:
        if self.on == "survival":
            passes = live.units >= self._least_units()
        else:
            assert live.confidence is not None, "threshold on confidences needs them"
            passes = live.confidence >= np.float32(self.t)
        passes[:, : self.floor] = True
        if self.cap is not None:
            passes[:, self.cap :] = False
        return np.logical_and.accumulate(passes, axis=1).sum(axis=1)

    def _least_units(self) -> int:
        return int(np.ceil(self.t * SCALE))
