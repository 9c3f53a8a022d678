"""SGLang's two table forms: written so that SGLang reads them, read as SGLang reads them."""

from __future__ import annotations

import bisect
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_dspark.cost import (
    SpsAdditiveCostTable,
    SpsCostTable,
    decode_table,
    encode_table,
    load_profile,
    model_from_table,
    write_table,
)
from sglang_dspark.errors import InputError

Table = SpsCostTable | SpsAdditiveCostTable
PROBES = st.lists(st.integers(1, 5000), min_size=2, max_size=12, unique=True).map(sorted)
SECONDS = st.floats(1e-4, 10.0)


@st.composite
def one_dimensional(draw: st.DrawFn) -> SpsCostTable:
    probes = draw(PROBES)
    rates = draw(st.lists(SECONDS, min_size=len(probes), max_size=len(probes)))
    return SpsCostTable(probes, rates, probes[-1] + draw(st.integers(0, 100)))


@st.composite
def additive(draw: st.DrawFn) -> SpsAdditiveCostTable:
    """As SGLang's profiler fits it: bins from 0, coefficients that may be slightly negative, a positive sum."""
    requests, tokens = draw(PROBES), draw(PROBES)
    tokens = [0, *tokens] if draw(st.booleans()) else tokens
    parts = st.floats(-0.001, 5.0)
    alpha = draw(st.lists(parts, min_size=len(requests), max_size=len(requests)))
    theta = draw(st.lists(parts, min_size=len(tokens), max_size=len(tokens)))
    return SpsAdditiveCostTable(draw(st.floats(0.01, 1.0)), requests, alpha, tokens, theta)


def reference_seconds(table: Table, num_requests: int, num_tokens: int) -> float:
    """SGLang's look-ups written from its source (dspark_sps.py:9-99)."""
    if isinstance(table, SpsCostTable):
        index = bisect.bisect_right(table.sample_batch_tokens, num_tokens) - 1
        return 1.0 / table.sample_steps_per_sec[max(0, min(index, len(table.sample_batch_tokens) - 1))]

    def between(xs: list[int], ys: list[Any], x: int) -> float:
        if x <= xs[0]:
            return ys[0]
        if x >= xs[-1]:
            return ys[-1]
        high = bisect.bisect_right(xs, x)
        part = (x - xs[high - 1]) / (xs[high] - xs[high - 1])
        return ys[high - 1] + part * (ys[high] - ys[high - 1])

    return (
        table.bias_seconds
        + between(table.bs_probes, table.alpha_seconds, num_requests)
        + between(table.m_probes, table.theta_seconds, num_tokens)
    )


def asked(table: Table) -> list[int]:
    """Token counts below, on, between and beyond the probes."""
    probes = table.sample_batch_tokens if isinstance(table, SpsCostTable) else table.m_probes
    return sorted({1, *(probe + shift for probe in probes for shift in (-1, 0, 1)), probes[-1] + 999} - {0, -1})


@given(one_dimensional())
def test_floor_look_ups_are_sglangs(table: SpsCostTable) -> None:
    """Bit for bit."""
    model = model_from_table(table, "t")
    for tokens in asked(table):
        assert float(model.verify_s(1, tokens)) == reference_seconds(table, 1, tokens)


@given(additive(), st.integers(1, 6000))
def test_additive_look_ups_are_sglangs(table: SpsAdditiveCostTable, requests: int) -> None:
    """Up to the rounding of three additions."""
    model = model_from_table(table, "t")
    for tokens in asked(table):
        ours = model.draft_s(requests) + float(model.verify_s(requests, tokens))
        assert ours == pytest.approx(reference_seconds(table, requests, tokens), rel=1e-9, abs=1e-12)


@given(st.one_of(one_dimensional(), additive()))
def test_floor_pricing_of_a_batch_is_sglangs(table: Table) -> None:
    requests, gamma = 3, 4
    prices = model_from_table(table, "t").prices(requests, gamma)
    for count in range(requests * gamma + 1):
        expected = reference_seconds(table, requests, requests + count)
        assert 1.0 / prices.floor_inverse[count] == pytest.approx(expected, rel=1e-9, abs=1e-12)


@given(st.one_of(one_dimensional(), additive()))
def test_written_and_read_back(table: Table) -> None:
    data = encode_table(table)
    assert decode_table(data, "t") == table
    keys = [key for key in table.__struct_fields__ if key not in ("meta", "tiered")]
    assert json.loads(data) == {key: getattr(table, key) for key in keys}
    assert list(json.loads(data)) == keys


@given(st.one_of(one_dimensional(), additive()))
def test_sglang_reads_what_we_write_and_writes_the_same_bytes(table: Table) -> None:
    upstream = pytest.importorskip(
        "sglang.srt.speculative.dspark_components.dspark_sps", reason="needs the sglang package (extra `serve`)"
    )
    theirs = getattr(upstream, type(table).__name__).from_json(encode_table(table).decode())
    assert theirs.to_json().encode() == encode_table(table)
    for tokens in asked(table):
        mine = reference_seconds(table, 2, tokens)
        if isinstance(table, SpsCostTable):
            assert 1.0 / theirs.lookup(tokens) == mine
        else:
            assert theirs.step_time(num_reqs=2, budget=tokens - 2) == mine


def test_a_written_file_is_read_by_name(tmp_path) -> None:
    path = tmp_path / "mine.json"
    write_table(path, SpsCostTable([8, 16], [100.0, 50.0], 16, {"hardware": "a box", "sweep": "off-diagonal"}))
    model = load_profile(str(path))
    assert model.name == "mine" and not model.diagonal
    assert float(model.verify_s(1, 15)) == 0.01
    assert list(tmp_path.iterdir()) == [path]


def test_a_refusing_disk_leaves_nothing(tmp_path) -> None:
    with pytest.raises(InputError, match="cannot write"):
        write_table(tmp_path / "missing" / "mine.json", SpsCostTable([8, 16], [100.0, 50.0], 16))
    (tmp_path / "taken").mkdir()
    with pytest.raises(InputError, match="cannot write"):
        write_table(tmp_path / "taken", SpsCostTable([8, 16], [100.0, 50.0], 16))
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


def test_meta_must_not_make_sglang_misread_the_form() -> None:
    table = SpsCostTable([8, 16], [100.0, 50.0], 16, {"bias_seconds": 0.1})
    with pytest.raises(InputError, match="bias_seconds"):
        encode_table(table)


def test_prices_are_arrays_by_admitted_count() -> None:
    prices = model_from_table(SpsCostTable([1, 4, 8], [4.0, 2.0, 1.0], 8), "t").prices(2, 3)
    assert prices.seconds.tolist() == [0.25, 0.25, 0.5, 0.5, 0.5, 0.5, 1.0]
    assert np.array_equal(prices.inverse, 1.0 / prices.seconds)
    with pytest.raises(ValueError, match="read-only"):
        prices.seconds[0] = 0.0
