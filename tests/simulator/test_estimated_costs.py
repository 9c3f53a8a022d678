"""Results made with an estimate: the error band, the draft that it assumes, gains on dips, the one-go command."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from command_line import assert_one_line_error, call

from sglang_dspark.cost import StepCost, load_profile
from sglang_dspark.cost.estimate.accuracy import error_band
from simulator import Engine, Load, simulate
from simulator.results.estimated import levelled

SHIPPED = "estimate-h100-qwen3-8b-bf16"
POLICIES = ("--policy", "fixed:k=7", "--policy", "hull")
RUN = ("--trace", "example", "--limit", "120", "--replications", "1", "--jobs", "1", "--concurrency", "24", *POLICIES)


def test_every_result_says_how_far_off_such_estimates_were(capsys: pytest.CaptureFixture[str]) -> None:
    answer = call(capsys, "--profile", SHIPPED, "--drafter", "dspark:qwen3-8b", *RUN)
    assert answer.status == 0, answer.err
    said = " ".join(answer.out.split())
    assert f"warning: the step costs are an {error_band().text}" in said
    assert "; draft assumed: 5 layers of the target's geometry in bfloat16, Markov head of rank 256, gamma 7" in said
    report = call(capsys, "--profile", SHIPPED, "--json", *RUN).report
    (band,) = [one for one in report["assumptions"] if one["key"] == "estimate_error"]
    assert band["value"] == error_band().error and "not measured" in report["setting"]["profile_provenance"]
    assert any("estimate, not measured" in warning for warning in report["warnings"])


def test_measured_costs_with_an_estimated_belief_say_so() -> None:
    engine = Engine("vllm-b300-dsv4-flash", policy_profile="estimate-b300x4-deepseek-v4-flash")
    result = simulate(Load("example", concurrency=24), engine, ["fixed:k=7", "hull"], replications=1, jobs=1)
    assert any("what the policies believe is an estimate" in warning for warning in result.warnings)


def test_an_estimate_in_one_go_is_the_same_as_its_file(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("aiconfigurator_core", reason="needs aiconfigurator-core (extra `estimate`)")
    name = "estimate:h100_sxm/Qwen3-8B,gemm=bfloat16"
    once, file = (call(capsys, "--profile", each, "--json", *RUN) for each in (name, SHIPPED))
    assert once.status == file.status == 0, once.err
    assert once.report["setting"]["profile"] == name
    assert once.report["results"][0]["output_throughput"] == file.report["results"][0]["output_throughput"]
    assert once.out == call(capsys, "--profile", name, "--json", *RUN).out
    for text, says in (
        ("estimate:h999/Qwen3-8B", "unknown GPU 'h999', expected one of a100_sxm"),
        ("estimate:h100_sxm/nobody/Nothing-1B", "unknown model 'nobody/Nothing-1B', expected a folder"),
        ("estimate:h100_sxm/Qwen3-8B,tp=3", "tp=3 is refused"),
    ):
        assert_one_line_error(call(capsys, "--profile", text, *RUN), says)


def dipped(cost: StepCost, at: tuple[int, int], depth: float) -> StepCost:
    """The model with verify steps of `at` tokens made cheaper, all of them."""
    inside = (cost.verify.probes >= at[0]) & (cost.verify.probes <= at[1])
    seconds = np.where(inside, cost.verify.seconds * (1 - depth), cost.verify.seconds)
    return replace(cost, verify=replace(cost.verify, seconds=seconds))


def test_a_gain_that_hangs_on_a_dip_is_warned_of() -> None:
    """Blocks of three of 24 requests take 96 tokens: half the price there, and `fixed:k=3` wins by nothing else."""
    cost = load_profile(SHIPPED)
    assert levelled(cost) is cost, "this one has no dip worth a word"
    odd = dipped(cost, (72, 130), 0.5)

    def warnings(model: StepCost) -> list[str]:
        load = Load("example", concurrency=24)
        result = simulate(load, model, ["fixed:k=7", "fixed:k=3"], replications=1, jobs=1)
        return [warning for warning in result.warnings if "hangs on" in warning]

    (said,) = warnings(odd)
    assert "the gain of fixed:k=3 over fixed:k=7" in said and "dips of the estimate" in said
    assert not warnings(cost)
