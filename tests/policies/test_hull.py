"""`hull`: the convex hull is the hull, the first stop is the maximum over it, and the tier is filled."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_dspark.cost import StepPrices
from sglang_dspark.cost.prices import lower_hull
from sglang_dspark.policies import SCALE, EarlyStop, Hull, LiveBlock, Past, survival_units
from sglang_dspark.policies.drawing import random_confidence, random_cost

SEEDS = st.integers(0, 2**32 - 1)


def draw_case(seed: int) -> tuple[Past, LiveBlock]:
    rng = np.random.default_rng(seed)
    requests, gamma = int(rng.integers(1, 12)), int(rng.integers(1, 8))
    prices = random_cost(rng, requests, gamma).prices(requests, gamma)
    return Past(requests, gamma, prices), LiveBlock.of(random_confidence(rng, requests, gamma))


def taus(past: Past, live: LiveBlock) -> np.ndarray:
    """tau by admitted count, [R * gamma + 1] units."""
    ordered = np.sort(live.units, axis=None)[::-1]
    return past.num_requests * SCALE + np.concatenate([[0], np.cumsum(ordered)])


def hull_value(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Largest convex function below the points, at the points: the minimum over all chords that span a point."""
    value = y.astype(float).copy()
    for i in range(len(x)):
        for j in range(i + 2, len(x)):
            inside = slice(i + 1, j)
            chord = y[i] + (y[j] - y[i]) * (x[inside] - x[i]) / (x[j] - x[i])
            value[inside] = np.minimum(value[inside], chord)
    return value


@given(st.lists(st.tuples(st.integers(1, 9), st.floats(0, 100)), min_size=1, max_size=25))
def test_lower_hull_equals_all_chords(steps: list[tuple[int, float]]) -> None:
    x = np.cumsum([gap for gap, _ in steps])
    y = np.array([value for _, value in steps])
    kept = lower_hull(x, y)
    assert kept[0] == x[0] and kept[-1] == x[-1]
    assert np.allclose(np.interp(x, kept, y[np.searchsorted(x, kept)]), hull_value(x, y), atol=1e-9)


@given(SEEDS)
def test_lower_hull_agrees_with_scipy(seed: int) -> None:
    spatial = pytest.importorskip("scipy.spatial", reason="scipy is in the test extra")
    rng = np.random.default_rng(seed)
    x = np.cumsum(rng.integers(1, 5, size=30))
    y = rng.random(30)
    hull = spatial.ConvexHull(np.column_stack([x, y]))
    # A facet of the lower side has an outward normal that points down.
    lower = sorted(set(hull.simplices[hull.equations[:, 1] < 0].ravel().tolist()))
    assert lower_hull(x, y).tolist() == x[lower].tolist()


@given(SEEDS)
def test_prices_carry_the_hull_of_the_whole_staircase(seed: int) -> None:
    """The corners that are looked at are enough: the hull is that of every admitted count inside the graphs."""
    past, _ = draw_case(seed)
    last = past.prices.last_captured
    if last < 0:
        assert past.prices.hull_inverse.size == 0
        return
    cost = np.maximum.accumulate(past.prices.seconds[: last + 1])
    assert past.prices.hull_inverse.size == last + 1
    assert np.allclose(1.0 / past.prices.hull_inverse, hull_value(np.arange(last + 1), cost), rtol=1e-12)


@given(SEEDS)
def test_the_first_stop_is_the_maximum(seed: int) -> None:
    past, live = draw_case(seed)
    count = Hull(fill=False).decide(past, live).total
    inverse = past.prices.hull_inverse
    theta = taus(past, live)[: inverse.size] * inverse
    if theta.size:
        assert theta[count] >= theta.max() * (1 - 1e-12)
    else:
        assert count == 0


@given(SEEDS)
def test_fill_goes_to_the_top_of_the_executed_tier_and_no_further(seed: int) -> None:
    past, live = draw_case(seed)
    bare, filled = Hull(fill=False).decide(past, live).total, Hull(dips=False).decide(past, live).total
    assert filled == past.prices.tier_top[bare] >= bare
    assert past.prices.seconds[filled] == past.prices.seconds[bare]
    if past.prices.last_captured >= 0:
        assert filled <= past.prices.last_captured


@given(SEEDS)
def test_dips_are_the_cheapest_graph_that_holds_a_count(seed: int) -> None:
    past, live = draw_case(seed)
    prices, last = past.prices, past.prices.last_captured
    for count in range(last + 1):
        cheapest = prices.seconds[count : last + 1].min()
        top = prices.cheapest_top[count]
        assert count <= top <= last and prices.seconds[top] == cheapest and prices.tier_top[top] == top
        smaller = [t for t in prices.tier_tops if count <= t < top]
        assert all(prices.seconds[t] > cheapest for t in smaller)
    assert (prices.cheapest_top[last + 1 :] == prices.tier_top[last + 1 :]).all()
    if last >= 0:
        padded = np.array([prices.seconds[count : last + 1].min() for count in range(last + 1)])
        assert np.allclose(1.0 / prices.dip_hull_inverse, hull_value(np.arange(last + 1), padded), rtol=1e-12)
        assert Hull().decide(past, live).total in prices.tier_tops


def test_a_dip_in_the_staircase_is_used() -> None:
    """Four tokens cost more than eight: the running maximum stops before them, `dips` fills up to eight."""
    seconds = np.array([1.0, 1.0, 1.0, 3.0, 3.0, 1.2, 1.2, 1.2, 1.2])
    top = np.array([2, 2, 2, 4, 4, 8, 8, 8, 8])
    prices = StepPrices(seconds, seconds, top, 8)
    live = LiveBlock(survival_units(np.full((1, 8), 0.8, dtype=np.float32)))
    past = Past(1, 8, prices)
    assert Hull(dips=False).decide(past, live).total == 2
    assert Hull().decide(past, live).total == 8


@given(SEEDS)
def test_early_stop_is_algorithm_1(seed: int) -> None:
    past, live = draw_case(seed)
    theta = taus(past, live) * past.prices.inverse
    count = 0
    while count + 1 < theta.size and theta[count + 1] > theta[count]:
        count += 1
    assert EarlyStop().decide(past, live).total == count


def test_a_cliff_is_never_entered() -> None:
    """Certain tokens, flat cost up to 8 tokens, a hundred times that beyond: hull stops at the last captured size."""
    requests, gamma = 2, 7
    tokens = requests + np.arange(requests * gamma + 1)
    seconds = np.where(tokens <= 8, 1.0, 100.0)
    top = np.where(tokens <= 8, 8 - requests, tokens - requests)
    prices = StepPrices(seconds, seconds, top.astype(np.int64), 8 - requests)
    live = LiveBlock(survival_units(np.ones((requests, gamma), dtype=np.float32)))
    decision = Hull().decide(Past(requests, gamma, prices), live)
    assert decision.total == 8 - requests and decision.lengths.tolist() == [3, 3]
