"""What drafting costs: by drafter, by gamma, by verified positions, with and without the head told apart."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from simulated_worlds import finished, flat_cost, setting_of, trace_of

from sglang_dspark.cost import StepCost, load_profile
from sglang_dspark.errors import InputError
from sglang_dspark.policies import make_policy
from simulator import simulate
from simulator.blocks.draft_time import drafted_positions, stated_draft_time, with_drafter
from simulator.blocks.drafters import DRAFTERS, choose_drafter, find_drafter
from simulator.engine.run import Setting
from simulator.inputs import Acceptance
from simulator.results.run import run_once

DRAFT_S = 0.002


def told(head_s: float = 0.0, gamma: int | None = 7) -> StepCost:
    """2 ms of draft and 10 ms of verify a step; `head_s` of the draft at each of its `gamma` positions."""
    cost = flat_cost(DRAFT_S, 0.010, draft_head_s=head_s)
    return cost if gamma is None else replace(cost, meta={"gamma": gamma})


def setting(drafter: str, cost: StepCost, gamma: int | None = None) -> Setting:
    return replace(setting_of(trace_of([(5, 30)] * 4), cost), drafter=find_drafter(drafter, gamma))


def draft_ms(each: Setting, policy: str) -> float:
    figures, _ = run_once(each, make_policy(policy))
    assert figures["verify_ms_per_step"] == pytest.approx(10.0)
    return figures["draft_ms_per_step"]


@pytest.mark.parametrize("policy", ["fixed:k=1", "fixed:k=7", "hull", "argmax:lag=2"])
@pytest.mark.parametrize("name", ["dspark", "dflash"])
def test_a_parallel_block_costs_the_same_whatever_is_verified(name: str, policy: str) -> None:
    assert draft_ms(setting(name, told()), policy) == pytest.approx(2.0)


@pytest.mark.parametrize(
    "policy, positions",
    [
        ("fixed:k=1", 1),
        ("fixed:k=3", 3),
        ("fixed:k=7", 7),
        ("hull", 7),
        ("hull:cap=4", 4),
        ("schedule:upto=2,k=5/2", 7),
        ("guard:inner=(argmax:cap=2),baseline=(fixed:k=3)", 3),
        ("guard:inner=hull,baseline=(fixed:k=3)", 7),
    ],
)
def test_a_sequential_drafter_drafts_what_its_policy_may_verify(policy: str, positions: int) -> None:
    """EAGLE-3: one layer a position against five a block, so 1/5 of the profile's block each."""
    drafter = find_drafter("eagle3")
    chosen = make_policy(policy)
    assert drafted_positions(chosen, drafter) == positions
    assert drafted_positions(chosen, find_drafter("dspark")) == 7
    scaled = with_drafter(told(), drafter, positions)
    assert scaled.draft_s(4) == pytest.approx(0.2 * positions * DRAFT_S)


def test_eagle3_and_mtp_in_a_run() -> None:
    assert draft_ms(setting("eagle3", told()), "fixed:k=3") == pytest.approx(0.2 * 3 * 2.0)
    assert draft_ms(setting("mtp1", told()), "fixed:k=1") == pytest.approx(0.2 * 2.0)
    assert draft_ms(setting("mtp:deepseek-v4-pro", told()), "hull") == pytest.approx(0.2 * 4 * 2.0)
    none = replace(setting_of(trace_of([(5, 30)]), told()), drafter=DRAFTERS["none"])
    run, _ = finished(none, make_policy("none"))
    assert run.recorder.draft_s == 0 and drafted_positions(make_policy("none"), find_drafter("eagle3")) == 0


def test_a_head_told_apart_prices_every_gamma() -> None:
    """2 ms for 7 positions with 20 us of head each: 1.86 ms of backbone, so 1.94 at 4 and 2.18 at 16."""
    cost = told(20e-6)
    assert draft_ms(setting("dspark", cost), "hull") == pytest.approx(2.0)
    assert draft_ms(setting("dspark", cost, 4), "hull") == pytest.approx(1.94)
    assert draft_ms(setting("dspark:glm-5.2", cost), "hull") == pytest.approx(2.18)
    assert draft_ms(setting("dflash", cost), "hull") == pytest.approx(1.86), "no Markov head"
    assert draft_ms(setting("eagle3", cost), "fixed:k=5") == pytest.approx(1.86), "five layers' worth of backbone"
    for gamma in (4, 16):
        drafter = find_drafter("dspark:glm-5.2", gamma)
        assert with_drafter(told(), drafter, gamma).draft_s(4) == pytest.approx(DRAFT_S), "one pass whatever gamma"


