"""Policies see the past they should see, nothing of the future, and all of them the same blocks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated_worlds import FewOrMany, Spy, finished, flat_cost, setting_of, trace_of

from sglang_dspark.jit import numpy_only
from sglang_dspark.policies import SCALE, Decision, LiveBlock, Past, Policy, make_policy
from simulator.blocks.acceptance import BlockTable, Confidence, StatisticalAcceptance
from simulator.engine.batch import DecodeBatch
from simulator.engine.decoding import Decoder
from simulator.engine.run import Assembly, Setting, assemble
from simulator.engine.settings import OVERLAPPED_LAG


@pytest.fixture(autouse=True, scope="module")
def in_python() -> Iterator[None]:
    """What these tests watch are the steps that Python takes."""
    with numpy_only():
        yield


LENGTHS = [(5, 40), (9, 25), (3, 60), (7, 1), (5, 33), (8, 50), (2, 44), (6, 20)]
Seen = dict[tuple[int, int], tuple[tuple[int, ...], int]]


def busy(**changes: object) -> Setting:
    """Requests that come, go, wait and (with little memory) come again."""
    arrival = [0.0, 0.0, 0.03, 0.05, 0.06, 0.2, 0.21, 0.4]
    return setting_of(trace_of(LENGTHS, arrival), max_running_requests=4, **changes)  # type: ignore[arg-type]


def rows_of(batch: DecodeBatch) -> list[tuple[int, int]]:
    """(request, generation) of the batch, in row order."""
    return list(zip(batch.request[: batch.size].tolist(), batch.generation[: batch.size].tolist(), strict=True))


class Witness:
    """Wraps a spy's decisions with what the engine's batch was at that moment."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows: list[list[tuple[int, int]]] = []
        self.anchors: list[list[int]] = []
        decide = Decoder._decide

        def watched(decoder: Decoder, batch: DecodeBatch, *rest: Any, **named: Any) -> Decision:
            recorder = decoder.recorder
            generated = recorder.output_length[batch.request[: batch.size]] - batch.remaining[: batch.size]
            self.rows.append(rows_of(batch))
            self.anchors.append(generated.tolist())
            return decide(decoder, batch, *rest, **named)

        monkeypatch.setattr(Decoder, "_decide", watched)


@pytest.mark.parametrize("lag", [2, 3, 5])
@pytest.mark.parametrize("slots", [None, 2])
def test_lag_counts_decode_publishes(monkeypatch: pytest.MonkeyPatch, lag: int, slots: int | None) -> None:
    """What a policy is shown is what its own record says was published `lag` decode steps ago, prefills not counted.

    With two captured slots, larger batches run eager: they publish all the same, although no policy is asked.
    """
    witness, published = Witness(monkeypatch), []
    decide = Decoder._decide

    def publishing(decoder: Decoder, batch: DecodeBatch, live: LiveBlock, *rest: Any, **named: Any) -> Decision:
        decision = decide(decoder, batch, live, *rest, **named)
        published.append(dict(zip(witness.rows[-1], live.units.copy(), strict=True)))
        return decision

    monkeypatch.setattr(Decoder, "_decide", publishing)
    spy = Spy(lag=lag)
    run, steps = finished(replace(busy(), cost=flat_cost(slots=slots), belief=flat_cost(slots=slots)), spy)
    assert run.recorder.completed == len(LENGTHS)
    decisions = [number for number, rows in enumerate(witness.rows) if slots is None or len(rows) <= slots]
    assert len(decisions) == len(spy.seen)
    assert 0 <= len(witness.rows) - run.recorder.decode_steps <= 1, "the last step may be under way when all are done"
    fresh = 0
    for number, (past, units, shown) in zip(decisions, spy.seen, strict=True):
        then = published[number - lag] if number >= lag else {}
        for row, key in enumerate(witness.rows[number]):
            assert shown[row] == (key in then), "a request that was not in that step has published nothing"
            assert (units[row] == then.get(key, np.full(past.gamma, SCALE))).all()
            fresh += not shown[row]
    assert fresh >= (len(LENGTHS) - 1 if slots is None else 1)
    assert any(step.kind == "prefill" for step in steps[3:])


def depth_of(batch: DecodeBatch) -> np.ndarray:
    """[R] true accepted depth of the blocks that the batch has drafted; no policy but research sees it."""
    return batch.blocks.depth.take(batch.row[: batch.size])


