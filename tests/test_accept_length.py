"""No command's accept length is above gamma + 1: one verify step gives a request at most its block and the bonus."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_dspark.calibration.quality import quality
from sglang_dspark.cost import load_profile
from sglang_dspark.live.evaluate import _evaluation
from sglang_dspark.records import Header, RequestRecord, StepRecord
from sglang_dspark.records.episodes import Episode
from sglang_dspark.serving.base.steps import BatchView, SamplingView, StepDecision
from sglang_dspark.serving.base.steps import StepRecord as LiveStep
from sglang_dspark.serving.feedback.counters import Counters
from sglang_dspark.statistics import accept_length
from simulator.blocks.drafters import DOMAINS, Drafter
from simulator.engine.run import Setting
from simulator.results.run import run_once
from simulator.traces import Trace

GAMMAS = st.integers(1, 8)
TOP = 1 + 1e-12


def blocks(gamma: int, most: int = 12) -> st.SearchStrategy[list[int]]:
    """Accepted draft tokens of every verify step of one request; whole blocks are as likely as all else."""
    return st.lists(st.one_of(st.just(gamma), st.integers(0, gamma)), max_size=most)


def meta(accepted: list[int], wanted: int) -> dict[str, int]:
    """SGLang's meta_info of an answer: a token of the prefill, then of each step, cut at the requested length."""
    tokens, steps = 1, 0
    for number in accepted:
        if tokens >= wanted:
            break
        tokens, steps = min(tokens + number + 1, wanted), steps + 1
    if not steps:
        return {"completion_tokens": min(tokens, wanted)}
    return {"completion_tokens": tokens, "spec_verify_ct": steps, "spec_num_correct_drafts": sum(accepted[:steps])}


@given(st.data())
def test_eval(data: st.DataObject) -> None:
    gamma = data.draw(GAMMAS)
    answers = data.draw(st.lists(st.tuples(blocks(gamma), st.integers(1, 40)), min_size=1, max_size=6))
    metas = [meta(accepted, wanted) for accepted, wanted in answers]
    found = _evaluation("set", metas, 1.0, None)
    verified = [
        n for (accepted, _), m in zip(answers, metas, strict=True) for n in accepted[: m.get("spec_verify_ct", 0)]
    ]
    assert found.output_tokens == sum(m["completion_tokens"] for m in metas)
    if not verified:
        assert math.isnan(found.accept_length)
    else:
        assert found.accept_length == pytest.approx(1 + np.mean(verified))
        assert 1 <= found.accept_length <= (gamma + 1) * TOP


def test_eval_of_whole_blocks_is_gamma_plus_one() -> None:
    """A token of the prefill, then eight of every step: 17 tokens in two steps are 8 a step, not 8.5."""
    assert _evaluation("set", [meta([7, 7], 17)], 1.0, None).accept_length == 8.0


@given(st.data())
def test_counters_of_the_server(data: st.DataObject) -> None:
    gamma, counters = data.draw(GAMMAS), Counters()
    for accepted in data.draw(st.lists(blocks(gamma).filter(bool), min_size=1, max_size=6)):
        depth, full = np.array(accepted), np.full(len(accepted), gamma)
        rows = np.arange(len(depth))
        step = LiveStep(
            step=0,
            forward=0,
            began_s=0.0,
            rids=[str(row) for row in rows],
            batch=BatchView(rows, rows),
            prefix_lengths=rows,
            sampling=SamplingView(np.ones(len(rows), np.float32), np.ones(len(rows), np.float32), rows),
            policy="fixed",
            carry=None,
            since_step=0,
            decision=StepDecision("policy", None),
            lagged={},
            prefill_before=False,
            confidence=np.zeros((len(depth), gamma), np.float32),
            lengths=full,
            accepted=depth,
            step_s=0.01,
        )
        counters.on_step(step)
    assert 1 <= counters.as_dict()["mean_accept_length"] <= (gamma + 1) * TOP
    assert counters.timed_committed <= (gamma + 1) * counters.timed_requests


@given(st.data())
def test_episodes(data: st.DataObject) -> None:
    """Requests that ended a step ago stand in the batch and get nothing; the last block is cut."""
    gamma, wanted = data.draw(GAMMAS), data.draw(st.integers(2, 30))
    request = RequestRecord(
        rid="a", arrival_time_s=0.0, first_token_time_s=0.1, finish_time_s=1.0, input_length=4, output_length=wanted
    )
    episode, anchor = Episode(Header(gamma=gamma), [request]), 1
    for accepted in data.draw(blocks(gamma).filter(bool)):
        step = StepRecord(
            step=0,
            slots=np.array([0]),
            rids=["a"],
            anchor=np.array([anchor]),
            lengths=np.array([gamma]),
            accepted=np.array([accepted]),
        )
        episode.add(step, {"a": wanted})
        anchor += accepted + 1
    assert 0 < episode.figures()["accept_length"] <= (gamma + 1) * TOP


@given(st.data())
def test_quality(data: st.DataObject) -> None:
    gamma = data.draw(GAMMAS)
    depth = np.array(data.draw(blocks(gamma).filter(bool)), dtype=np.int64)
    confidence = np.full((len(depth), gamma), data.draw(st.sampled_from([0.0, 0.5, 1.0])), dtype=np.float32)
    found = quality(depth, confidence, gamma)
    for length in (found.accept_length, *(point.accept_length for point in found.sweep)):
        assert 1 <= length <= (gamma + 1) * TOP


@settings(max_examples=25)
@given(
    gamma=GAMMAS,
    lengths=st.lists(st.tuples(st.integers(1, 50), st.integers(1, 40)), min_size=1, max_size=8),
    acceptance=st.sampled_from([0.0, 0.5, 1.0]),
    concurrency=st.sampled_from([None, 1, 3]),
    slots=st.sampled_from([1, 4]),
)
def test_simulator(
    gamma: int, lengths: list[tuple[int, int]], acceptance: float, concurrency: int | None, slots: int
) -> None:
    from sglang_dspark.policies import make_policy
    from simulator import EngineSettings

    drafter = Drafter("test", dict.fromkeys(DOMAINS, (acceptance,) * gamma), 1.0, False)
    prompts, outputs = (np.array(column) for column in zip(*lengths, strict=True))
    trace = Trace(np.zeros(len(prompts)), prompts, outputs, source="test")
    cost = load_profile("vllm-b300-dsv4-flash")
    setting = Setting(trace, cost, cost, drafter, concurrency=concurrency)
    setting = replace(setting, engine=EngineSettings(max_running_requests=slots))
    figures, recorder = run_once(setting, make_policy(f"fixed:k={gamma}"))
    if recorder.request_steps:
        assert 0 < figures["accept_length"] <= (gamma + 1) * TOP
    assert recorder.output_tokens == outputs.sum()


@given(gamma=GAMMAS, accepted=st.integers(0, 8), steps=st.integers(1, 1000))
def test_the_figure_itself(gamma: int, accepted: int, steps: int) -> None:
    length = accept_length(min(accepted, gamma) * steps, steps)
    assert 1 <= length <= (gamma + 1) * TOP
    assert math.isnan(accept_length(0, 0))
