"""SGLang's captured batch sizes and limits by a rule, and a step-cost model on such graphs.

tests/serving/test_graph_rule.py holds the rule against SGLang itself; here are values that its source gives by hand.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_dspark.cost import StepCost, load_profile
from sglang_dspark.cost.capture import captured_as
from sglang_dspark.cost.curves import Curve
from sglang_dspark.cost.graphs import Machine, captured_batches, listed_batches, request_pool
from sglang_dspark.errors import InputError

B300 = "vllm-b300-dsv4-flash"


@pytest.mark.parametrize(
    ("gib", "tp", "most", "chunk"),
    [
        (15.0, 1, 8, 2048),
        (15.0, 8, 8, 2048),
        (24.0, 1, 48, 4096),
        (24.0, 4, 160, 4096),
        (40.0, 3, 32, 4096),
        (40.0, 4, 160, 4096),
        (79.6, 1, 256, 8192),
        (79.6, 8, 512, 8192),
        (140.4, 2, 256, 8192),
        (179.0, 1, 512, 16384),
        (None, 8, 160, 4096),
    ],
)
def test_memory_and_tp_decide(gib: float | None, tp: int, most: int, chunk: int) -> None:
    machine = Machine.of({}, gib, tp)
    assert (machine.graph_limit(), machine.prefill_chunk()) == (most, chunk)
    assert machine.graph_limit(20) == min(most, 20)


def test_lists() -> None:
    assert listed_batches(50, drafting=True) == [*range(1, 9), *range(10, 33, 2), 40, 44, 48, 50]
    assert listed_batches(50, drafting=False) == [1, 2, 4, 8, 12, 16, 24, 32, 40, 48, 50]
    assert listed_batches(512, drafting=True)[-3:] == listed_batches(512, drafting=False)[-3:] == [480, 496, 512]


def test_pool_and_alignment_cut_the_list() -> None:
    sizes = listed_batches(256, drafting=True)
    assert captured_batches(sizes, 37, width=8)[-3:] == (30, 32, 37)
    # Four ranks share the tokens of a step: of one token a request, only every fourth batch size divides.
    assert captured_batches(sizes, 37, width=1, alignment=4) == (4, 8, 12, 16, 20, 24, 28, 32, 40)
    assert captured_batches([1, 2, 4, 8], 100, width=8) == (1, 2, 4, 8)
    with pytest.raises(InputError, match="no batch size"):
        captured_batches([1, 2], 2, width=1, alignment=64 * 3)


def test_limits_by_model_and_policy() -> None:
    qwen, flash = Machine.of({"model": "Qwen3-8B"}), Machine.of({"model": "deepseek-ai/DeepSeek-V4-Flash"})
    assert (qwen.running_limit(drafting=True), qwen.running_limit(drafting=False)) == (48, None)
    assert flash.running_limit(drafting=True) == flash.running_limit(drafting=False) == 256
    assert not Machine.of({"model": "DeepSeek-V3.2"}).deepseek_v4
    assert request_pool(None, 1_000_000) == 2048  # the context length is not known: the least that SGLang takes
    assert request_pool(None, 1_000_000, 131_072) == 3906
    assert request_pool(48, 61) == 30


def test_a_machine_says_where_it_is_from() -> None:
    machine = Machine.of({"gpu_memory_gib": 268, "tp_size": 4, "hardware": "4x NVIDIA B300 (TP4)"})
    assert machine.words == "268 GiB a GPU (profile), TP 4 (profile)" and machine.captures
    assert Machine.of({"tp_size": 4}, tp=8).words == "GPU memory unknown, as SGLang then has it, TP 8 (given)"
    assert not Machine.of({"hardware": "cpu (x86_64)"}).captures


@pytest.mark.parametrize(
    ("meta", "says"),
    [
        ({"gpu_memory_gib": 0}, "gpu-memory=0"),
        ({"gpu_memory_gib": "80"}, "gpu-memory='80'"),
        ({"gpu_memory_gib": float("nan")}, "gpu-memory=nan"),
        ({"tp_size": 0}, "tp=0"),
        ({"tp_size": True}, "tp=True"),
    ],
)
def test_bad_machines_are_refused(meta: dict[str, object], says: str) -> None:
    with pytest.raises(InputError, match=says):
        Machine.of(meta)


def line(slope_s: float, last: int, step: int = 8, **more: object) -> StepCost:
    """Verify costs 10 ms and `slope_s` a token, measured in graphs up to `last`; a draft 1 ms and 10 us a request."""
    tokens = np.arange(step, last + 1, step)
    requests = np.array([1.0, 64.0])
    draft, verify = Curve(requests, 0.001 + 1e-5 * requests), Curve(tokens.astype(float), 0.01 + slope_s * tokens)
    return StepCost(
        "line",
        "tiered",
        draft,
        verify,
        captured=tokens,
        captured_requests=64,
        terms=dict.fromkeys(load_profile(B300).terms, 0.0),
        **more,
    )  # type: ignore[arg-type]


def test_the_executed_graph_is_priced_and_the_draft_padded() -> None:
    cost = captured_as(line(1e-5, 512), (1, 2, 4, 8), 8)
    assert cost.captured is not None and cost.captured.tolist() == [8, 16, 32, 64] and cost.captured_requests == 8
    assert cost.verify_s(3, 17) == cost.verify_s(3, 32) == pytest.approx(0.01 + 32e-5)
    assert cost.draft_s(3) == cost.draft_s(4) == pytest.approx(0.001 + 4e-5)
    assert cost.draft_s(20) == pytest.approx(0.001 + 20e-5, rel=0.02)  # without a graph: as many as there are


def test_graphs_beyond_the_measured_ones_lie_on_the_line_of_the_upper_half() -> None:
    cost = captured_as(line(1e-5, 512), (32, 64, 128), 8)
    assert cost.verify_s(128, 1024) == pytest.approx(0.01 + 1024e-5)
    assert not cost.beyond_probes(64, 512) and cost.beyond_probes(60, 513)
    bent = line(1e-5, 512)
    bent = replace(
        bent, verify=replace(bent.verify, seconds=np.where(bent.verify.probes < 256, 0.005, bent.verify.seconds))
    )
    assert captured_as(bent, (32, 64, 128), 8).verify_s(128, 1024) == pytest.approx(0.01 + 1024e-5)
    falling = captured_as(line(-1e-5, 512), (32, 64, 128), 8)
    assert falling.verify_s(128, 1024) == falling.verify_s(64, 512)


def test_b300_under_sglangs_graphs() -> None:
    """The profile's graphs end at 1,008 tokens; SGLang captures 192 whole blocks of 8, which run eager on vLLM."""
    profile = load_profile(B300)
    sizes = captured_batches(listed_batches(512, drafting=True), 256, width=8)
    cost = captured_as(profile, sizes, 8)
    assert cost.last_captured == 2048 and profile.last_captured == 1008
    assert float(profile.verify_s(192, 1536)) == pytest.approx(0.104, rel=0.02)
    upper = profile.verify.probes >= 504
    slope = np.polyfit(profile.verify.probes[upper], profile.verify.seconds[upper], 1)[0]
    assert float(cost.verify_s(192, 1536)) == pytest.approx(0.020256 + 528 * slope)
    assert cost.verify_s(10, 80) == profile.verify_s(10, 80)  # a size that both have
    assert cost.beyond_probes(192, 1536) and not cost.beyond_probes(120, 960)
    assert cost.eager is profile.eager and float(cost.verify_s(300, 2400)) == float(profile.verify_s(300, 2400))


