"""Length rules: the verify length of a request from its own confidences, position by position."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from sglang_dspark.policies.arithmetic import SCALE, Ints
from sglang_dspark.policies.classes import Bounded, LengthRule, LengthTable, TableLength
from sglang_dspark.policies.parameters import parameter
from sglang_dspark.policies.state import LiveBlock, Past, Plan


@dataclass(frozen=True)
class Constant(LengthRule):
    """A length that looks at nothing: known before the draft."""

    reads_confidence: ClassVar[bool] = False

    @property
    def live(self) -> bool:
        return False

    def plan(self, past: Past) -> Plan:
        floor, cap = self.bounds(past.gamma)
        return Plan(past.totals(floor, cap)[0], floor, cap, past.caps)

    def admits(self, past: Past, position: int, confidence: NDArray[np.float32]) -> bool:
        return position <= self.bounds(past.gamma)[0]

    def lengths(self, past: Past, tables: None, live: LiveBlock) -> Ints:
        return np.full(past.num_requests, self.bounds(past.gamma)[0], dtype=np.int64)


@dataclass(frozen=True)
class NoDraft(Constant):
    """No drafter at all: one token a step, no draft cost."""

    name: ClassVar[str] = "none"

    @property
    def drafts(self) -> bool:
        return False

    def bounds(self, gamma: int) -> tuple[int, int]:
        return 0, 0


@dataclass(frozen=True)
class Fixed(Constant):
    """The first k draft tokens of every request; k = 0 still drafts and pays for it."""

    name: ClassVar[str] = "fixed"
    k: int = parameter(7, 0, 64, "verified draft tokens of every request", shown=True)

    def bounds(self, gamma: int) -> tuple[int, int]:
        k = min(self.k, gamma)
        return k, k

    def positions(self) -> dict[str, int | None]:
        return {"k": self.k}


@dataclass(frozen=True)
class Threshold(Bounded, TableLength):
    """Verify up to the first draft token whose confidence (or survival) is below t."""

    name: ClassVar[str] = "threshold"
    t: float = parameter(0.5, 0.0, 1.0, "the least confidence that is still verified", shown=True)
    on: str = parameter("confidence", ("confidence", "survival"), doc="what is compared with t")

    def tables(self, past: Past) -> LengthTable:
        return _least(self, past.gamma)


@lru_cache(maxsize=256)
def _least(policy: Threshold, gamma: int) -> LengthTable:
    floor, cap = policy.bounds(gamma)
    on_survival = policy.on == "survival"
    least = np.full(gamma, np.ceil(policy.t * SCALE) if on_survival else policy.t)
    least[:floor] = 0
    least[cap:] = np.inf if not on_survival else SCALE + 1
    return LengthTable(None, least.astype(np.int64)) if on_survival else LengthTable(least.astype(np.float32))
