"""What the samples of one prompt say, reduced while the target's laws stream by:

no array of samples x vocabulary is kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sglang_dspark.audit.live.classes import class_laws, class_of, frequent_tokens

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

LawBatch = tuple[slice, Floats]
"""Which samples, and the target's laws [n, positions, V] given their prefixes."""

MOST_SURPRISAL = 10.0
PILOT = 256


@dataclass(frozen=True)
class Evidence:
    """One prompt's samples against the target.

    Lists have one entry a position; ranks to third are [samples, positions].
    """

    frequent: list[Ints]
    observed: list[Ints]
    expected: list[Floats]
    covariance: list[Floats]
    ranks: Floats
    excess: Floats
    variance: Floats
    third: Floats

    @property
    def observed_tv(self) -> float:
        """Total variation between observed and expected class counts, averaged over the positions."""
        return float(
            np.mean([0.5 * np.abs(o - e).sum() / e.sum() for o, e in zip(self.observed, self.expected, strict=True)])
        )

    @property
    def chance_tv(self) -> float:
        """What `observed_tv` is on average when the server samples from the target (normal approximation)."""
        spread = [np.sqrt(np.clip(np.diag(c), 0.0, None)) for c in self.covariance]
        return float(
            np.mean([np.sqrt(0.5 / np.pi) * s.sum() / e.sum() for s, e in zip(spread, self.expected, strict=True)])
        )


def choose_classes(laws: Iterable[LawBatch], positions: int, samples: int) -> list[Ints]:
    """Token classes per position from the laws of a pilot (at most `PILOT` samples are enough to rank the tokens)."""
    total, count = None, 0
    for _, batch in laws:
        total = batch.sum(0) if total is None else total + batch.sum(0)
        count += len(batch)
    if total is None:
        return [np.empty(0, np.int64) for _ in range(positions)]
    return [frequent_tokens(total[t] / count, samples) for t in range(positions)]


def gather(tokens: Ints, laws: Iterator[LawBatch], frequent: list[Ints], rng: np.random.Generator) -> Evidence:
    """Evidence of tokens [samples, positions]; `laws` runs over all samples, `rng` draws the V of the ranks."""
    samples, positions = tokens.shape
    observed = [np.bincount(class_of(tokens[:, t], f), minlength=f.size + 1) for t, f in enumerate(frequent)]
    expected = [np.zeros(f.size + 1) for f in frequent]
    covariance = [np.zeros((f.size + 1, f.size + 1)) for f in frequent]
    ranks, excess, variance, third = (np.empty((samples, positions)) for _ in range(4))
    for rows, batch in laws:
        chosen = tokens[rows]
        for t, f in enumerate(frequent):
            shares = class_laws(batch[:, t], f)
            expected[t] += shares.sum(0)
            covariance[t] += np.diag(shares.sum(0)) - shares.T @ shares
        ranks[rows] = token_ranks(batch, chosen, rng)
        excess[rows], variance[rows], third[rows] = surprisals(batch, chosen)
    return _merged(Evidence(frequent, observed, expected, covariance, ranks, excess, variance, third))


def _merged(evidence: Evidence) -> Evidence:
    """The pilot ranked the tokens; classes whose full expected count turned out below 5 join the rare class."""
    frequent, observed, expected, covariance = [], [], [], []
    for f, o, e, c in zip(evidence.frequent, evidence.observed, evidence.expected, evidence.covariance, strict=True):
        keep = np.flatnonzero(e[:-1] >= 5.0)
        if keep.size and e.sum() - e[keep].sum() < 5.0:
            keep = np.delete(keep, np.argmin(e[keep]))
        fold = np.zeros((keep.size + 1, e.size))
        fold[np.arange(keep.size), keep] = 1.0
        fold[-1] = 1.0 - fold[:-1].sum(0)
        frequent.append(f[keep])
        observed.append(np.rint(fold @ o).astype(np.int64))
        expected.append(fold @ e)
        covariance.append(fold @ c @ fold.T)
    return replace(evidence, frequent=frequent, observed=observed, expected=expected, covariance=covariance)


def token_ranks(laws: Floats, tokens: Ints, rng: np.random.Generator) -> Floats:
    """U = mass of the better tokens + V * p(token), in 0..1. laws: [n, positions, V]; tokens, result: [n, positions].

    Better: more probable, or as probable with a smaller number.
    """
    own = np.take_along_axis(laws, tokens[..., None], axis=-1)
    better = (laws > own) | ((laws == own) & (np.arange(laws.shape[-1]) < tokens[..., None]))
    mass = np.where(better, laws, 0.0).sum(-1)
    return np.clip(mass + rng.random(tokens.shape) * own[..., 0], 0.0, 1.0)


def surprisals(laws: Floats, tokens: Ints) -> tuple[Floats, Floats, Floats]:
    """(h(token) - E h, second and third central moment of h), each [n, positions], for h = min(-log2 p, 10)."""
    h = np.minimum(-np.log2(np.maximum(laws, 2.0**-MOST_SURPRISAL)), MOST_SURPRISAL)
    centred = h - (laws * h).sum(-1, keepdims=True)
    squared = laws * centred * centred
    excess = np.take_along_axis(centred, tokens[..., None], axis=-1)[..., 0]
    return excess, squared.sum(-1), (squared * centred).sum(-1)
