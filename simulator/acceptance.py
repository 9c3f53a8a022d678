"""What the target would accept: one fresh block per (seed, request, anchor position), whatever the policy verifies.

A request has a latent ease; the true conditionals of its block at an anchor scatter around it, the accepted depth is
the first failure of Bernoulli(c_true[j]), and the reported confidence is a stated function of c_true. A policy that
verifies l tokens commits min(l, depth) + 1 (design.md 5).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sglang_dspark.errors import InputError
from sglang_dspark.policies import survival_units
from simulator.drafters import DOMAINS, Drafter
from simulator.random import Streams

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_NODES = 41  # quadrature nodes per dimension: conditionals are met to 1e-6


_CONFIDENCE_RANGES = {
    "spread_request": (0.0, 5.0),
    "spread_block": (0.0, 5.0),
    "spread_position": (0.0, 5.0),
    "temperature": (0.05, 20.0),
    "bias": (-10.0, 10.0),
    "noise": (0.0, 10.0),
}


@dataclass(frozen=True)
class Confidence:
    """How reported confidences relate to the true conditionals: c = sigmoid(logit(c_true) / temperature + bias).

    spread_request, spread_block, spread_position: standard deviations of the logit between requests, between blocks of
    one request and between positions of one block. The paper's Figure 5 gives 1.2 for requests and blocks together and
    0.6 for positions (`benchmarks/fit_confidence_spread.py`); how the 1.2 divides is not published: 0.6 and 1.04 is an
    assumption. noise: standard deviation of an error on the reported logit. The default reports c_true itself: ECE 0.
    """

    spread_request: float = 0.6
    spread_block: float = 1.04
    spread_position: float = 0.6
    temperature: float = 1.0
    bias: float = 0.0
    noise: float = 0.0

    def __post_init__(self) -> None:
        for name, (low, high) in _CONFIDENCE_RANGES.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise InputError(f"confidence {name}={value} is refused, expected {low}..{high}")

    @property
    def calibrated(self) -> bool:
        """Whether reported confidences are the true conditionals."""
        return self.temperature == 1.0 and self.bias == 0.0 and self.noise == 0.0


class AcceptanceSource(Protocol):
    """Where blocks come from. `fill` writes those of anchors first..first+count-1 of one request."""

    gamma: int

    def fill(self, request: int, first: int, out: BlockTable) -> None:
        """Write `len(out.depth)` blocks, the first one at anchor `first` of `request`."""


@dataclass(frozen=True)
class BlockTable:
    """Blocks by row: units [n, gamma] int64 survivals as reported, confidence [n, gamma] float32 or None, depth [n]."""

    units: Ints
    confidence: NDArray[np.float32] | None
    depth: Ints

    @classmethod
    def empty(cls, rows: int, gamma: int, *, confidence: bool) -> BlockTable:
        """Room for `rows` blocks."""
        kept = np.zeros((rows, gamma), dtype=np.float32) if confidence else None
        return cls(np.zeros((rows, gamma), dtype=np.int64), kept, np.zeros(rows, dtype=np.int64))

    def rows(self, begin: int, end: int) -> BlockTable:
        """A view on some rows."""
        kept = None if self.confidence is None else self.confidence[begin:end]
        return BlockTable(self.units[begin:end], kept, self.depth[begin:end])


class StatisticalAcceptance:
    """Blocks drawn from a drafter's published acceptance; counter-based, so that every policy meets the same ones."""

    def __init__(self, drafter: Drafter, confidence: Confidence, domain: Ints, seed: int) -> None:
        """domain: [N] index into `DOMAINS` of every request. seed names the replication."""
        self.gamma = drafter.gamma
        self._confidence = confidence
        self._domain = domain
        common = float(np.hypot(confidence.spread_request, confidence.spread_block))
        self._centre = np.array(
            [centres(drafter.acceptance[name], common, confidence.spread_position) for name in DOMAINS]
        )
        self._headless = None if drafter.has_confidence else np.array([drafter.acceptance[name] for name in DOMAINS])
        self._ease = Streams(seed, "acceptance-request")
        self._blocks = Streams(seed, "acceptance-block")
        self._reports = Streams(seed, "confidence-noise")

    def fill(self, request: int, first: int, out: BlockTable) -> None:
        count, shape = len(out.depth), (len(out.depth), self.gamma)
        model, domain = self._confidence, self._domain[request]
        ease = model.spread_request * self._ease.at(request).standard_normal()
        rng = self._blocks.at(request, first)
        logit = model.spread_position * rng.standard_normal(shape, dtype=np.float32)
        logit += np.float32(model.spread_block) * rng.standard_normal((count, 1), dtype=np.float32)
        logit += (self._centre[domain] + ease).astype(np.float32)
        true = sigmoid(logit)
        fails = rng.random(shape, dtype=np.float32) >= true
        out.depth[:] = np.where(fails.any(axis=1), fails.argmax(axis=1), self.gamma)
        if self._headless is not None:
            reported = np.broadcast_to(self._headless[domain].astype(np.float32), (count, self.gamma))
        elif model.calibrated:
            reported = true
        else:
            noise = model.noise * self._reports.at(request, first).standard_normal(shape, dtype=np.float32)
            reported = sigmoid(logit / np.float32(model.temperature) + np.float32(model.bias) + noise)
        out.units[:] = survival_units(reported)
        if out.confidence is not None:
            out.confidence[:] = reported


def sigmoid(logit: NDArray[np.float32]) -> NDArray[np.float32]:
    """1 / (1 + exp(-x)) in float32."""
    return np.float32(1.0) / (np.float32(1.0) + np.exp(-logit))


@lru_cache(maxsize=256)
def centres(acceptance: tuple[float, ...], spread_common: float, spread_position: float) -> tuple[float, ...]:
    """Logit centres that make the conditional acceptance among survivors what was published, position by position.

    spread_common: what a block's positions share. Surviving blocks are the easier ones, so each centre is solved given
    the survivors of the positions before it.
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(_NODES)
    weights = weights / weights.sum()
    ease = spread_common * nodes
    alive = weights.copy()
    out = []
    for wanted in acceptance:
        low, high = -20.0, 20.0
        for _ in range(60):
            centre = (low + high) / 2
            given_ease = (1 / (1 + np.exp(-(centre + ease[:, None] + spread_position * nodes[None, :])))) @ weights
            low, high = (centre, high) if (alive @ given_ease) / alive.sum() < wanted else (low, centre)
        alive = alive * given_ease
        out.append(centre)
    return tuple(out)