def test_the_paper_s_overhead_of_the_head_can_be_expressed() -> None:
    """+0.2 to 1.3 % of a step for the head, at gamma 4 to 16: DSpark against the same backbone without one."""
    cost = told(10e-6)
    for gamma, share in ((4, 0.0034), (16, 0.0135)):
        drafter = find_drafter("dspark:glm-5.2", gamma)
        with_head = with_drafter(cost, drafter, gamma).draft_s(4)
        without = with_drafter(cost, find_drafter("dflash"), 7).draft_s(4)
        assert (with_head - without) / (without + 0.010) == pytest.approx(share, abs=1e-4)


def test_a_measured_mtp_is_expressed_by_its_scale() -> None:
    """0.11 ms a draft against a block of 2 ms."""
    drafter = choose_drafter("mtp1", "0.92")
    measured = replace(drafter, cost_scale=0.055)
    each = replace(setting_of(trace_of([(5, 30)] * 4), told()), drafter=measured)
    assert draft_ms(each, "fixed:k=1") == pytest.approx(0.11)
    (stated,) = stated_draft_time(told(), measured)
    assert "0.055" in stated.text and "as its acceptance file says" in stated.text


def test_context_of_the_draft_goes_with_the_backbone() -> None:
    cost = flat_cost(DRAFT_S, 0.010, draft_context_token_s=1e-7)
    eagle = with_drafter(cost, find_drafter("eagle3"), 5)
    assert eagle.draft_s(4, 10_000) == pytest.approx(cost.draft_s(4, 10_000))
    assert with_drafter(cost, find_drafter("mtp1"), 1).draft_s(4, 10_000) == pytest.approx(0.2 * (0.002 + 0.001))


def test_policies_believe_the_drafter_s_time_too() -> None:
    """A belief of its own is scaled like the costs, and the same object stays the same."""
    each = setting("eagle3", told())
    run, _ = finished(each, make_policy("fixed:k=2"))
    assert run.model.belief is run.model.cost
    other = replace(each, belief=flat_cost(0.005, 0.010))
    run, _ = finished(other, make_policy("fixed:k=2"))
    assert run.model.belief.draft_s(1) == pytest.approx(0.4 * 0.005)


def test_what_cannot_be_priced_is_refused() -> None:
    dspark = find_drafter("dspark", 4)
    with pytest.raises(InputError, match="draft_head_s is refused: profile 'flat' does not say of how many tokens"):
        with_drafter(told(20e-6, gamma=None), dspark, 4)
    with pytest.raises(InputError, match="draft_head_s=0.001 is refused: 7 positions of it exceed the 2 ms"):
        with_drafter(told(1e-3), find_drafter("dflash"), 7)
    with pytest.raises(InputError, match="meta.gamma='seven' is refused"):
        with_drafter(replace(told(), meta={"gamma": "seven"}), dspark, 4)
    together = replace(told(), splits_draft=False)
    assert with_drafter(together, dspark, 4) is together
    with pytest.raises(InputError, match="does not tell draft from verify time, so drafter 'eagle3:qwen3-4b' cannot"):
        setting("eagle3", together).check(make_policy("fixed:k=3"))


def test_the_rule_is_stated_where_it_is_used() -> None:
    profile = load_profile("vllm-b300-dsv4-flash")
    assert stated_draft_time(profile, find_drafter("dspark")) == (), "the profile's own block"
    (other,) = stated_draft_time(profile, find_drafter("dspark", 3))
    assert "a block of gamma 3 is drafted in the profile's draft time for gamma 7" in other.text
    (unknown,) = stated_draft_time(flat_cost(), find_drafter("dspark"))
    assert "whose gamma it does not say" in unknown.text
    (eagle,) = stated_draft_time(profile, find_drafter("eagle3"))
    assert "drafts a position in 0.2 of the time of the profile's block" in eagle.text
    (heads,) = stated_draft_time(told(20e-6), find_drafter("dspark:glm-5.2"))
    assert "for gamma 7 and +9 heads of 20 us" in heads.text
    result = simulate(
        trace_of([(5, 9)]), profile, ["fixed:k=3"], acceptance=Acceptance(drafter="eagle3"), replications=1, jobs=1
    )
    assert eagle.text in {each.text for each in result.assumptions}
    assert np.isclose(result.results[0].figures["draft_ms_per_step"], 0.6e3 * profile.draft_s(1), rtol=0.1)
