"""A switch on trial: what is compared, when it ends, and that the engine goes back at one step."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_dspark.errors import InputError
from sglang_dspark.policies import make_policy
from sglang_dspark.serving.base.steps import BatchView, StepDecision
from sglang_dspark.serving.base.trial_plan import TrialPlan
from sglang_dspark.serving.feedback.trial import BLOCK, WARM_UP, Ledger, Trial, compared


def step(number: int, rows: int, seconds: float | None, accepted: int = 2) -> Any:
    batch = BatchView(np.arange(rows), np.ones(rows, dtype=np.int64))
    decision = StepDecision("policy", accepted * rows)
    return SimpleNamespace(
        step=number, step_s=seconds, batch=batch, accepted=np.full(rows, accepted), decision=decision
    )


def ledger(rate: float, blocks: int, *, rows: int = 8, noise: float = 0.02, seed: int = 0, since: int = 0) -> Ledger:
    """Blocks of steps of 3 tokens a request at `rate` tokens a second of the batch."""
    rng, found = np.random.default_rng(seed), Ledger(since)
    for number in range(since, since + (WARM_UP if since else 0) + blocks * BLOCK):
        found.on_step(step(number, rows, 3 * rows / rate * float(rng.lognormal(0, noise))))
    return found


def test_steps_of_one_size_class_make_blocks_and_the_warm_up_is_left_out() -> None:
    found = ledger(1000.0, 4, noise=0.0, since=100)
    assert {size: len(blocks) for size, blocks in found.blocks.items()} == {4: 4}
    rate, seconds, tpot = found.blocks[4][0]
    assert rate == pytest.approx(1000.0) and seconds == pytest.approx(BLOCK * 24 / 1000) and tpot == pytest.approx(8e-3)
    assert found.tpot_ms() == pytest.approx(8.0)
    before = dict(found.blocks)
    assert not found.on_step(step(500, 8, None)) and found.blocks == before


@settings(max_examples=20, deadline=None)
@given(st.floats(-0.5, 1.0), st.integers(0, 1000))
def test_the_gain_is_found_within_its_error(gain: float, seed: int) -> None:
    found = compared(ledger(1000.0, 20, seed=seed), ledger(1000.0 * (1 + gain), 20, seed=seed + 1, since=50))
    assert abs(found.gain - gain) < 6 * found.error and found.blocks == 20 and found.error < 0.02


def test_only_like_load_is_compared() -> None:
    assert compared(ledger(1000.0, 5, rows=8), ledger(9000.0, 5, rows=64)).blocks == 0
    both = ledger(1000.0, 5, rows=8)
    both.blocks |= ledger(5000.0, 5, rows=64).blocks
    after = ledger(5500.0, 5, rows=64, since=1)
    assert compared(both, after).gain == pytest.approx(0.1, abs=0.02)


def trial(before: Ledger, seconds: float = 100.0, tpot_ms: float | None = None) -> tuple[Trial, list[float]]:
    clock = [0.0]
    plan = TrialPlan(seconds, tpot_ms)
    return Trial(plan, "tetris:capacity=8", make_policy("hull"), "hull", before, lambda: clock[0]), clock


def test_one_that_is_clearly_worse_ends_early_and_one_that_is_better_is_kept() -> None:
    worse, _ = trial(ledger(1000.0, 20))
    worse.look(ledger(600.0, 8, since=10))
    assert worse.due and "behind beyond the noise" in worse.sentence() and "back to hull" in worse.sentence()
    better, clock = trial(ledger(1000.0, 20))
    better.look(ledger(1100.0, 8, since=10))
    assert better.verdict == "running" and not better.due
    clock[0] = 101.0
    better.look(ledger(1100.0, 9, since=10))
    assert (better.verdict, better.reason) == ("kept", "it is not behind") and "it stays" in better.sentence()


def test_noise_does_not_turn_a_trial() -> None:
    """The same policy twice, looked at after every block: it is almost always kept."""
    kept = 0
    for seed in range(40):
        same, clock = trial(ledger(1000.0, 30, noise=0.1, seed=seed))
        for blocks in range(2, 30, 5):
            same.look(ledger(1000.0, blocks, noise=0.1, seed=1000 + seed, since=10))
        clock[0] = 101.0
        same.look(ledger(1000.0, 30, noise=0.1, seed=1000 + seed, since=10))
        kept += same.verdict == "kept"
    assert kept >= 39


def test_a_limit_on_latency_that_held_before_and_no_longer_does() -> None:
    slower, _ = trial(ledger(1000.0, 20), tpot_ms=9.0)
    slower.look(ledger(1000.0, 8, since=10))
    assert slower.verdict == "running"
    slower.look(ledger(500.0, 2, rows=64, since=10))
    assert slower.verdict == "running", "two blocks are not enough"
    slower.look(ledger(5000.0, 8, rows=64, since=10))
    assert slower.due and "12.8 ms per output token exceed 9 ms" in slower.reason


def test_a_rule_that_raises_goes_back_and_load_that_was_not_met_keeps() -> None:
    raised, _ = trial(ledger(1000.0, 20))
    raised.fell_back()
    assert raised.due and raised.reason == "it raised, and a fallback decided"
    other, clock = trial(ledger(1000.0, 20, rows=8))
    clock[0] = 101.0
    other.look(ledger(1000.0, 3, rows=64, since=10))
    assert (other.verdict, other.reason) == ("kept", "no like load was met")


@pytest.mark.parametrize(("seconds", "tpot_ms"), [(9.0, None), (1e6, None), (60.0, 0.0), (60.0, float("nan"))])
def test_a_bad_plan_is_refused(seconds: float, tpot_ms: float | None) -> None:
    with pytest.raises(InputError, match="is refused, expected"):
        TrialPlan(seconds, tpot_ms)