@given(st.sets(st.integers(1, 300), min_size=1, max_size=12), st.integers(1, 9), st.integers(8, 900))
def test_any_graphs_price_what_is_executed(batches: set[int], width: int, last: int) -> None:
    """A step costs the same as the full graph that holds it, and no more than a larger one on a rising curve."""
    before = line(1e-5, last - last % 8 + 8)
    cost = captured_as(before, sorted(batches), width)
    tokens = np.arange(1, width * max(batches) + 1, dtype=float)
    executed = cost.executed_tokens(tokens)
    seconds = cost.verify_s(1, tokens)
    assert (executed >= tokens).all() and np.isin(executed, cost.captured).all()
    assert np.array_equal(seconds, cost.verify_s(1, executed)) and (np.diff(seconds) >= 0).all()
    inside = executed <= before.verify.probes[-1]
    assert np.allclose(seconds[inside], before.verify.at(executed[inside]))
    again = captured_as(cost, sorted(batches), width)
    assert np.allclose(again.verify_s(1, tokens), seconds)


def test_a_table_that_went_on_beyond_its_graphs_prices_eager_steps() -> None:
    """SGLang's additive table holds eager steps beyond its last captured size: they are no graphs."""
    theta = Curve(np.array([8.0, 64.0, 65.0, 4096.0]), np.array([0.0, 0.001, 0.08, 0.1]))
    alpha = Curve(np.array([1.0, 512.0]), np.array([0.0, 0.001]))
    table = StepCost(
        "table",
        "additive",
        alpha,
        theta,
        bias_s=0.01,
        captured=np.array([8, 64]),
        splits_draft=False,
        terms=dict.fromkeys(load_profile(B300).terms, 0.0),
    )
    cost = captured_as(table, (1, 8, 16), 8)
    assert float(cost.verify_s(16, 128)) == pytest.approx(0.01 + 0.001 + 64 * 0.001 / 56)
    assert float(cost.verify_s(17, 136)) == pytest.approx(float(table.verify_s(17, 136)))
    assert cost.beyond_probes(16, 128) and not cost.beyond_probes(17, 136)
