"""DP attention: ranks step together, at the pace of the largest one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sglang_dspark.cost import load_profile
from sglang_dspark.errors import InputError
from sglang_dspark.policies import make_policy
from sglang_dspark.policies.shared_tier import gathered, group_seconds
from simulator import EngineSettings
from simulator.blocks.drafters import find_drafter
from simulator.engine.recorded_load import recorded_settings
from simulator.engine.recorder import StepView
from simulator.engine.run import Setting
from simulator.results.run import run_once
from simulator.traces import example_trace, first_requests

RANKS = 3


@pytest.fixture(scope="module")
def setting() -> Setting:
    cost = load_profile("vllm-b300-dsv4-flash")
    engine = EngineSettings(max_running_requests=8, replicas=RANKS, dp_attention=True)
    return Setting(
        first_requests(example_trace(), 120), cost, cost, find_drafter("dspark"), engine=engine, concurrency=24
    )


@pytest.mark.parametrize("policy", ["fixed:k=7", "hull", "argmax:lag=2"])
def test_ranks_end_their_steps_together(setting: Setting, policy: str) -> None:
    steps: list[StepView] = []
    figures, recorder = run_once(setting, make_policy(policy), on_step=steps.append)
    assert figures["completed"] == 120 and not np.isnan(recorder.finish_s).any()
    ends: dict[float, set[str]] = {}
    for step in steps:
        ends.setdefault(step.end_s, set()).add(step.kind)
    assert all(len(kinds) == 1 for kinds in ends.values()), "a rank decoded while another prefilled"
    assert max(sum(s.end_s == end for s in steps) for end in list(ends)[:200]) == RANKS
    assert all(len({s.seconds for s in steps if s.end_s == end}) == 1 for end in list(ends)[:100])


def test_lock_step_is_no_faster_than_independent_replicas(setting: Setting) -> None:
    policy = make_policy("fixed:k=7")
    together = run_once(setting, policy)[0]
    apart = run_once(replace(setting, engine=replace(setting.engine, dp_attention=False)), policy)[0]
    assert together["duration"] > apart["duration"]
    assert together["total_output_tokens"] == apart["total_output_tokens"]


def test_one_rank_is_refused() -> None:
    with pytest.raises(InputError, match="replicas of 2 or more"):
        EngineSettings(dp_attention=True)


@pytest.mark.parametrize(("policy", "fills"), [("hull", True), ("argmax:lag=2", True), ("fixed:k=3", False)])
def test_who_fills_fills_the_largest_ranks_tier(setting: Setting, policy: str, fills: bool) -> None:
    """As in the live engine: a rank verifies up to what runs anyway, and never more than its own blocks hold."""
    steps: list[StepView] = []
    run_once(replace(setting, graphs="profile"), make_policy(policy), on_step=steps.append)
    ends: dict[float, list[StepView]] = {}
    for step in steps:
        if step.kind == "decode":
            ends.setdefault(step.end_s, []).append(step)
    gamma, uneven = 7, 0
    for together in ends.values():
        tier = int(setting.cost.executed_tokens(np.array([max(step.tokens for step in together)]))[0])
        for step in together:
            assert step.tokens <= min(tier, step.batch * (1 + gamma))
            assert step.tokens == (min(tier, step.batch * (1 + gamma)) if fills else step.batch * 4)
        uneven += len({step.tokens for step in together}) < len({step.batch for step in together})
    assert not fills or uneven > 0, "some rank made use of another one's tier"


def test_a_step_costs_what_the_group_runs(setting: Setting) -> None:
    """Each rank's seconds are the price of the shared tier, however little of it is its own."""
    asked = gathered([(40, 5, 500), (9, 3, 900), (0, 0, 0)])
    tier = asked.tier(setting.cost.captured)
    draft, verify = group_seconds(setting.cost, asked, tier)
    assert tier == setting.cost.executed_tokens(np.array([40.0]))[0]
    assert draft == max(setting.cost.draft_s(5, 500), setting.cost.draft_s(3, 900))
    assert verify == max(float(setting.cost.verify_s(n, tier, ctx)) for n, ctx in ((5, 500), (3, 900)))


def test_recorded_ranks_are_simulated_in_lock_step() -> None:
    settings = recorded_settings({"attn_dp_size": 2, "dp_size": 1, "max_running_requests": 24, "loop": "overlap"})
    assert settings.dp_attention and settings.replicas == 2 and settings.max_running_requests == 24
    assert not recorded_settings({"attn_dp_size": 1, "dp_size": 2}).dp_attention
