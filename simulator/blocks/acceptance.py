"""What the target would accept: one fresh block per (seed, request, anchor position), whatever the policy verifies.

A request has a latent ease; the true conditionals of its block at an anchor scatter around it, the accepted depth is
the first failure of Bernoulli(c_true[j]), and the reported confidence is a stated function of c_true. A policy that
verifies l tokens commits min(l, depth) + 1 (design.md 5).
"""

from __future__ import annotations

from functools import lru_cache
from statistics import NormalDist
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from sglang_dspark.policies import SCALE
from simulator.blocks.confidence import Confidence
from simulator.blocks.drafter import Drafter
from simulator.blocks.random import Streams, stream

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Singles = NDArray[np.float32]

_NODES = 25  # quadrature nodes per dimension: conditionals are met to 1e-5 (default spreads)
_ROUNDS = 5  # until the weights of requests stand still
_RUN = 4096  # anchors that are drawn at once
_RUNS_KEPT = 128  # 45 MB: enough for 256 running requests of 2,000 tokens, which come back to theirs every 256


class AcceptanceSource(Protocol):
    """Where blocks come from. `fill` writes those of anchors first..first+count-1 of one request."""

    gamma: int

    def fill(self, request: int, first: int, out: BlockTable) -> None:
        """Write `len(out.depth)` blocks, the first one at anchor `first` of `request`."""


