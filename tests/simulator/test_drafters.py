"""Drafters by name: published tables against what they yield, what ends them, and what the report says of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from command_line import PROFILE, QUICK, assert_one_line_error, call
from simulated_worlds import flat_cost, setting_of, trace_of

from sglang_dspark.errors import InputError
from sglang_dspark.policies import make_policy
from simulator import Confidence, simulate
from simulator.blocks.acceptance import BlockTable, StatisticalAcceptance
from simulator.blocks.drafters import ALIASES, DRAFTERS, PUBLISHED, find_drafter
from simulator.blocks.published import falling_differences
from simulator.blocks.survival import accept_length, survivals
from simulator.inputs import Acceptance
from simulator.results.whose import same_model

# DSpark paper, Table 1: mean accepted length (bonus included) of three data sets a domain (math, code, chat).
TABLE_1 = {
    "dspark:qwen3-4b-table1": (16.70 / 3, 15.37 / 3, 10.47 / 3),
    "dflash:qwen3-4b-table1": (14.40 / 3, 13.32 / 3, 8.86 / 3),
    "eagle3:qwen3-4b-table1": (13.68 / 3, 11.62 / 3, 7.20 / 3),
    "dspark:qwen3-8b": (16.96 / 3, 15.85 / 3, 10.51 / 3),
    "dflash:qwen3-8b": (14.31 / 3, 13.39 / 3, 8.90 / 3),
    "eagle3:qwen3-8b": (13.98 / 3, 12.46 / 3, 7.74 / 3),
    "dspark:qwen3-14b": (16.89 / 3, 15.71 / 3, 10.41 / 3),
    "dflash:qwen3-14b": (14.23 / 3, 13.36 / 3, 8.76 / 3),
    "eagle3:qwen3-14b": (13.55 / 3, 11.96 / 3, 7.57 / 3),
    "dspark:gemma4-12b": (16.95 / 3, 15.26 / 3, 9.76 / 3),
    "dflash:gemma4-12b": (14.71 / 3, 13.04 / 3, 8.41 / 3),
    "eagle3:gemma4-12b": (16.16 / 3, 14.25 / 3, 8.97 / 3),
}
# The figure's own model, rounded in print: Figure 2's positions multiply to about Table 1's lengths.
FIGURE_2 = {name.removesuffix("-table1"): lengths for name, lengths in TABLE_1.items() if name.endswith("-table1")}


@pytest.mark.parametrize("name", TABLE_1)
def test_scaled_drafters_have_the_lengths_of_table_1(name: str) -> None:
    drafter = find_drafter(name)
    lengths = [accept_length(values) for values in drafter.acceptance.values()]
    assert drafter.domains == ("math", "code", "chat") and lengths == pytest.approx(TABLE_1[name], rel=0.005)
    method = name.partition(":")[0]
    for domain, values in drafter.acceptance.items():
        shape = np.array(DRAFTERS[f"{method}:qwen3-4b"].acceptance[domain])
        shift = np.log(np.array(values) / (1 - np.array(values))) - np.log(shape / (1 - shape))
        assert shift == pytest.approx(shift[0]), "one shift a domain"
    assert any("scaled" in stated.text for stated in drafter.assumptions)


@pytest.mark.parametrize("name", FIGURE_2)
def test_figure_2_agrees_with_table_1(name: str) -> None:
    lengths = [accept_length(values) for values in find_drafter(name).acceptance.values()]
    assert lengths == pytest.approx(FIGURE_2[name], abs=0.05)


def test_simulated_lengths_of_a_scaled_drafter_are_those_of_the_table() -> None:
    """Drawn blocks, per decode step as the paper counts."""
    drafter, requests = find_drafter("dspark:gemma4-12b"), 1500
    for domain in range(3):
        length = np.full(requests, 300)
        source = StatisticalAcceptance(drafter, Confidence(), np.full(requests, domain), length, 0)
        blocks, steps, tokens = BlockTable.empty(301, 7, confidence=False), 0, 0
        for request in range(requests):
            source.fill(request, 0, blocks)
            at = 1
            while at < 293:
                steps, tokens, at = steps + 1, tokens + blocks.depth[at] + 1, at + int(blocks.depth[at]) + 1
        assert tokens / steps == pytest.approx(TABLE_1["dspark:gemma4-12b"][domain], rel=0.02)


def test_golden_lengths_become_survivals_while_they_fall() -> None:
    """InferenceX, DeepSeek-V4-Pro DSpark: 1.84 2.51 3.01 3.36 3.61 3.77, then 3.73."""
    (values,) = find_drafter("dspark:deepseek-v4-pro").acceptance.values()
    assert survivals(values) == pytest.approx([0.84, 0.67, 0.50, 0.35, 0.25, 0.16])
    for gamma in (7, 8):
        with pytest.raises(InputError, match=f"gamma={gamma} is refused .* falls .3.77 at 6, 3.73 at 7"):
            find_drafter("dspark:deepseek-v4-pro", gamma)
    (mtp,) = find_drafter("mtp1").acceptance.values()
    assert mtp == pytest.approx([0.855])
    assert falling_differences([[1.5, 1.9, 2.2]])[1] == ""
    survival, why = falling_differences([[1.5, 1.9, 2.4], [1.7, 1.9, 2.0]])
    assert survival == pytest.approx([0.6, 0.3]) and "beyond 2 the accept length gains more" in why


def test_rows_by_position_are_averaged() -> None:
    """vllm-ascend #13640, two logged intervals."""
    (values,) = find_drafter("dspark:deepseek-v4-flash").acceptance.values()
    assert survivals(values) == pytest.approx([0.715, 0.448, 0.3215, 0.178, 0.1285, 0.08, 0.049])
    assert find_drafter("dspark:glm-5.2").gamma == 16


