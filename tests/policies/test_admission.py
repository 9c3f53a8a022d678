"""The one arithmetic: survivals, the admission order, top-K, against definitions written out."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from sglang_dspark.errors import InputError
from sglang_dspark.policies import SCALE, LiveBlock, allocate, survival_units
from sglang_dspark.policies.arithmetic import check_confidence, keys_for, tau_along

CONFIDENCE = st.one_of(st.sampled_from([0.0, 0.25, 0.5, 1.0, float(np.float32(0.9))]), st.floats(0.0, 1.0, width=32))


def blocks(max_requests: int = 6, max_gamma: int = 8) -> st.SearchStrategy[np.ndarray]:
    """Confidences [R, gamma] float32, R = 0 included."""
    shape = st.tuples(st.integers(0, max_requests), st.integers(1, max_gamma))
    return shape.flatmap(lambda size: npst.arrays(np.float32, size, elements=CONFIDENCE))


def ranked(units: np.ndarray, floor: int, cap: int) -> list[tuple[int, int, int]]:
    """(-survival, position, request) of the candidates, in admission order, by definition."""
    return sorted((-int(units[r, j]), j, r) for r in range(len(units)) for j in range(floor, cap))


@given(blocks())
def test_survival_is_the_left_to_right_float32_product(confidence: np.ndarray) -> None:
    units = survival_units(confidence)
    assert units.dtype == np.int64 and units.shape == confidence.shape
    for row, got in zip(confidence, units, strict=True):
        product = np.float32(1.0)
        for c, value in zip(row, got, strict=True):
            product = np.float32(product * c)
            assert value == round(float(product) * SCALE)
    assert (units >= 0).all() and (units <= SCALE).all()
    assert (np.diff(units, axis=1) <= 0).all()


@given(blocks(), st.data())
def test_allocate_takes_the_first_of_the_order(confidence: np.ndarray, data: st.DataObject) -> None:
    units = survival_units(confidence)
    requests, gamma = units.shape
    floor = data.draw(st.integers(0, gamma))
    cap = data.draw(st.integers(floor, gamma))
    budget = data.draw(st.integers(0, requests * gamma + 3))
    expected = np.full(requests, floor)
    for _, _, request in ranked(units, floor, cap)[: max(budget - requests * floor, 0)]:
        expected[request] += 1
    lengths = allocate(units, budget, floor, cap)
    assert np.array_equal(lengths, expected)
    assert lengths.dtype == np.int64


@given(blocks(), st.integers(0, 50))
def test_one_token_more_takes_nothing_back(confidence: np.ndarray, budget: int) -> None:
    units = survival_units(confidence)
    fewer, more = allocate(units, budget), allocate(units, budget + 1)
    assert (more >= fewer).all() and (more - fewer).sum() <= 1


def test_ties_go_by_position_then_request() -> None:
    units = survival_units(np.ones((3, 2), dtype=np.float32))
    assert [allocate(units, k).tolist() for k in range(5)] == [[0, 0, 0], [1, 0, 0], [1, 1, 0], [1, 1, 1], [2, 1, 1]]


@given(blocks())
def test_a_key_holds_request_and_survival(confidence: np.ndarray) -> None:
    units = survival_units(confidence)
    requests, gamma = units.shape
    if requests:
        order = keys_for(requests, 0, gamma)
        keys = np.sort(order.of(units))
        expected = ranked(units, 0, gamma)
        assert [-survival for survival in order.survivals(keys).tolist()] == [rank[0] for rank in expected]
        for count in range(keys.size + 1):
            requests_of_first = [request for _, _, request in expected[:count]]
            assert order.counts(keys[:count]).tolist() == np.bincount(requests_of_first, minlength=requests).tolist()


@given(st.lists(st.integers(0, SCALE), max_size=20), st.integers(0, 300 * SCALE))
def test_tau_is_exact(survivals: list[int], start: int) -> None:
    expected = [start + sum(survivals[:count]) for count in range(len(survivals) + 1)]
    assert tau_along(np.array(survivals, dtype=np.int64), start).tolist() == expected


@pytest.mark.parametrize("bad", [np.nan, -0.1, 1.0001, np.inf])
def test_confidences_that_are_no_probabilities_are_refused(bad: float) -> None:
    confidence = np.full((2, 3), 0.5, dtype=np.float32)
    check_confidence(confidence)
    confidence[1, 2] = bad
    with pytest.raises(InputError, match="expected a number in 0..1"):
        check_confidence(confidence)


def test_a_live_block_holds_both_forms() -> None:
    confidence = np.array([[0.5, 0.5]], dtype=np.float32)
    block = LiveBlock.of(confidence)
    assert block.units.tolist() == [[SCALE // 2, SCALE // 4]]
    assert block.confidence is confidence
