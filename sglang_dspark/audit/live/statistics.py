"""Tests of sampled tokens against exact conditional laws: statistics, their laws under the target, multiplicity, power.

Every sample has a prefix of its own, so its next token follows a law of its own: the target's law given that prefix,
which is known exactly. Position by position the outcomes are independent given the prefixes and differently
distributed multinomials, and over positions they form a martingale difference sequence; that is all that the laws
below use:

tokens     G = 2 sum O ln(O / E) over token classes, E = sum of the samples' class probabilities. With C the exact
           covariance of O (sum of diag(p) - p p'), G tends to a weighted sum of chi-squares whose weights are the
           eigenvalues of E^-1/2 C E^-1/2. They lie in 0..1 and are 1 for samples with equal laws: the textbook
           chi-square is conservative.
ranks      U = F(better tokens) + V p(token), tokens ordered by the target's probability and V uniform: exactly
           uniform, and independent of the past, whatever the prefix. G over bins of U given the bin of the token
           before (the pairs), with the first position's own bins: an ordinary G-test, every sample has the same law.
surprisal  sum of (h(token) - E h) / sqrt(sum of Var h), h = min(-log2 p, 10): standard normal but for its skewness,
           which is known too (Pearson's type III law); where the target is nearly certain rare tokens are rare events.

Only functionals of the output tokens are tested. A token and the verify length of *its own* block depend on each other
under lossless rules as well (stopping rules read survivals of earlier draft tokens), so that such a test would condemn
them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

RANK_BINS = 5
POWER = 0.8


@dataclass(frozen=True)
class TestResult:
    """One test. prompt: its number, None over all prompts. adjusted: Holm's p-value, once all tests are known."""

    __test__ = False  # not a pytest class

    name: str
    prompt: int | None
    statistic: float
    degrees: int
    p_value: float
    adjusted: float = 1.0

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return dict(self.__dict__)


def g_statistic(observed: Floats | Ints, expected: Floats) -> float:
    """2 sum O ln(O / E); empty cells count nothing."""
    filled = observed > 0
    ratio = np.divide(observed, expected, out=np.ones(expected.shape), where=filled)
    return float(2.0 * np.sum(observed * np.log(ratio)))


def weighted_chi2_sf(statistic: float, weights: Floats) -> float:
    """P(sum of weights_i * chi2_1 > statistic), by Pearson's three moments (Imhof 1961); exact for equal weights."""
    first, second, third = (float(np.sum(weights**power)) for power in (1, 2, 3))
    if second <= 0.0:
        return 1.0
    degrees = second**3 / third**2
    return float(stats.chi2.sf((statistic - first) * np.sqrt(degrees / second) + degrees, degrees))


def token_weights(expected: Floats, covariance: Floats) -> Floats:
    """Weights of the chi-squares that G tends to, [classes - 1].

    expected: [classes]; covariance: [classes, classes].
    """
    scale = 1.0 / np.sqrt(expected)
    values = np.linalg.eigvalsh(covariance * scale[:, None] * scale[None, :])
    return np.clip(values[1:], 0.0, 1.0)  # one eigenvalue is 0: the counts sum to the number of samples


def token_test(
    prompt: int, observed: Sequence[Ints], expected: Sequence[Floats], covariance: Sequence[Floats]
) -> TestResult:
    """G over the token classes of every position, summed.

    One entry a position: [classes], [classes], [classes, classes].
    """
    statistic, weights = 0.0, [np.empty(0)]
    for counts, mean, spread in zip(observed, expected, covariance, strict=True):
        if mean.size < 2:
            continue
        statistic += g_statistic(counts, mean) / _williams(mean)
        weights.append(token_weights(mean, spread))
    joined = np.concatenate(weights)
    return TestResult("tokens", prompt, statistic, joined.size, weighted_chi2_sf(statistic, joined))


def _williams(expected: Floats) -> float:
    """Williams' correction: G of small expected counts exceeds its limit law by this factor."""
    total, cells = float(expected.sum()), expected.size
    return 1.0 + (float(np.sum(total / expected)) - 1.0) / (6.0 * total * (cells - 1))


def rank_test(prompt: int | None, ranks: Floats, bins: int = RANK_BINS) -> TestResult:
    """G over bins of the ranks [samples, positions]: the first position alone, each other given the one before."""
    cell = np.minimum((ranks * bins).astype(np.int64), bins - 1)
    tables = [np.bincount(cell[:, 0], minlength=bins)]
    if cell.shape[1] > 1:
        pairs = np.bincount((cell[:, :-1] * bins + cell[:, 1:]).ravel(), minlength=bins * bins)
        tables += list(pairs.reshape(bins, bins))
    statistic, degrees = 0.0, 0
    for counts in tables:
        if counts.sum() == 0:
            continue
        expected = np.full(bins, counts.sum() / bins)
        statistic += g_statistic(counts, expected) / _williams(expected)
        degrees += bins - 1
    return TestResult("ranks", prompt, statistic, degrees, float(stats.chi2.sf(statistic, degrees)))


def surprisal_test(prompt: int | None, excess: Floats, variance: Floats, third: Floats) -> TestResult:
    """Two-sided z of the summed surprisal: h(token) - E h, its second and third moment, all [samples, positions]."""
    total = float(variance.sum())
    if total <= 0.0:
        return TestResult("surprisal", prompt, 0.0, 1, 1.0)
    z, skew = float(excess.sum()) / total**0.5, float(third.sum()) / total**1.5
    law = stats.pearson3(skew)
    return TestResult("surprisal", prompt, z, 1, float(min(1.0, 2.0 * min(law.sf(z), law.cdf(z)))))


def holm(results: Sequence[TestResult]) -> list[TestResult]:
    """The tests with Holm's adjusted p-values:

    rejecting where they are at most alpha keeps the family's error at alpha.
    """
    order = sorted(range(len(results)), key=lambda index: results[index].p_value)
    adjusted, running = list(results), 0.0
    for rank, index in enumerate(order):
        running = max(running, min(1.0, (len(results) - rank) * results[index].p_value))
        adjusted[index] = replace(results[index], adjusted=running)
    return adjusted


def noncentrality(degrees: int, alpha: float, power: float = POWER) -> float:
    """Noncentrality at which a chi-square test of size alpha rejects with the given power."""
    critical = stats.chi2.isf(alpha, degrees)
    return float(optimize.brentq(lambda value: stats.ncx2.sf(critical, degrees, value) - power, 1e-9, 1e6))


def smallest_bias(degrees: int, samples: int, positions: int, alpha: float, power: float = POWER) -> float:
    """The smallest total variation, averaged over the positions, that is seen with this power whatever its direction.

    A shift of total variation d moves the noncentrality by at least 4 d^2 a token (the worst case: half of the mass
    against the other half), and by Jensen's inequality by at least 4 d^2 times their number when d is the mean. Above
    1: nothing is.
    """
    if degrees < 1 or samples < 1:
        return float("inf")
    return float(np.sqrt(noncentrality(degrees, alpha, power) / (4.0 * samples * positions)))


def samples_needed(degrees: int, information: float, alpha: float, power: float = POWER) -> float:
    """Samples at which a bias of `information` (sum of shift^2 / probability over classes and positions) is seen."""
    if degrees < 1 or information <= 0.0:
        return float("inf")
    return noncentrality(degrees, alpha, power) / information


def family_size(prompts: int) -> int:
    """Tests in an audit: three a prompt, and ranks and surprisal over all of them."""
    return 3 * prompts + 2
