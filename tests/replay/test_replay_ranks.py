"""Records of ranks that share a tier: what they asked for is decided again, and what they filled."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from synthetic_records import header_of, synthetic_steps

from sglang_dspark.policies import LiveBlock, allocate, make_policy
from sglang_dspark.records import RecordSet, RecordWriter, StepRecord
from sglang_dspark.records.fit import StepTimes
from sglang_dspark.records.replay import replay

GAMMA, MORE = 5, 6


def in_a_group(step: StepRecord, *, fills: bool) -> StepRecord:
    """The same step beside a rank that asks for `MORE` tokens more; a policy that fills verifies as many."""
    asks, most = step.num_tokens, step.num_requests * (1 + GAMMA)
    tier, lengths = asks + MORE, step.lengths
    if fills and asks < most:
        lengths = allocate(LiveBlock.of(step.confidence).units, min(tier, most) - step.num_requests)
    return msgspec.structs.replace(
        step,
        rank=1,
        lengths=lengths,
        accepted=np.minimum(step.accepted, lengths),
        asked_tokens=np.array([tier, asks]),
        asked_requests=np.array([step.num_requests + 3, step.num_requests]),
        shared_tier=tier,
        graph_tokens=tier,
    )


@pytest.mark.parametrize("policy", ["argmax:lag=2", "hull:fill=true", "lookahead", "fixed:k=3", "threshold:t=0.7"])
def test_filled_steps_are_decided_again(tmp_path, policy: str) -> None:
    plain, fills = list(synthetic_steps(policy, steps=40)), make_policy(policy).fills
    writer = RecordWriter(tmp_path, header_of(policy, GAMMA))
    for step in plain:
        writer.put(in_a_group(step, fills=fills))
    writer.close()
    records = RecordSet(tmp_path)
    result = replay(records)
    assert (result.equal, result.different) == (40, 0), result.first
    filled = sum(step.num_tokens > before.num_tokens for (_, step), before in zip(records.steps(), plain, strict=True))
    assert (filled > 5) is fills


def test_a_rank_that_asked_for_something_else_is_a_difference(tmp_path) -> None:
    steps = [in_a_group(step, fills=True) for step in synthetic_steps("hull:fill=true", steps=3)]
    steps[1] = msgspec.structs.replace(steps[1], asked_tokens=steps[1].asked_tokens + np.array([0, 1]))
    writer = RecordWriter(tmp_path, header_of("hull:fill=true", GAMMA))
    for step in steps:
        writer.put(step)
    writer.close()
    result = replay(RecordSet(tmp_path))
    assert (result.equal, result.different) == (2, 1) and "asks the group for" in result.first[0]


def test_costs_are_fitted_to_the_largest_rank(tmp_path) -> None:
    times = StepTimes()
    step = in_a_group(next(iter(synthetic_steps("hull", steps=1))), fills=True)
    times.add(step)
    assert times.requests == [step.num_requests + 3] and times.tokens == [step.shared_tier]
