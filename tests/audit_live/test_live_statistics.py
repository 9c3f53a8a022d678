"""Size and power of the audit's tests on simulated samples whose laws are known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

stats = pytest.importorskip("scipy.stats", reason="the audit's tests need scipy")

from sglang_dspark.audit.live import statistics as s  # noqa: E402
from sglang_dspark.audit.live.evidence import Evidence, choose_classes, gather, surprisals, token_ranks  # noqa: E402

VOCAB, POSITIONS, SAMPLES = 40, 3, 300


def draw(laws: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Tokens [n, positions] of laws [n, positions, V]."""
    uniform = rng.random((*laws.shape[:-1], 1))
    return np.minimum((laws.cumsum(-1) < uniform).sum(-1), laws.shape[-1] - 1)


def prefix_laws(rng: np.random.Generator, samples: int, spread: float) -> np.ndarray:
    """Laws [samples, positions, V] that differ from sample to sample, as with random prefixes; spread 0: all equal."""
    base = rng.normal(0.0, 2.0, (1, POSITIONS, VOCAB))
    logits = base + spread * rng.normal(0.0, 1.0, (samples, POSITIONS, VOCAB))
    weights = np.exp(logits)
    return weights / weights.sum(-1, keepdims=True)


def evidence(laws: np.ndarray, tokens: np.ndarray, rng: np.random.Generator) -> Evidence:
    batches = [(slice(k, k + 250), laws[k : k + 250]) for k in range(0, len(laws), 250)]
    frequent = choose_classes(batches[:1], POSITIONS, len(laws))
    return gather(tokens, iter(batches), frequent, rng)


def three_tests(e: Evidence) -> list[s.TestResult]:
    return [
        s.token_test(0, e.observed, e.expected, e.covariance),
        s.rank_test(0, e.ranks),
        s.surprisal_test(0, e.excess, e.variance, e.third),
    ]


def biased(laws: np.ndarray, tv: float) -> np.ndarray:
    """Laws with `tv` of the mass moved from every other token to the most probable one."""
    best = laws.argmax(-1)[..., None]
    own = np.take_along_axis(laws, best, -1)
    moved = laws * (1.0 - tv / (1.0 - own))
    np.put_along_axis(moved, best, own + tv, -1)
    return moved


@pytest.mark.parametrize("spread", [0.0, 1.0, 3.0])
def test_size_under_the_target(spread: float) -> None:
    """With random prefixes or equal ones, p-values of a lossless server are uniform enough in the tail that decides."""
    rng = np.random.default_rng(int(10 * spread) + 1)
    trials, below = 120, {0.05: np.zeros(3), 0.01: np.zeros(3)}
    for _ in range(trials):
        laws = prefix_laws(rng, SAMPLES, spread)
        results = three_tests(evidence(laws, draw(laws, rng), rng))
        for level in below:
            below[level] += [result.p_value <= level for result in results]
    for level, counts in below.items():
        assert np.all(counts <= stats.binom.isf(1e-4, trials, level)), (level, counts)
    # Not conservative either: the exact covariance keeps the size near its level where the textbook law would not.
    assert np.all(below[0.05] >= stats.binom.ppf(1e-4, trials, 0.05)), below


def test_textbook_law_would_be_conservative() -> None:
    """The weights below 1 are what random prefixes do; equal laws give weights of 1."""
    rng = np.random.default_rng(5)
    equal, mixed = (
        evidence(laws, draw(laws, rng), rng) for laws in (prefix_laws(rng, 900, 0.0), prefix_laws(rng, 900, 3.0))
    )
    assert np.allclose(s.token_weights(equal.expected[0], equal.covariance[0]), 1.0, atol=1e-6)
    weights = s.token_weights(mixed.expected[0], mixed.covariance[0])
    assert weights.mean() < 0.8 and weights.max() <= 1.0


@pytest.mark.parametrize("spread", [0.0, 1.0])
def test_planted_bias_is_seen(spread: float) -> None:
    """A total variation of 0.05, at the sample size that `smallest_bias` promises, is seen in 80 % of audits."""
    rng = np.random.default_rng(11)
    alpha, samples = 0.001 / s.family_size(1), 2600
    seen, promised, trials = 0, [], 25
    for _ in range(trials):
        laws = prefix_laws(rng, samples, spread)
        e = evidence(laws, draw(biased(laws, 0.05), rng), rng)
        results = three_tests(e)
        promised.append(s.smallest_bias(results[0].degrees, samples, POSITIONS, alpha))
        seen += any(result.adjusted <= 0.001 for result in s.holm(results))
    assert max(promised) <= 0.05, max(promised)
    assert seen >= 0.8 * trials, seen


def test_smallest_bias_is_what_the_token_test_sees() -> None:
    """In the worst direction (half of the mass against the other half) the power at the promised bias is 80 %."""
    rng = np.random.default_rng(3)
    laws = np.full((800, POSITIONS, 8), 1.0 / 8)
    alpha = 0.001
    tv = s.smallest_bias(POSITIONS * 7, 800, POSITIONS, alpha)
    shifted = laws.copy()
    shifted[..., :4] += tv / 4
    shifted[..., 4:] -= tv / 4
    rejected = sum(three_tests(evidence(laws, draw(shifted, rng), rng))[0].p_value <= alpha for _ in range(150))
    assert 0.68 <= rejected / 150 <= 0.90


