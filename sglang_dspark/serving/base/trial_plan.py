"""What a switch on trial is asked to keep."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sglang_dspark.errors import InputError

_SHORTEST_S, _LONGEST_S = 10.0, 86_400.0


@dataclass(frozen=True)
class TrialPlan:
    """How long to try, and the mean time per output token [ms] that must be kept, None without one."""

    seconds: float
    tpot_ms: float | None = None

    def __post_init__(self) -> None:
        if not _SHORTEST_S <= self.seconds <= _LONGEST_S:
            raise InputError(f"trial of {self.seconds:g} s is refused, expected {_SHORTEST_S:g}..{_LONGEST_S:g} s")
        if self.tpot_ms is not None and not 0 < self.tpot_ms < math.inf:
            raise InputError(f"tpot_ms={self.tpot_ms:g} of a trial is refused, expected a time above 0")
