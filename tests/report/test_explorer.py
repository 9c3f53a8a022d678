"""The explorer's cases are what the policies decided, and the reasons are theirs."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest

from sglang_dspark.policies import POLICIES, SCALE, StoppingRule, make_policy
from sglang_dspark.policies.classes.stopping import one_by_one
from simulator.blocks.drafters import ALIASES
from simulator.engine.run import step_costs
from simulator.report.batch import HISTORY, draw_batch, mean_context
from simulator.report.explorer import MOST_REQUESTS, explore
from tests.report.small_reports import setting

TEXTS = [name for name in POLICIES if name != "calibrated"] + ["hull:calibrate=online", "hull:floor=1", "argmax:cap=3"]
SIZE = 12


@cache
def found() -> dict[str, Any]:
    policies = [(text, make_policy(text)) for text in TEXTS]
    return explore(setting(), policies, [("12", SIZE), ("1000", 1000)], 0)


def cases(drafter: str) -> list[dict[str, Any]]:
    return [case for case in found()["cases"] if case["drafter"] == drafter]


def test_there_is_a_case_for_every_drafter_domain_and_load() -> None:
    names = [each["name"] for each in found()["drafters"]]
    assert names == ["DSpark", "DFlash", "EAGLE-3", "MTP-1"]
    assert [case["domain"] for case in cases("DSpark")] == ["math", "math", "code", "code", "chat", "chat"]
    assert {case["requests"] for case in found()["cases"]} == {SIZE, MOST_REQUESTS}
    assert [case["gamma"] for case in cases("MTP-1")] == [1, 1]


@pytest.mark.parametrize("text", TEXTS)
def test_a_case_holds_what_the_policy_decides(text: str) -> None:
    changed = replace(setting(), drafter=ALIASES["dspark"])
    policy = make_policy(text).for_schedule(changed.engine.schedule_for(make_policy(text)) != "overlapped")
    batch = draw_batch(changed, 2, SIZE)
    past = batch.past(changed, policy)
    decision = policy.decide(past, batch.shown_to(policy))
    case = next(each for each in cases("DSpark") if each["domain"] == "chat")
    told = next(each for each in case["policies"] if each["name"] == text)
    assert told["lengths"] == decision.lengths.tolist() and told["verified"] == decision.total
    accepted = np.minimum(decision.lengths, batch.depth)
    assert told["committed"] == accepted.sum() + SIZE and told["wasted"] == decision.total - accepted.sum()
    if not told["spans"]:
        assert told["rule"] and (
            policy.drafts is False or told["yes"] or "orrected" in told["rule"] or policy.bounds(7) != (0, 7)
        )
        return
    # Spans cover the order without a gap, and what is verified is a beginning of it.
    ends = [0, *(last for _, last, _ in told["spans"])]
    assert [first for first, _, _ in told["spans"]] == [end + 1 for end in ends[:-1]] and ends[-1] == SIZE * 7
    first = case["order"][: told["verified"]]
    assert np.bincount(np.array(first, dtype=int) // 7, minlength=SIZE).tolist() == told["lengths"]
    if isinstance(policy, StoppingRule):
        order = np.sort(batch.live.units.ravel())[::-1]
        walked = one_by_one(policy, past, 0, SIZE * SCALE, order)[0]
        assert told["spans"][0][1] == walked or walked == 0


def test_tau_t_and_theta_are_those_of_the_order() -> None:
    for case in cases("DSpark"):
        units = np.array(case["survival"])
        tau = case["requests"] + np.concatenate([[0], np.cumsum(units[case["order"]])])
        assert np.allclose(case["tau"], tau, atol=1e-2)
        assert sorted(case["order"]) == list(range(case["requests"] * 7))
        assert (np.diff(units[case["order"]]) <= 1e-4).all(), "the likeliest first"
        for price in case["prices"]:
            assert np.allclose(price["theta"], 1e3 * np.array(case["tau"]) / price["step_ms"], rtol=1e-3)


def test_the_prices_are_the_engine_s() -> None:
    case = cases("DSpark")[0]
    _, belief = step_costs(setting(), make_policy("hull"))
    prices = belief.prices(SIZE, 7, SIZE * mean_context(setting()))
    told = next(each for each in case["policies"] if each["name"] == "hull")
    assert np.allclose(case["prices"][told["prices"]]["step_ms"], 1e3 * prices.seconds, atol=1e-4)
    assert told["step_ms"] == pytest.approx(1e3 * prices.step_s(told["verified"]), abs=1e-4)


def test_what_a_drafter_cannot_run_is_said() -> None:
    told = {each["name"]: each for each in cases("MTP-1")[0]["policies"]}
    assert "exceeds the draft block" in told["fixed"]["refused"]
    assert not found()["drafters"][1]["confidence"]


def test_the_history_is_one_of_whole_blocks() -> None:
    batch = draw_batch(setting(), 0, 3)
    assert len(batch.history) == HISTORY and all((each.lengths == 7).all() for each in batch.history)