class BlockTable(NamedTuple):
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
    """Blocks drawn from a drafter's published acceptance; counter-based, so that every policy meets the same ones.

    The anchors of all requests stand in one row, in trace order, and are drawn in runs of `_RUN`, each from a stream of
    its own: a block depends on the seed, the trace and its anchor, never on who asks, when, or in which order.
    """

    def __init__(self, drafter: Drafter, confidence: Confidence, domain: Ints, output_length: Ints, seed: int) -> None:
        """domain: [N] index into the drafter's domains of every request, output_length: [N]. seed: of a replication."""
        self.gamma = drafter.gamma
        self._confidence = confidence
        self._begin = np.concatenate([[0], np.cumsum(output_length + 1)])  # anchors 0..output_length of each
        self._total = int(self._begin[-1])
        common = float(np.hypot(confidence.spread_request, confidence.spread_block))
        centre = np.array(
            [
                centres(values, common, confidence.spread_position, confidence.spread_request)
                for values in drafter.acceptance.values()
            ]
        )
        ease = confidence.spread_request * stream(seed, "acceptance-request").standard_normal(len(domain))
        self._logit = (centre[domain] + ease[:, None]).astype(np.float32)  # [N, gamma]
        self._headless: NDArray[np.float32] | None = None
        if not drafter.has_confidence:
            mean = np.array(list(drafter.acceptance.values()), dtype=np.float32)
            self._headless = mean[domain]
        self._blocks = Streams(seed, "acceptance-block")
        self._reports = Streams(seed, "confidence-noise")
        self._run = lru_cache(maxsize=_RUNS_KEPT)(self._draw)

    def fill(self, request: int, first: int, out: BlockTable) -> None:
        """See `AcceptanceSource.fill`; anchors beyond the request's last token are not its own."""
        at, done, count = self._begin.item(request) + first, 0, len(out.depth)
        while done < count:
            number, inside = divmod(at + done, _RUN)
            units, reported, depth = self._run(number)
            size = min(_RUN - inside, count - done)
            out.units[done : done + size] = units[inside : inside + size]
            out.depth[done : done + size] = depth[inside : inside + size]
            if out.confidence is not None:
                out.confidence[done : done + size] = reported[:, inside : inside + size].T
            done += size

    def _draw(self, number: int) -> tuple[Ints, Singles, NDArray[np.int8]]:
        """One run of n blocks: units [n, gamma], reported confidences [gamma, n] (seldom read), depth [n]."""
        begin, end = number * _RUN, min((number + 1) * _RUN, self._total)
        gamma, model = self.gamma, self._confidence
        low, high = (np.searchsorted(self._begin, (begin, end - 1), side="right") - 1).tolist()
        bounds = self._begin[low : high + 2].copy()
        bounds[0], bounds[-1] = begin, end
        anchors = bounds[1:] - bounds[:-1]
        bits = self._blocks.at(number).bit_generator
        normals = normal_numbers(bits, gamma + 1, end - begin)  # one a position and one that they share
        normals[:gamma] *= np.float32(model.spread_position)
        normals[gamma] *= np.float32(model.spread_block)
        logit = np.repeat(self._logit[low : high + 1].T, anchors, axis=1)
        logit += normals[:gamma]
        logit += normals[gamma]
        reported = true = sigmoid(logit)
        survival = _survival(true)
        # P(depth >= j) is the survival at j, so one uniform number gives the depth.
        depth = np.add.reduce(uniform_numbers(bits, end - begin) < survival, axis=0, dtype=np.int8)
        if self._headless is not None:
            reported = np.repeat(self._headless[low : high + 1].T, anchors, axis=1)
        elif not model.exact:
            logit *= np.float32(1.0 / model.temperature)
            logit += np.float32(model.bias)
            if model.drift:
                logit[:, max(self._total // 2 - begin, 0) :] += np.float32(model.drift)
            if model.noise:
                noise = normal_numbers(self._reports.at(number).bit_generator, gamma, end - begin)
                logit += np.float32(model.noise) * noise
            reported = sigmoid(logit)
        if reported is not true:
            survival = _survival(reported)
        survival *= np.float32(SCALE)
        units = np.rint(survival, out=survival).astype(np.int32)
        return units.T.astype(np.int64, order="C"), reported, depth


@lru_cache(maxsize=1)
def normal_quantiles() -> Singles:
    """The standard normal's quantiles at (i + 1/2) / 2^16, [2^16]."""
    half = [NormalDist().inv_cdf((i + 0.5) / 65536) for i in range(32768)]
    return np.array(half + [-value for value in reversed(half)], dtype=np.float32)


def normal_numbers(bits: np.random.BitGenerator, rows: int, count: int) -> Singles:
    """Standard normal numbers [rows, count], each from 16 random bits: a table is much faster than formulas."""
    words = bits.random_raw(-(-rows * count // 4))
    index = words.view(np.uint16)[: rows * count].reshape(rows, count)
    return normal_quantiles().take(index, mode="wrap")


def uniform_numbers(bits: np.random.BitGenerator, count: int) -> Singles:
    """Numbers in [0, 1) [count], multiples of 2^-24."""
    words = bits.random_raw(-(-count // 2)).view(np.uint32)[:count]
    return (words >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)


def _survival(conditional: Singles) -> Singles:
    """Left-to-right float32 product along axis 0, as `survival_units` has it along axis 1."""
    out = conditional.copy()
    for position in range(1, len(out)):
        np.multiply(out[position - 1], out[position], out=out[position])
    return out


def sigmoid(logit: Singles) -> Singles:
    """1 / (1 + exp(-x)) in float32, by tanh(x / 2), which NumPy has faster."""
    out = np.multiply(logit, np.float32(0.5))
    np.tanh(out, out=out)
    out *= np.float32(0.5)
    out += np.float32(0.5)
    return out


@lru_cache(maxsize=256)
def centres(
    acceptance: tuple[float, ...], spread_common: float, spread_position: float, spread_request: float = 0.0
) -> tuple[float, ...]:
    """Logit centres that make the conditional acceptance per decode step what was published, position by position.

    spread_common: what a block's positions share; spread_request: the part of it that all blocks of a request share.
    Surviving blocks are the easier ones, so each centre is solved given the survivors of the positions before it.
    Published figures are means over the steps of runs that verify whole blocks, and a request of so many tokens takes
    fewer steps the easier it is, so a request counts by 1 / (its accepted length).
    """
    request, block = _normal(spread_request), _normal(np.sqrt(max(spread_common**2 - spread_request**2, 0.0)))
    ease = request[0][:, None] + block[0][None, :]
    tabulated = _smoothed(spread_position)
    steps = np.ones(_NODES)  # of a request, up to a factor
    for _ in range(_ROUNDS):
        alive = (request[1] * steps)[:, None] * block[1][None, :]
        survival, tokens, out = np.ones_like(ease), np.ones(_NODES), []
        for wanted in acceptance:
            low, high = -20.0, 20.0
            for _ in range(40):
                centre = (low + high) / 2
                given_ease = np.interp(centre + ease, *tabulated)
                low, high = (centre, high) if (alive * given_ease).sum() < wanted * alive.sum() else (low, centre)
            alive, survival = alive * given_ease, survival * given_ease
            tokens += survival @ block[1]
            out.append(centre)
        steps = 1.0 / tokens
    return tuple(out)


def _normal(spread: float) -> tuple[Floats, Floats]:
    """Quadrature nodes and weights of a normal law."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(_NODES)
    return spread * nodes, weights / weights.sum()


def _smoothed(spread: float) -> tuple[Floats, Floats]:
    """The mean of sigmoid(x + spread * normal) over a fine grid of x."""
    nodes, weights = _normal(spread)
    grid = np.linspace(-60.0, 60.0, 12_001)
    return grid, (1 / (1 + np.exp(-(grid[:, None] + nodes[None, :])))) @ weights
