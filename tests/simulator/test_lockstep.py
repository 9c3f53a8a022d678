"""DP attention: ranks step together, at the pace of the largest one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from sglang_dspark.cost import load_profile
from sglang_dspark.errors import InputError
from sglang_dspark.policies import make_policy
from simulator import EngineSettings
from simulator.blocks.drafters import find_drafter
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
