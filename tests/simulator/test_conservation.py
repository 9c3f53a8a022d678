"""Nothing is lost or made up: requests, tokens, memory and time, at every engine step of small random settings."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated_worlds import check_books, check_end, finished, setting_of, settings_to_try, trace_of

from sglang_dspark.errors import InputError
from sglang_dspark.policies import make_policy
from simulator.blocks.acceptance import BlockTable, Confidence, StatisticalAcceptance
from simulator.blocks.drafters import find_drafter
from simulator.engine.batch import DecodeBatch
from simulator.engine.loops.layout import cut, new_room
from simulator.engine.run import Setting
from simulator.traces import Trace

POLICIES = ("none", "fixed:k=0", "fixed:k=1", "hull", "argmax:lag=2", "argmax:lag=1", "early-stop", "goodput", "tetris")


@settings(max_examples=40)
@given(settings_to_try(), st.sampled_from(POLICIES))
def test_books_balance_at_every_step(setting: Setting, text: str) -> None:
    policy = make_policy(text)
    run, steps = finished(setting, policy, check_books)
    check_end(run, steps)


@settings(max_examples=6)
@given(st.integers(0, 1000), st.integers(900, 1600), st.integers(1, 7), st.sampled_from(["fixed:k=1", "hull"]))
def test_retracted_requests_finish(seed: int, kv: int, gamma: int, text: str) -> None:
    """Memory for two or three requests and many that come and go: whoever is retracted still gets every token."""
    setting = setting_of(mixed_lengths(seed, 30), gamma=gamma, kv_tokens=kv, max_running_requests=12, concurrency=20)
    run, steps = finished(setting, make_policy(text), check_books)
    check_end(run, steps)


def mixed_lengths(seed: int, count: int) -> Trace:
    rng = np.random.default_rng(seed)
    lengths = np.stack([rng.integers(5, 100, count), rng.integers(20, 800, count)], axis=1)
    return trace_of([(int(prompt), int(output)) for prompt, output in lengths])


def test_retraction_prefills_prompt_and_output_again() -> None:
    trace = mixed_lengths(0, 60)
    trace = replace(trace, max_tokens=trace.output_length)  # clients that may stop early: memory is promised twice
    setting = setting_of(trace, kv_tokens=1500, max_running_requests=12, concurrency=20)
    run, steps = finished(setting, make_policy("fixed:k=7"), check_books)
    check_end(run, steps)
    retractions = run.recorder.retractions
    assert retractions.sum() > 0 and not np.isnan(run.recorder.finish_s[retractions > 0]).any()
    prefilled = sum(step.tokens for step in steps if step.kind == "prefill")
    assert prefilled > run.trace.input_length.sum() + (retractions * run.trace.input_length).sum()


@pytest.mark.parametrize("schedule", [None, "no-overlap"])
def test_outputs_of_one_token_end_at_prefill(schedule: str | None) -> None:
    setting = setting_of(trace_of([(5, 1)] * 9), concurrency=3, schedule=schedule, max_running_requests=2)
    run, steps = finished(setting, make_policy("fixed"), check_books)
    check_end(run, steps)
    assert (run.recorder.finish_s == run.recorder.first_token_s).all()
    assert sum(step.committed for step in steps if step.kind == "decode") == 0
    assert run.recorder.bursts.rows()[0].size == 0


def test_a_huge_prompt_takes_one_chunk_a_step_and_stalls_decode() -> None:
    trace = trace_of([(10, 300), (10_000, 5)], [0.0, 0.05])
    run, steps = finished(setting_of(trace, chunked_prefill_size=512), make_policy("fixed"), check_books)
    check_end(run, steps)
    chunks = [number for number, step in enumerate(steps) if step.kind == "prefill"][1:]
    assert [steps[number].tokens for number in chunks] == [512] * 19 + [10_000 - 19 * 512]
    assert chunks == list(range(chunks[0], chunks[0] + 20)), "decode steps between the chunks of a prompt"


def test_requests_that_can_never_fit_fail_and_the_others_are_served() -> None:
    lengths = [(50, 10), (500, 10), (10, 500), (50, 10)] * 500
    for concurrency in (None, 3):  # 1,000 refusals in a row must not recurse either
        order = sorted(lengths, key=lambda pair: sum(pair) < 100)
        setting = setting_of(trace_of(order), kv_tokens=200, concurrency=concurrency)
        run, steps = finished(setting, make_policy("fixed"))
        check_end(run, steps)
        assert run.router.failed == 1000 and run.recorder.completed == 1000


def test_a_trace_that_cannot_fit_at_all_is_refused() -> None:
    setting = setting_of(trace_of([(50, 9), (40, 5)]), kv_tokens=60)
    with pytest.raises(InputError, match="no request fits in 60 KV tokens, expected at least 61"):
        finished(setting, make_policy("hull"))
    run, _ = finished(setting, make_policy("none"))  # reserves one slot instead of two blocks
    assert run.recorder.completed == 2


@pytest.mark.parametrize("gamma", range(1, 8))
def test_long_outputs_meet_their_own_blocks_to_the_end(gamma: int) -> None:
    """More tokens than blocks are kept at hand: a request must never read the blocks of its neighbour."""
    outputs, rng = np.array([3000, 2000, 2500]), np.random.default_rng(gamma)
    drafter = find_drafter("dspark", gamma)
    source = StatisticalAcceptance(drafter, Confidence(), np.zeros(3, dtype=np.int64), outputs, 0)
    batch = DecodeBatch(cut(*new_room(3, gamma, 0, confidence=False)), source)
    anchors = np.ones(3, dtype=np.int64)
    for request in range(3):
        batch.add(request, int(outputs[request]) - 1, 1, 0, int(outputs[request]))
    while (anchors < outputs).any():
        batch.refill()
        for request in range(3):
            own = BlockTable.empty(1, gamma, confidence=False)
            source.fill(request, int(anchors[request]), own)
            assert (batch.blocks.units[batch.row[request]] == own.units[0]).all(), (request, anchors)
            assert batch.blocks.depth[batch.row[request]] == own.depth[0]
        # Mostly whole blocks: the fastest way through what is at hand.
        step = np.minimum(gamma + 1 - (rng.random(3) < 0.1), outputs - anchors)
        anchors, batch.row[:3], batch.remaining[:3] = anchors + step, batch.row[:3] + step, batch.remaining[:3] - step


def test_policies_that_the_block_cannot_hold_are_refused() -> None:
    with pytest.raises(InputError, match="exceeds the draft block"):
        finished(setting_of(trace_of([(1, 5)]), gamma=3), make_policy("fixed:k=4"))
