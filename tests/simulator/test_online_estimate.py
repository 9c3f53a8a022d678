"""Confidences without a head: learned from earlier outcomes only, censoring handled, the same blocks met."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from command_line import PROFILE, QUICK, call
from hypothesis import given
from hypothesis import strategies as st
from simulated_worlds import finished, setting_of, trace_of

from sglang_dspark.jit import numpy_only
from sglang_dspark.policies import Decision, LiveBlock, make_policy, survival_units
from simulator import Confidence
from simulator.blocks.drafters import find_drafter
from simulator.blocks.online import PRIOR, PRIOR_WEIGHT, WINDOW, OnlineEstimate
from simulator.engine.batch import DecodeBatch
from simulator.engine.decoding import Decoder, Drafted
from simulator.engine.run import Setting


@pytest.fixture(autouse=True, scope="module")
def in_python() -> Iterator[None]:
    """What these tests watch are the steps that Python takes."""
    with numpy_only():
        yield


def live(requests: int, gamma: int = 3) -> LiveBlock:
    return LiveBlock(np.zeros((requests, gamma), dtype=np.int64))


def test_the_estimate_by_hand() -> None:
    """Three requests: 3 of 3 accepted, 1 of 3, 0 of 1. Position 1 tried thrice, 2 twice, 3 once."""
    estimate = OnlineEstimate(3)
    assert estimate.conditional == pytest.approx([PRIOR] * 3)
    estimate.learn(np.array([3, 3, 1]), np.array([3, 1, 0]))
    tried_and_accepted = ((3, 2), (2, 1), (1, 1))
    expected = [(PRIOR * PRIOR_WEIGHT + hit) / (PRIOR_WEIGHT + tried) for tried, hit in tried_and_accepted]
    assert estimate.conditional == pytest.approx(expected)
    report = estimate.report(live(2))
    assert report.confidence is not None and (report.confidence == estimate.conditional).all()
    assert (report.units == survival_units(report.confidence)).all()


def test_it_comes_to_the_truth_and_forgets() -> None:
    """Whole blocks of i.i.d. positions; then a position that nobody tries any more goes back to the prior."""
    rng, truth = np.random.default_rng(0), np.array([0.9, 0.5, 0.3])
    estimate = OnlineEstimate(3)
    for _ in range(6 * WINDOW):
        depth = np.logical_and.accumulate(rng.random((64, 3)) < truth, axis=1).sum(axis=1)
        estimate.learn(np.full(64, 3), depth)
    assert estimate.conditional == pytest.approx(truth, abs=0.03)
    for _ in range(12 * WINDOW):
        estimate.learn(np.full(64, 1), np.minimum(rng.binomial(1, 0.9, 64), 1))
    assert estimate.conditional == pytest.approx([0.9, PRIOR, PRIOR], abs=0.03)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=20))
def test_trimmed_steps_do_not_count_as_rejections(steps: list[tuple[int, int]]) -> None:
    """What was not verified says nothing: cutting a step behind its rejection changes no estimate."""
    whole, cut = OnlineEstimate(4), OnlineEstimate(4)
    for length, depth in steps:
        accepted = min(length, depth)
        whole.learn(np.array([length]), np.array([accepted]))
        cut.learn(np.array([min(length, accepted + 1)]), np.array([accepted]))
    assert whole.conditional == pytest.approx(cut.conditional)
    assert ((whole.conditional >= 0) & (whole.conditional <= 1)).all()


def online(**more: Any) -> Setting:
    setting = setting_of(trace_of([(5, 80)] * 4), **more)
    return replace(setting, drafter=find_drafter("eagle3"), confidence=Confidence.of("online"))


class Witness:
    """What every decision of a run was shown, and how it ended."""

    def __init__(self, patch: pytest.MonkeyPatch, setting: Setting, policy: str, bend_at: int | None = None) -> None:
        self.shown: list[np.ndarray] = []
        self.depths: list[np.ndarray] = []
        decide, draft = Decoder._decide, Decoder.decide

        def bending(decoder: Decoder, batch: DecodeBatch, *rest: Any, **named: Any) -> Drafted:
            if bend_at is not None and len(self.shown) >= bend_at:
                batch.blocks.depth[:] = 0
            self.depths.append(batch.blocks.depth.take(batch.row[: batch.size]))
            return draft(decoder, batch, *rest, **named)

        def noting(decoder: Decoder, batch: DecodeBatch, blocks: LiveBlock, *rest: Any, **named: Any) -> Decision:
            self.shown.append(blocks.units.copy())
            return decide(decoder, batch, blocks, *rest, **named)

        with patch.context() as inside:
            inside.setattr(Decoder, "decide", bending)
            inside.setattr(Decoder, "_decide", noting)
            finished(setting, make_policy(policy))


@pytest.mark.parametrize("policy", ["hull", "argmax:lag=2", "fixed:k=7"])
def test_reports_depend_on_earlier_outcomes_only(monkeypatch: pytest.MonkeyPatch, policy: str) -> None:
    """Everything is rejected from step 9 on: what is shown up to and at that step stays, the next one differs."""
    plain = Witness(monkeypatch, online(), policy)
    bent = Witness(monkeypatch, online(), policy, bend_at=9)
    for step in range(10):
        assert (plain.shown[step] == bent.shown[step]).all(), step
    assert (plain.shown[10] != bent.shown[10]).any()
    assert (plain.shown[0] == survival_units(np.full((1, 7), PRIOR, dtype=np.float32))).all()


def test_policies_meet_the_same_blocks_as_with_a_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draws are counted: depth at a step of whole blocks does not depend on what is reported."""
    headless = replace(online(), confidence=Confidence())
    with_estimate = Witness(monkeypatch, online(), "fixed:k=7")
    without = Witness(monkeypatch, headless, "fixed:k=7")
    assert all((one == two).all() for one, two in zip(with_estimate.depths, without.depths, strict=True))


def test_each_replica_learns_for_itself() -> None:
    run, _ = finished(online(replicas=2), make_policy("fixed:k=7"))
    one, two = (engine.decoder._online for engine in run.engines)
    assert one is not None and two is not None and (one.conditional != two.conditional).any()


def test_it_is_asked_for_by_name_and_stated(capsys: pytest.CaptureFixture[str]) -> None:
    shared = ("--trace", "example", "--profile", PROFILE, *QUICK, "--policy", "argmax:lag=2", "--json")
    base = (*shared, "--drafter", "eagle3")
    mean, learned = call(capsys, *base), call(capsys, *base, "--confidence", "online")
    assert mean.report["results"] != learned.report["results"]
    for answer, says in ((mean, "has no confidence head: every block reports the mean"), (learned, "learned online")):
        assert any(says in each["text"] for each in answer.report["assumptions"])
    headed = call(capsys, *shared, "--drafter", "dspark", "--confidence", "online")
    assert headed.status == 0, "a head that is not used"
    refused = call(capsys, *base, "--confidence", "online,bias=1")
    assert refused.status == 2 and "confidence online has no temperature, bias, noise or drift" in refused.err