@pytest.mark.parametrize(("schedule", "lag"), [("overlapped", OVERLAPPED_LAG), ("synchronous", 1), ("no-overlap", 1)])
def test_outcomes_arrive_whole_in_order_and_late(schedule: str, lag: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before decision n a policy has learned outcomes 0 .. n - lag, each as it was when that step was decided."""
    spy, depths, decide = Spy(k=4), [], Decoder._decide

    def noting(decoder: Decoder, batch: DecodeBatch, live: LiveBlock, *rest: Any, **named: Any) -> Decision:
        depths.append(depth_of(batch))
        return decide(decoder, batch, live, *rest, **named)

    monkeypatch.setattr(Decoder, "_decide", noting)
    finished(busy(schedule=schedule), spy)
    # `learned_at` counts decisions made; the outcome of step n is learned after decision n + lag - 1.
    assert spy.learned_at == list(range(lag, len(spy.blocks) + 1))
    for outcome, block, depth in zip(spy.outcomes, spy.blocks, depths, strict=False):
        assert (outcome.survival == block.units).all()
        assert (outcome.accepted == np.minimum(outcome.lengths, depth)).all()
        assert outcome.lengths.sum() == 4 * len(outcome.lengths)


class Rewritten:
    """An acceptance source whose blocks at anchors from `since` on are others."""

    def __init__(self, source: StatisticalAcceptance, other: StatisticalAcceptance, since: int) -> None:
        self.gamma, self._source, self._other, self._since = source.gamma, source, other, since

    def fill(self, request: int, first: int, out: BlockTable) -> None:
        self._source.fill(request, first, out)
        keep = max(0, min(self._since - first, len(out.depth)))
        if keep < len(out.depth):
            self._other.fill(request, first + keep, out.rows(keep, len(out.depth)))


@settings(max_examples=20)
@given(st.integers(2, 30), st.sampled_from(["argmax:lag=2", "goodput", "argmax:lag=3,cold=prior"]))
def test_a_budget_never_depends_on_blocks_not_yet_published(since: int, text: str) -> None:
    """Other blocks from one anchor on: until `lag` steps after the first of them, every budget is the same."""
    before, reached = budgets_taken(make_policy(text), None)
    after, _ = budgets_taken(make_policy(text), since)
    first = next((step for step, anchor in enumerate(reached) if anchor >= since), len(reached))
    same = first + OVERLAPPED_LAG
    assert before[:same] == after[:same]


def budgets_taken(policy: Policy, since: int | None) -> tuple[list[int], list[int]]:
    """Admitted tokens and the furthest anchor of every decode step."""
    run = assemble_with(setting_of(trace_of([(5, 60)] * 3)), policy, since)
    engine = run.engines[0]
    decide = engine.decoder._decide
    taken: list[int] = []
    reached: list[int] = []

    def watched(batch: DecodeBatch, *rest: Any, **named: Any) -> tuple[Past | None, Decision]:
        generated = 60 - batch.remaining[: batch.size]
        past, decision = decide(batch, *rest, **named)
        taken.append(decision.total)
        reached.append(int(generated.max()))
        return past, decision

    engine.decoder._decide = watched  # type: ignore[method-assign]
    run.env.run(until=run.router.done)
    return taken, reached


def assemble_with(setting: Setting, policy: Policy, since: int | None) -> Assembly:
    run = assemble(setting, policy)
    source = run.model.source
    assert isinstance(source, StatisticalAcceptance)
    if since is not None:
        other = StatisticalAcceptance(
            setting.drafter, Confidence(), np.zeros(3, dtype=np.int64), run.trace.output_length, seed=99
        )
        for engine in run.engines:
            engine.batch.source = Rewritten(source, other, since)
    return run


def blocks_met(setting: Setting, policy: Policy, monkeypatch: pytest.MonkeyPatch) -> Seen:
    """Block and depth at every (request, anchor) that a run came by."""
    with monkeypatch.context() as patch:
        witness = Witness(patch)
        met: Seen = {}
        decide = Decoder._decide

        def noting(decoder: Decoder, batch: DecodeBatch, live: LiveBlock, *rest: Any, **named: Any) -> Decision:
            decision = decide(decoder, batch, live, *rest, **named)
            depths = depth_of(batch).tolist()
            rows = zip(witness.rows[-1], witness.anchors[-1], live.units.tolist(), depths, strict=True)
            for (request, _), anchor, units, depth in rows:
                assert met.setdefault((request, anchor), (tuple(units), depth)) == (tuple(units), depth)
            return decision

        patch.setattr(Decoder, "_decide", noting)
        run, _ = finished(setting, policy)
        assert run.recorder.completed == len(setting.trace)
    return met


def test_all_policies_meet_the_same_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever they verify, in whatever order and on whichever replica requests run, retracted or not."""
    base = busy()
    reference = blocks_met(base, make_policy("fixed:k=0"), monkeypatch)  # every anchor
    wanted = {(request, anchor) for request, (_, output) in enumerate(LENGTHS) for anchor in range(1, output)}
    assert wanted <= set(reference)
    others: list[tuple[Setting, Policy]] = [(base, policy) for policy in (Spy(k=7), FewOrMany(), make_policy("hull"))]
    others += [
        (busy(replicas=3), FewOrMany()),
        (busy(concurrency=8), make_policy("argmax:lag=2")),
        (busy(schedule="no-overlap", router="least-loaded", replicas=2), make_policy("fixed:k=3")),
        (busy(kv_tokens=110), make_policy("fixed:k=2")),
    ]
    for setting, policy in others:
        met = blocks_met(setting, policy, monkeypatch)
        assert len(met) > 50
        assert all(reference[key] == block for key, block in met.items() if key in reference)


def test_replications_and_seeds_meet_other_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = make_policy("fixed:k=0")
    one, two = (blocks_met(busy(seed=seed), policy, monkeypatch) for seed in (0, 1))
    assert set(one) == set(two)
    same = sum(one[key] == two[key] for key in one)
    assert same == 0


def test_a_policy_that_never_looks_back_has_no_ring() -> None:
    run, _ = finished(busy(), make_policy("fixed:k=2"))
    assert run.engines[0].decoder.ring is None


def test_the_past_knows_the_load() -> None:
    spy = Spy()
    finished(setting_of(trace_of([(5, 30)] * 9), max_running_requests=3), spy)
    pasts: list[Past] = [past for past, _, _ in spy.seen]
    assert pasts[0].waiting == 6 and pasts[-1].waiting == 0
    assert max(past.num_requests for past in pasts) == 3
