"""`dspark profile` on a server whose steps are stairs of a millisecond: what is measured, what the file then prices."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stair_server import CAPTURED, WAIT_S, WIDTH, StairServer

from sglang_dspark.cost import load_profile, write_table
from sglang_dspark.cost.capture import captured_as
from sglang_dspark.cost.graphs import listed_batches
from sglang_dspark.errors import InputError
from sglang_dspark.live import load
from sglang_dspark.live.cells import Graphs, Room, budgets, default_batches, default_contexts
from sglang_dspark.live.client import Server
from sglang_dspark.live.profiling import Cell, ProfilePlan, measure, table_of

GRAPHS = Graphs(CAPTURED, WIDTH)


@pytest.fixture
def stairs(monkeypatch):
    monkeypatch.setattr(load, "_SETTLE_S", 0.03)
    servers = []

    def make(**options):
        servers.append(StairServer(**options))
        return servers[-1]

    yield make
    for server in servers:
        server.close()


def test_a_staircase_of_a_millisecond_is_priced_within_two_percent_at_every_tier(stairs, tmp_path):
    """Requests end within a second, and each round has several windows: all of them decode."""
    server = stairs()
    plan = ProfilePlan(contexts=(64, 1024), windows=2, window_s=0.12)
    cells = measure(Server(server.url), plan)
    assert {cell.executed for cell in cells} == {size * WIDTH for size in CAPTURED if size <= 8 or size == CAPTURED[5]}
    write_table(tmp_path / "p.json", table_of(cells, {"hardware": "test"}, GRAPHS))
    meta = json.loads((tmp_path / "p.json").read_text())["meta"]
    cost = captured_as(load_profile(str(tmp_path / "p.json")), CAPTURED, WIDTH)
    off = []
    for requests in range(1, 9):
        for context in (64.0, 512.0, 1500.0):
            for tokens in range(requests, requests * WIDTH + 1):
                total = requests * context
                told = cost.draft_s(requests, total) + float(cost.verify_s(requests, tokens, total))
                off.append(told / server.step_s(requests, tokens, total) - 1)
    assert np.abs(off).max() < 0.02, np.abs(off).max()
    assert cost.terms["adaptive_s"] == pytest.approx(WAIT_S, rel=0.1), "what a step of an adaptive policy costs more"
    assert meta["largest_fit_error"] < 0.02 and meta["fit_error"] <= meta["largest_fit_error"]


def test_a_fit_over_budgets_instead_of_tiers_is_what_was_wrong():
    """The same staircase, read as if what was asked for had run: off by much more than the fit says."""
    rows = [(batch, batch + round(share * batch * (WIDTH - 1))) for batch in (1, 2, 4, 8) for share in (0, 0.3, 0.5, 1)]
    executed = [StairServer.executed(tokens) for _, tokens in rows]
    seconds = [0.0002 + 2e-5 * batch + StairServer.stair_s(ran) for (batch, _), ran in zip(rows, executed, strict=True)]

    def worst(sizes, graphs):
        cells = [
            Cell(batch, tokens, size, 64.0, second, 0.0, 50)
            for (batch, tokens), size, second in zip(rows, sizes, seconds, strict=True)
        ]
        return table_of(cells, {}, graphs).meta["largest_fit_error"]

    assert worst(executed, GRAPHS) < 0.02 < worst([tokens for _, tokens in rows], None)


@given(
    st.sets(st.integers(1, 64), min_size=1, max_size=8),
    st.integers(1, 8),
    st.sampled_from([(0.0, 1.0), (0.0, 0.5, 1.0), (0.5,)]),
    st.integers(1, 80),
)
def test_budgets_end_on_tiers_and_every_tier_stands(batches, gamma, shares, most):
    graphs = Graphs(tuple(listed_batches(most, drafting=True)), gamma + 1)
    found = budgets(sorted(batches), gamma, shares, graphs)
    assert set(found) == batches
    ran = set()
    for batch, chosen in found.items():
        assert chosen and list(chosen) == sorted(set(chosen))
        for tokens in chosen:
            assert batch <= tokens <= batch * (gamma + 1)
            if batch <= most:
                executed = graphs.executed(batch, tokens)
                assert executed == tokens or tokens == batch * (gamma + 1)
                ran.add(executed)
    inside = [batch for batch in batches if batch <= most]
    reached = {
        tier
        for batch in inside
        for tier in graphs.tiers
        if batch <= tier <= graphs.executed(batch, batch * (gamma + 1))
    }
    assert ran == reached


@given(st.integers(1, 512), st.integers(1, 512))
def test_default_batches_are_captured_ones_that_decode_at_once(limit, most):
    graphs = Graphs(tuple(listed_batches(most, drafting=True)), 8)
    found = default_batches(Room(4096, None, limit), graphs)
    assert found and found[0] == 1 and list(found) == sorted(set(found)) and found[-1] <= max(limit, 1)
    assert set(found) <= set(graphs.batches)


def test_contexts_and_answers_follow_the_server():
    assert default_contexts(Room(2048), 512) == (64,)
    assert default_contexts(Room(40_000), 4096) == (64, 1024, 8192)
    assert Room(40_000, 10_000).answer(batch=8, context=64, gamma=7, most=4096) == 9000 // 8 - 64 - 16
    assert Room(512).answer(batch=8, context=64, gamma=7, most=4096) == 512 - 64 - 16


def test_what_does_not_fit_is_refused_where_it_was_asked_for_and_left_out_where_not(stairs):
    small = stairs(kv_tokens=700, accepted=0.0)
    with pytest.raises(InputError, match="for each of 8 requests, expected 64 or more"):
        measure(Server(small.url), ProfilePlan(batches=(8,), contexts=(64,)))
    small.kv_tokens = 1000
    cells = measure(Server(small.url), ProfilePlan(windows=1, window_s=0.05, shares=(0.0, 1.0)))
    assert {cell.requests for cell in cells} == {1, 2}, "four of them would hold 151 tokens of an answer each"
