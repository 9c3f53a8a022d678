"""Decision replay: every policy decides from a record what it decided when the record was made."""

import msgspec
import numpy as np
import pytest
from synthetic_records import header_of, synthetic_steps

from sglang_dspark.errors import InputError
from sglang_dspark.records import ROUNDED, RecordSet, RecordWriter
from sglang_dspark.records.replay import replay

POLICIES = [
    "argmax:lag=2",
    "argmax:lag=1,pricing=floor",
    "argmax:lag=4,cold=prior",
    "hull:fill=true",
    "hull:fill=false",
    "hull:floor=1,cap=4",
    "early-stop",
    "lookahead",
    "goodput",
    "goodput:window=8",
    "tetris:capacity=30",
    "schedule:upto=4/8,k=5/3/1",
    "fixed:k=3",
    "threshold:t=0.7",
    "threshold:t=0.4,on=survival",
    "guard:min_gain=0.01,baseline=(fixed:k=2)",
    "guard:inner=(argmax:lag=3,cold=prior),baseline=(goodput),min_gain=0.0",
    "argmax-live",
    "self-tuning",
    "self-tuning:rule=foresight",
    "hull:calibrate=online,costs=online",
]


def recorded(folder, policy, **options):
    writer = RecordWriter(folder, header_of(policy, 5))
    for step in synthetic_steps(policy, **options):
        writer.put(step)
    writer.close()
    return RecordSet(folder)


@pytest.mark.parametrize("policy", POLICIES)
def test_decisions_come_out_equal(tmp_path, policy):
    result = replay(recorded(tmp_path, policy, steps=60, explore=0.2))
    assert result.different == 0 and not result.skipped, result.first
    assert result.equal > 30 and result.verified_all > 3 and result.equal + result.verified_all == 60


def test_another_policy_differs_and_the_difference_is_explained(tmp_path):
    records = recorded(tmp_path, "argmax:lag=2", steps=40)
    changed = [
        msgspec.structs.replace(record, policy="fixed:k=2")
        if hasattr(record, "policy") and hasattr(record, "slots")
        else record
        for record in records
    ]
    result = replay(changed)
    assert result.different > 30 and len(result.first) == 10
    assert "fixed:k=2 decides [2 2" in result.first[0] and "recorded [" in result.first[0]
    assert set(result.as_json()) >= {"equal", "different"}


def test_one_wrong_length_is_found(tmp_path):
    records = list(recorded(tmp_path, "hull:fill=true", steps=30))
    step = records[10]
    wrong = step.lengths.copy()
    wrong[0] = (wrong[0] + 1) % 6
    records[10] = msgspec.structs.replace(step, lengths=wrong)
    result = replay(records)
    assert (result.equal, result.different) == (29, 1)
    assert f"step {step.step} of rank 0" in result.first[0] and "first in row 0" in result.first[0]


def test_a_full_block_that_was_not_is_a_difference(tmp_path):
    records = list(recorded(tmp_path, "fixed:k=2", steps=3))
    records[1] = msgspec.structs.replace(records[1], override="late")
    result = replay(records)
    assert (result.equal, result.different) == (2, 1) and "late" in result.first[0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"table": "nowhere"}, "'nowhere' is not in the records"),
        ({"confidence": None}, "no confidences were recorded"),
        ({"lagged": []}, "lagged survivals were not recorded"),
        ({"policy": "hell:fill=true"}, "unknown policy 'hell'"),
    ],
)
def test_steps_without_their_inputs_are_counted_by_reason(tmp_path, change, words):
    records = list(recorded(tmp_path, "argmax:lag=2", steps=5))
    records[2] = msgspec.structs.replace(records[2], **change)
    result = replay(records)
    assert result.equal == 4 and result.different == 0
    assert [count for reason, count in result.skipped.items() if words in reason] == [1]


def test_rounded_records_are_refused(tmp_path):
    header = msgspec.structs.replace(header_of("argmax", 5), fidelity=ROUNDED, run="x")
    with pytest.raises(InputError, match="rounded, not exactly replayable"):
        replay([header])


def test_the_cost_model_travels_exactly(tmp_path):
    from sglang_dspark.cost import load_profile
    from sglang_dspark.records.costs import cost_from_plain, cost_to_plain, table_hash

    cost = load_profile("vllm-b300-dsv4-flash")
    other = cost_from_plain(msgspec.msgpack.decode(msgspec.msgpack.encode(cost_to_plain(cost))))
    assert table_hash(cost) == table_hash(other)
    for requests in (1, 7, 64, 300):
        mine, theirs = (model.prices(requests, 7, 1000.0 * requests) for model in (cost, other))
        for name in ("seconds", "inverse", "floor_inverse", "hull_inverse", "tier_top"):
            np.testing.assert_array_equal(getattr(mine, name), getattr(theirs, name))
    slower = cost.with_terms(host_s=0.5)
    assert table_hash(slower) != table_hash(cost)


def test_a_policy_without_prices_replays_without_a_cost_model(tmp_path):
    records = [
        msgspec.structs.replace(record, table="") if hasattr(record, "slots") else record
        for record in recorded(tmp_path, "threshold:t=0.6", steps=8)
    ]
    assert replay(records).equal == 8


def test_a_forced_budget_is_no_decision(tmp_path):
    records = [
        msgspec.structs.replace(record, override="forced") if hasattr(record, "slots") else record
        for record in recorded(tmp_path, "fixed:k=2", steps=8)
    ]
    assert replay(records).skipped == {"an operator forced the budget": 8}


def test_self_tuning_of_before_it_learned_costs_is_left_out_and_the_reason_given(tmp_path):
    steps = list(synthetic_steps("self-tuning"))
    old = msgspec.structs.replace(header_of("self-tuning", 5), version=3)
    result = replay([old, *steps])
    assert result.equal == result.different == 0
    assert result.skipped == {"self-tuning learned no step costs when records of format 3 were made": len(steps)}
