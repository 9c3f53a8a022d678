"""What a page counts: the same run as without counting, every token once."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_dspark.policies import SCALE, make_policy
from simulator.engine.recorder import DecodeView
from simulator.report.counts import Counter, counted_run
from simulator.results.run import run_once
from tests.report.small_reports import setting


@pytest.mark.parametrize("text", ["fixed:k=3", "hull", "argmax:lag=2", "threshold:t=0.5", "self-tuning"])
def test_a_counted_run_is_the_run_and_every_verified_token_is_counted(text: str) -> None:
    policy = make_policy(text)
    figures, recorder = run_once(setting(), policy)
    counts = counted_run(setting(), policy)
    assert counts.figures == figures
    assert counts.blocks.sum() + counts.verified.sum() == recorder.verified_tokens == counts.tokens.sum()
    assert counts.requests.size == figures["decode_steps"] and counts.blocks.sum() == recorder.rows
    # What is committed beyond the accepted draft tokens is a bonus token, at most one a block.
    assert 0 <= recorder.committed_tokens - counts.accepted.sum() <= counts.blocks.sum()
    assert (counts.reliability[:, 0].sum(axis=1) == counts.blocks * 7).all()
    assert (np.diff(counts.accepted, axis=1) <= 0).all() and (counts.accepted <= counts.verified).all()


GAMMA, DOMAINS = 3, 2


@st.composite
def views(draw: st.DrawFn) -> DecodeView:
    size = draw(st.integers(1, 5))

    def numbers(low: int, high: int, *shape: int) -> np.ndarray:
        count = int(np.prod(shape))
        return np.array(draw(st.lists(st.integers(low, high), min_size=count, max_size=count))).reshape(shape)

    lengths, depth = numbers(0, GAMMA, size), numbers(0, GAMMA, size)
    units = np.sort(numbers(0, SCALE, size, GAMMA), axis=1)[:, ::-1].copy()
    request, wanted = numbers(0, 9, size), numbers(0, 5, size)
    return DecodeView(request, wanted, lengths, np.minimum(lengths, depth), units, depth)


@given(st.lists(views(), max_size=6))
def test_counts_are_those_of_a_loop_over_tokens(seen: list[DecodeView]) -> None:
    domain = np.arange(10) % DOMAINS
    counter = Counter(domain, ("a", "b"), GAMMA)
    verified, accepted, blocks = np.zeros((2, GAMMA)), np.zeros((2, GAMMA)), np.zeros(2)
    for view in seen:
        counter.see(view)
        for row, request in enumerate(view.request):
            blocks[domain[request]] += 1
            for position in range(GAMMA):
                verified[domain[request], position] += position < view.lengths[row]
                delivered = position < min(view.accepted[row], view.wanted[row])
                accepted[domain[request], position] += delivered
    counts = counter.counts({})
    assert (counts.verified == verified).all() and (counts.accepted == accepted).all()
    assert (counts.blocks == blocks).all()
    survived = sum((view.depth[:, None] > np.arange(GAMMA)).sum() for view in seen)
    assert counts.reliability[:, 2].sum() == pytest.approx(survived)
