"""A step that no probe covers is known as such: by requests, by executed tokens, below and above."""

from __future__ import annotations

import pickle
from dataclasses import replace

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_dspark.cost import (
    MeasuredDraft,
    MeasuredVerify,
    SpsAdditiveCostTable,
    SpsCostTable,
    StepCost,
    Tiered,
    load_profile,
    model_from_table,
)
from sglang_dspark.cost.curves import Curve
from sglang_dspark.errors import InputError

FINE48 = SpsAdditiveCostTable(
    0.02, [1, 2, 4, 8], [0.0, 0.001, 0.002, 0.004], [2, 8, 16, 24, 32, 48], [0.0, 0.001, 0.002, 0.0035, 0.0045, 0.006]
)
"""sglang PR 37815's shape of table: measured to 48 tokens and 8 requests."""


def tiered(**changes: object) -> StepCost:
    """Graphs for 4, 8, 16 tokens and 4 requests, probes at 4..16; eager from 20 to 64 tokens."""
    parts: dict[str, object] = {
        "draft": MeasuredDraft([1, 8], [0.001, 0.004]),
        "verify": MeasuredVerify([4, 8, 16], [0.01, 0.012, 0.02]),
        "captured_tokens": [4, 8, 16],
        "captured_requests": 4,
        "eager": MeasuredVerify([20, 64], [0.1, 0.2]),
        **changes,
    }
    return model_from_table(SpsAdditiveCostTable(0.01, [1], [0.0], [1, 16], [0.0, 0.01], tiered=Tiered(**parts)), "t")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "requests, tokens, beyond",
    [(1, 2, False), (8, 48, False), (1, 1, True), (8, 49, True), (9, 48, True), (48, 485, True)],
)
def test_an_additive_table_knows_its_ends_on_both_axes(requests: int, tokens: int, beyond: bool) -> None:
    model = model_from_table(FINE48, "fine48")
    assert model.measured_tokens == (2, 48) and model.measured_requests == (1, 8)
    assert model.beyond_probes(requests, tokens) is beyond


def test_a_table_by_tokens_alone_has_no_end_by_requests_of_its_own() -> None:
    model = model_from_table(SpsCostTable([8, 16, 64], [100.0, 90.0, 50.0], 64, {"sweep": "off-diagonal"}), "oned64")
    assert model.measured_tokens == (8, 64)
    assert not model.beyond_probes(60, 64) and model.beyond_probes(1, 7) and model.beyond_probes(1, 65)


def test_a_step_in_graphs_is_where_its_padded_size_is() -> None:
    model = tiered()
    assert [model.beyond_probes(1, tokens) for tokens in (1, 4, 5, 16)] == [False] * 4, "padded to 4, 4, 8, 16"
    short = tiered(verify=MeasuredVerify([8, 12], [0.012, 0.02]))
    assert [short.beyond_probes(1, tokens) for tokens in (4, 5, 8, 9, 16)] == [True, False, False, True, True]


def test_an_eager_step_is_where_the_eager_curve_is() -> None:
    model = tiered()
    assert [model.beyond_probes(4, tokens) for tokens in (17, 20, 64, 65)] == [True, False, False, True]
    assert model.beyond_probes(5, 16) and not model.beyond_probes(5, 20), "five requests are one more than the slots"
    assert model.measured_tokens == (1, 64)
    without = tiered(eager=None)
    assert without.beyond_probes(4, 17) and without.beyond_probes(5, 16) and not without.beyond_probes(4, 16)
    assert without.measured_tokens == (1, 16)


def test_contexts_are_known_where_a_curve_has_several() -> None:
    assert tiered().measured_contexts is None
    draft = MeasuredDraft([1, 8], [[0.001, 0.004], [0.002, 0.005]], [0, 4096])
    verify = MeasuredVerify([4, 16], [[0.01, 0.02], [0.02, 0.03]], [128, 8192])
    assert tiered(draft=draft, verify=verify).measured_contexts == (128, 4096)


def test_a_straight_line_beyond_the_measurement_is_no_probe() -> None:
    model = model_from_table(FINE48, "fine48")
    longer = replace(model, verify=Curve(np.array([2.0, 16.0, 128.0]), np.array([0.1, 0.2, 1.0]), measured_to=16))
    assert longer.measured_tokens == (2, 16) and longer.beyond_probes(1, 17)


def test_a_table_says_where_its_measurement_ends() -> None:
    table = msgspec.structs.replace(FINE48, meta={"measured_to": {"requests": 4, "tokens": 32}})
    model = model_from_table(table, "t")
    assert model.measured_requests == (1, 4) and model.measured_tokens == (2, 32)
    wrong = msgspec.structs.replace(FINE48, meta={"measured_to": {"requests": 9, "tokens": 32}})
    with pytest.raises(InputError, match=r"measured_to=.* is refused, expected requests in 1\.\.8"):
        model_from_table(wrong, "t")


def test_graph_sizes_that_were_never_measured_are_refused() -> None:
    with pytest.raises(InputError, match="no captured_tokens lie in the measured 4..16"):
        tiered(captured_tokens=[1, 2])


def test_the_shipped_profile_and_a_pickled_one() -> None:
    model = pickle.loads(pickle.dumps(load_profile("vllm-b300-dsv4-flash")))
    assert model.measured_requests == (1, 256) and not model.beyond_probes(256, 1008)
    assert model.beyond_probes(257, 300), "its draft was measured to 256 requests"
    assert model.beyond_probes(200, 1010) and not model.beyond_probes(200, 1200), "eager from 1,025 tokens"


@given(requests=st.integers(1, 40), tokens=st.integers(1, 100), beyond=st.integers(1, 400))
def test_inside_the_probes_more_probes_change_nothing(requests: int, tokens: int, beyond: int) -> None:
    """The price of a step that is not beyond the probes does not hang on where the curves would go on."""
    model = model_from_table(FINE48, "fine48")
    more = replace(
        model,
        draft=Curve(np.append(model.draft.probes, 8 + beyond), np.append(model.draft.seconds, 1.0)),
        verify=Curve(np.append(model.verify.probes, 48 + beyond), np.append(model.verify.seconds, 1.0)),
    )

    def seconds(cost: StepCost) -> float:
        return cost.draft_s(requests) + float(cost.verify_s(requests, tokens))

    if not model.beyond_probes(requests, tokens):
        assert seconds(more) == seconds(model)
    elif requests > 8 or tokens > 48:
        assert seconds(more) > seconds(model)
