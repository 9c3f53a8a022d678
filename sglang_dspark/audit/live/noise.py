"""How far server and target are apart numerically: the server's own log-probabilities against the target's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sglang_dspark.audit.live.client import Reply

Floats = NDArray[np.float64]

_WEIGHTY = 1e-4
"""Log-probabilities of rarer tokens say little about either greedy choices or samples."""


@dataclass(frozen=True)
class NoiseFloor:
    """Over `tokens` sampled positions. mean_tv, max_tv: total variation between the two laws (server's top tokens and
    the rest); max_logprob: largest |difference| of a log-probability, nats, over tokens of probability at least
    1e-4."""

    tokens: int
    mean_tv: float
    max_tv: float
    max_logprob: float

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return dict(self.__dict__)


def noise_floor(pairs: Sequence[tuple[Reply, Floats]]) -> NoiseFloor:
    """From replies with top log-probabilities and the target's laws [length, V] along them."""
    distances, largest = [], 0.0
    for reply, laws in pairs:
        for top, law in zip(reply.top, laws, strict=True):
            ids = np.fromiter(top, dtype=np.int64)
            served = np.fromiter(top.values(), dtype=np.float64)
            exact, shares = law[ids], np.exp(served)
            distances.append(0.5 * (np.abs(shares - exact).sum() + abs(exact.sum() - shares.sum())))
            heavy = np.maximum(exact, shares) >= _WEIGHTY
            gaps = np.abs(served[heavy] - np.log(np.maximum(exact[heavy], 1e-300)))
            largest = max(largest, float(gaps.max(initial=0.0)))
    return NoiseFloor(len(distances), float(np.mean(distances)), float(np.max(distances)), largest)