@pytest.mark.parametrize("name", DRAFTERS)
def test_every_drafter_is_a_drafter(name: str) -> None:
    drafter = find_drafter(name)
    for values in drafter.acceptance.values():
        assert len(values) == drafter.gamma and all(0 <= value <= 1 for value in values)
        assert list(survivals(values)) == sorted(survivals(values), reverse=True)
    if name in PUBLISHED:
        assert drafter.name == name and drafter.origin.model and drafter.origin.source and drafter.origin.licence
        assert drafter.origin.data and drafter.origin.temperature
    if name == "none":
        with pytest.raises(InputError, match="it drafts nothing"):
            find_drafter(name, 1)
        return
    cut = find_drafter(name, 1)
    assert cut.gamma == 1 and cut.origin == drafter.origin


def test_drafters_are_cut_or_refused() -> None:
    assert find_drafter("dflash", 3).acceptance["math"] == DRAFTERS["dflash"].acceptance["math"][:3]
    for name, gamma, full in (("dspark", 8, "dspark:qwen3-4b"), ("dspark", 0, "dspark:qwen3-4b"), ("none", 5, "none")):
        with pytest.raises(InputError, match=f"gamma={gamma} is refused for drafter '{full}'"):
            find_drafter(name, gamma)
    with pytest.raises(InputError, match="gamma=2 is refused .* the full name has more"):
        find_drafter("mtp1", 2)
    with pytest.raises(InputError, match="unknown drafter 'medusa', expected one of dspark"):
        find_drafter("medusa")


@pytest.mark.parametrize(
    "one, other, same",
    [
        ("Qwen3-4B", "Qwen3-14B", False),
        ("Qwen3-4B", "Qwen/Qwen3-4B-FP8", True),
        ("DeepSeek-V4-Flash-0731", "DeepSeek-V4-Flash-0731, DSpark draft", True),
        ("DeepSeek-V4-Flash", "DeepSeek-V4-Flash-0731", True),
        ("DeepSeek-V4-Pro-0813", "DeepSeek-V4-Flash-0731, DSpark draft", False),
        ("GLM-5.2-NVFP4", "zai/GLM-5.2-FP8", True),
        ("GLM-5.2", "GLM-5", False),
        ("Qwen3-4B", "FP8", False),
    ],
)
def test_names_of_one_model(one: str, other: str, same: bool) -> None:
    assert same_model(one, other) is same and same_model(other, one) is same


def test_another_model_s_acceptance_is_a_warning() -> None:
    trace, policies = trace_of([(5, 20)] * 4), ["fixed:k=3"]
    flash = simulate(trace, PROFILE, policies, replications=1, jobs=1)
    (warning,) = [each for each in flash.warnings if "acceptance" in each]
    assert "that of Qwen3-4B (dspark:qwen3-4b)" in warning and "DeepSeek-V4-Flash-0731" in warning
    assert warning.count("\n") == 0 and "--drafter dspark:deepseek-v4-flash" in warning
    for change in (Acceptance("dspark:deepseek-v4-flash"), Acceptance(own="0.6,0.5,0.4")):
        found = simulate(trace, PROFILE, policies, acceptance=change, replications=1, jobs=1)
        assert not any("acceptance" in each for each in found.warnings), change
    for profile, chosen in ((PROFILE, ["none"]), (flat_cost(), policies)):  # nothing drafts; a profile of no model
        found = simulate(trace, profile, chosen, replications=1, jobs=1)
        assert not any("acceptance" in each for each in found.warnings), chosen


def test_the_report_says_whose_acceptance_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    base = ("--trace", "example", "--profile", PROFILE, *QUICK, "--policy", "fixed:k=3")
    table = " ".join(call(capsys, *base, "--wide", "--drafter", "dspark:deepseek-v4-flash").out.split())
    assert "acceptance: DeepSeek-V4-Flash-0731 with DSpark; bug report, workload unstated" in table
    assert "vllm-ascend/issues/13640" in table
    stated = call(capsys, *base, "--json").report["setting"]["acceptance"]
    assert stated["model"] == "Qwen3-4B" and stated["source"].startswith("DSpark paper")
    assert stated["accept_length"] == {"math": 5.563, "code": 5.164, "chat": 3.51}
    assert_one_line_error(
        call(capsys, *base, "--drafter", "dspark:deepseek-v4-pro", "--gamma", "7"), "beyond 6 the accept length falls"
    )


def test_a_trace_with_domains_runs_with_a_drafter_of_one() -> None:
    """The example's requests are math, code and chat; GLM's acceptance knows one workload and 16 positions."""
    result = simulate(
        "example",
        PROFILE,
        ["fixed:k=16", "hull"],
        acceptance=Acceptance(drafter="dspark:glm-5.2"),
        replications=1,
        jobs=1,
    )
    assert result.setting["gamma"] == 16
    assert result.results[0].figures["accept_length"] == pytest.approx(4.35, rel=0.05)
    assert any("every request is accepted as" in each.text for each in result.assumptions)


def test_short_names_are_full_ones() -> None:
    for short, drafter in ALIASES.items():
        setting = replace(setting_of(trace_of([(5, 9)])), drafter=drafter)
        setting.check(make_policy("fixed:k=1"))
        assert drafter.name in PUBLISHED and DRAFTERS[short] is drafter
