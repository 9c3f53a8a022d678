"""Which recorded blocks are uncensored, and what they say."""

import msgspec
import numpy as np
import pytest
from synthetic_records import header_of, synthetic_steps

from sglang_dspark.errors import InputError
from sglang_dspark.records import RecordSet, RecordWriter
from sglang_dspark.records.blocks import uncensored_blocks


def recorded(folder, steps, **header):
    writer = RecordWriter(folder, header_of("argmax:lag=2", 5, **header))
    for step in steps:
        writer.put(step)
    writer.close()
    return RecordSet(folder)


def test_cap_accept_shows_every_block(tmp_path):
    steps = list(synthetic_steps(mode="cap-accept", steps=50))
    blocks = uncensored_blocks(recorded(tmp_path, steps))
    np.testing.assert_array_equal(blocks.depth, np.concatenate([step.depth for step in steps]))
    np.testing.assert_array_equal(blocks.confidence, np.concatenate([step.confidence for step in steps]))
    assert blocks.censored == blocks.by_policy == 0 and (blocks.weight == 1).all()
    assert [blocks.rids[number] for number in blocks.request] == [rid for step in steps for rid in step.rids]


def test_only_the_coin_s_steps_count_where_there_is_a_coin(tmp_path):
    steps = list(synthetic_steps(steps=300, explore=0.25))
    blocks = uncensored_blocks(recorded(tmp_path, steps))
    chosen = [step for step in steps if step.explore]
    assert len(blocks) == sum(step.num_requests for step in chosen) and blocks.censored == 300 - len(chosen)
    assert (blocks.weight == 4.0).all() and blocks.by_policy == 0


def test_exploration_is_unbiased_where_the_policy_s_own_choice_is_not(tmp_path):
    """A threshold rule verifies full blocks only when they look good; the coin does not care."""
    policy = "threshold:t=0.75"
    alone = recorded(tmp_path / "a", synthetic_steps(policy, steps=2500, slots=2, seed=1))
    coin = recorded(tmp_path / "b", synthetic_steps(policy, steps=2500, slots=2, seed=1, explore=0.3))
    truth = recorded(tmp_path / "c", synthetic_steps(policy, steps=2500, slots=2, seed=1, mode="cap-accept"))
    mean = float(uncensored_blocks(truth).depth.mean())
    assert uncensored_blocks(coin).depth.mean() == pytest.approx(mean, abs=0.15)
    selected = uncensored_blocks(alone)
    assert selected.by_policy > 0 and selected.depth.mean() > mean + 0.4


def test_full_blocks_of_fixed_count_beside_a_coin(tmp_path):
    steps = list(synthetic_steps("fixed:k=5", steps=40, explore=0.1))
    blocks = uncensored_blocks(recorded(tmp_path, steps))
    assert blocks.censored == 0 and blocks.by_policy == 0 and (blocks.weight == 1).all()


def test_hidden_tails_are_drawn_from_confidences_when_asked(tmp_path):
    steps = list(synthetic_steps("fixed:k=2", steps=3000, slots=4))
    records = recorded(tmp_path, steps)
    with pytest.raises(InputError, match="simulate --complete.*dspark policy fixed:k=5"):
        uncensored_blocks(records)
    blocks = uncensored_blocks(records, complete=True)
    accepted = np.concatenate([step.accepted for step in steps])
    hidden = accepted == 2
    assert blocks.completed == hidden.sum() and blocks.censored == 3000
    np.testing.assert_array_equal(blocks.depth[~hidden], accepted[~hidden])
    assert (blocks.depth[hidden] >= 2).all()
    tail = blocks.confidence[hidden, 2].mean()
    assert (blocks.depth[hidden] >= 3).mean() == pytest.approx(tail, abs=0.03)


def test_thinning_keeps_a_fair_sample(tmp_path):
    records = recorded(tmp_path, synthetic_steps(mode="cap-accept", steps=800))
    whole, thin = uncensored_blocks(records), uncensored_blocks(records, limit=2000)
    assert 900 < len(thin) <= 2000 and thin.seen == len(whole)
    assert thin.depth.mean() == pytest.approx(whole.depth.mean(), abs=0.15)
    assert thin.anchor.mean() == pytest.approx(whole.anchor.mean(), rel=0.1)


def test_mixed_runs_are_refused(tmp_path):
    recorded(tmp_path, synthetic_steps(mode="cap-accept", steps=3))
    recorded(tmp_path, synthetic_steps(mode="cap-accept", steps=3), temperatures=[2.0] * 5)
    with pytest.raises(InputError, match="mix gamma 5 and 5 or different STS vectors"):
        uncensored_blocks(RecordSet(tmp_path))


def test_static_records_have_no_confidences(tmp_path):
    static = {"confidence": None, "mode": "static", "depth": None}
    steps = [
        msgspec.structs.replace(step, **static, lengths=np.full_like(step.lengths, 5))
        for step in synthetic_steps(steps=5)
    ]
    assert uncensored_blocks(recorded(tmp_path, steps)).confidence is None
