"""Streams are named: the same name gives the same numbers anywhere, another name others."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.blocks.random import Streams, stream

WORDS = st.integers(0, 2**64 - 1)


@given(st.integers(), st.text(max_size=9), WORDS, WORDS)
def test_both_forms_give_the_same_numbers(seed, purpose, first, second):
    streams = Streams(seed, purpose)
    streams.at(1, 2).integers(0, 9, 3, dtype=np.int32)  # leaves half a word behind, which `at` must drop
    expected = stream(seed, purpose, first, second)
    again = streams.at(first, second)
    assert again.integers(0, 99, 5, dtype=np.int32).tolist() == expected.integers(0, 99, 5, dtype=np.int32).tolist()
    assert again.random(5).tolist() == expected.random(5).tolist()


def test_missing_keys_count_as_zero():
    assert stream(1, "a").random() == stream(1, "a", 0).random() == stream(1, "a", 0, 0).random()
    assert Streams(1, "a").at(3).random() == stream(1, "a", 3).random()


def test_names_that_differ_share_no_number():
    names = [(seed, purpose, a, b) for seed in (0, 1) for purpose in ("x", "y") for a in (0, 1, 2**63) for b in (0, 1)]
    draws = np.concatenate([stream(*name).integers(0, 2**64, 2000, dtype=np.uint64) for name in names])
    assert np.unique(draws).size == draws.size


def test_streams_beside_each_other_are_uncorrelated():
    draws = np.array([Streams(0, "acceptance").at(request, 5).random(4096) for request in range(24)])
    correlation = np.corrcoef(draws) - np.eye(len(draws))
    assert abs(correlation).max() < 5 / np.sqrt(4096)
    assert draws.mean() == pytest.approx(0.5, abs=5 * np.sqrt(1 / 12 / draws.size))


def test_another_process_gives_the_same_numbers():
    code = "from simulator.blocks.random import stream; print(stream(7, 'lengths', 1, 2).random(3).tolist())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(stream(7, "lengths", 1, 2).random(3).tolist())


@pytest.mark.parametrize("key", [(-1,), (2**64,), (0, -1), (0, 0, 0)])
def test_bad_keys_are_refused(key):
    with pytest.raises(ValueError, match="at most two integers"):
        stream(0, "x", *key)


@pytest.mark.parametrize("key", [(-1,), (2**64,), (0, -1)])
def test_the_fast_form_refuses_bad_keys(key):
    with pytest.raises(OverflowError):
        Streams(0, "x").at(*key)