def test_dependence_between_tokens_is_seen() -> None:
    """Right margins, wrong pairs: only the pairs of the rank test can see it."""
    rng = np.random.default_rng(2)
    ranks = rng.random((3000, 3))
    copied = rng.random(3000) < 0.15
    ranks[copied, 1] = ranks[copied, 0]
    result = s.rank_test(0, ranks)
    assert result.p_value < 1e-5
    for column in range(3):
        assert s.rank_test(0, ranks[:, [column]]).p_value > 1e-3


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1), st.integers(2, 30))
def test_ranks_are_uniform_whatever_the_law(seed: int, vocab: int) -> None:
    """Kolmogorov-Smirnov on ranks of tokens drawn from arbitrary laws, ties and zero probabilities included."""
    rng = np.random.default_rng(seed)
    laws = np.round(rng.dirichlet(np.full(vocab, 0.4), (400, 1)), 2)
    laws[..., 0] += 1.0 - laws.sum(-1)
    laws = np.clip(laws, 0.0, None)
    laws /= laws.sum(-1, keepdims=True)
    ranks = token_ranks(laws, draw(laws, rng), rng)
    assert np.all((ranks >= 0) & (ranks <= 1))
    assert stats.kstest(ranks[:, 0], "uniform").pvalue > 1e-6


def test_surprisal_moments() -> None:
    laws = np.array([[[0.5, 0.25, 0.25]]])
    excess, variance, third = surprisals(laws, np.array([[0]]))
    assert (excess[0, 0], variance[0, 0], third[0, 0]) == pytest.approx((1.0 - 1.5, 0.25, 0.0))


def test_a_nearly_certain_target_raises_no_false_alarm() -> None:
    """A token of probability 1e-5 comes up in one of 40 audits; a normal law would call each of these biased."""
    rng = np.random.default_rng(7)
    law = np.array([1.0 - 1e-5, 1e-5])
    laws = np.broadcast_to(law, (2500, 1, 2))
    strict, seen = 0, 0
    for _ in range(400):
        tokens = (rng.random((2500, 1)) < 1e-5).astype(np.int64)
        seen += int(tokens.any())
        strict += s.surprisal_test(0, *surprisals(laws, tokens)).p_value < 1e-4
    assert seen >= 3 and strict == 0
    # Five of them are no accident.
    tokens = np.zeros((2500, 1), dtype=np.int64)
    tokens[:5] = 1
    assert s.surprisal_test(0, *surprisals(laws, tokens)).p_value < 1e-5


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (1.0, 0.5, 0.1, 0.02), (0.9, 0.3, 0.3, 0.3, 0.05)])
def test_weighted_chi_square_tail(weights: tuple[float, ...]) -> None:
    rng = np.random.default_rng(1)
    draws = (rng.chisquare(1, (400_000, len(weights))) * np.array(weights)).sum(1)
    for level in (0.1, 0.01, 0.001):
        value = float(np.quantile(draws, 1.0 - level))
        assert s.weighted_chi2_sf(value, np.array(weights)) == pytest.approx(level, rel=0.25)


@given(st.lists(st.floats(0.0, 1.0), min_size=1, max_size=20))
def test_holm_is_a_step_down_bonferroni(p_values: list[float]) -> None:
    results = s.holm([s.TestResult("tokens", 0, 0.0, 1, p) for p in p_values])
    adjusted = [result.adjusted for result in results]
    assert all(p <= a <= min(1.0, len(p_values) * p) + 1e-12 for p, a in zip(p_values, adjusted, strict=True))
    order = np.argsort(p_values, kind="stable")
    assert np.all(np.diff(np.array(adjusted)[order]) >= 0)
    assert adjusted[order[0]] == pytest.approx(min(1.0, len(p_values) * min(p_values)))


def test_holm_of_known_values() -> None:
    results = s.holm([s.TestResult("tokens", 0, 0.0, 1, p) for p in (0.01, 0.04, 0.03)])
    assert [result.adjusted for result in results] == pytest.approx([0.03, 0.06, 0.06])


def test_rare_tokens_share_a_class() -> None:
    law = np.array([0.5, 0.3, 0.004, 0.006, 0.19])
    laws = np.broadcast_to(law, (500, 1, 5)).copy()
    rng = np.random.default_rng(0)
    e = gather(
        draw(laws, rng), iter([(slice(0, 500), laws)]), choose_classes([(slice(0, 256), laws[:256])], 1, 500), rng
    )
    # Together the rare ones are expected 5 times in 500, too few for a class: the rarest frequent token joins them.
    assert e.frequent[0].tolist() == [0, 1] and e.expected[0] == pytest.approx([250, 150, 100])
    assert e.observed[0].sum() == 500


def test_a_certain_position_tells_nothing() -> None:
    laws = np.zeros((300, 1, 4))
    laws[..., 2] = 1.0
    rng = np.random.default_rng(0)
    e = gather(
        np.full((300, 1), 2), iter([(slice(0, 300), laws)]), choose_classes([(slice(0, 256), laws[:256])], 1, 300), rng
    )
    result = s.token_test(0, e.observed, e.expected, e.covariance)
    assert result.degrees == 0 and result.p_value == 1.0
    assert s.smallest_bias(result.degrees, 300, 1, 0.001) == float("inf")
    assert s.surprisal_test(0, e.excess, e.variance, e.third).p_value == 1.0


def test_noncentrality_gives_the_power() -> None:
    value = s.noncentrality(20, 1e-4)
    assert stats.ncx2.sf(stats.chi2.isf(1e-4, 20), 20, value) == pytest.approx(0.8)
    assert s.samples_needed(20, 0.01, 1e-4) == pytest.approx(value / 0.01)
    assert s.samples_needed(20, 0.0, 1e-4) == float("inf")
