"""Greedy output against the target's own:

every token that is not the target's largest logit is a tie or a real difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

LEAST_TOLERANCE = 1e-3
"""Nats; float32 forwards of different shapes differ by about 1e-5."""
NOISE_FACTOR = 4.0


@dataclass(frozen=True)
class GreedyDifference:
    """A token that the target would not have chosen. gap: its logit below the largest, nats."""

    position: int
    served: int
    expected: int
    gap: float
    tie: bool


@dataclass(frozen=True)
class GreedyComparison:
    """One prompt: tokens compared, and the differences in order.

    Each is judged given the server's own tokens before it, so that what follows a first difference is compared as well.
    """

    tokens: int
    differences: list[GreedyDifference]

    @property
    def real(self) -> list[GreedyDifference]:
        """The differences that rounding does not explain."""
        return [difference for difference in self.differences if not difference.tie]

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"tokens": self.tokens, "differences": [dict(d.__dict__) for d in self.differences]}


def tie_tolerance(logprob_noise: float) -> float:
    """The gap up to which two tokens are tied, nats:

    four times the largest difference seen between server and target.
    """
    return max(LEAST_TOLERANCE, NOISE_FACTOR * logprob_noise)


def compare(served: Sequence[int], logits: Floats, tolerance: float) -> GreedyComparison:
    """served: [length] greedy output; logits: [length, V] the target's, given the served tokens before."""
    tokens = np.asarray(served)
    best = logits.argmax(-1)
    gaps = logits.max(-1) - logits[np.arange(len(tokens)), tokens]
    different = [
        GreedyDifference(int(i), int(tokens[i]), int(best[i]), float(gaps[i]), bool(gaps[i] <= tolerance))
        for i in np.flatnonzero(tokens != best)
    ]
    return GreedyComparison(len(tokens), different)
