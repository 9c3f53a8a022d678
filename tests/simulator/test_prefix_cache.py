"""The prefix cache by hand, and what must hold whatever the trace: in the engine, with its memory and its clock."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated_worlds import ROOM, check_books, check_end, finished, flat_cost, setting_of, settings_to_try, trace_of

from sglang_dspark.errors import InputError
from sglang_dspark.policies import make_policy
from simulator.engine.prefix_cache import PrefixCache, Prompts
from simulator.engine.radix_tree import RadixTree
from simulator.engine.recorder import StepView
from simulator.engine.run import Setting
from simulator.results.metrics import figures
from simulator.traces import PrefixBlocks, Trace
from simulator.traces.prefixes import shareable_tokens

FIXED, ONE = make_policy("fixed:k=7"), make_policy("fixed:k=1")
BLOCK = 10


def sharing(*prompts: tuple[int, list[int]], output: int = 5, arrival_s: list[float] | None = None) -> Trace:
    """Requests of (prompt tokens, blocks of 10 tokens)."""
    trace = trace_of([(tokens, output) for tokens, _ in prompts], arrival_s)
    blocks = [ids for _, ids in prompts]
    column = PrefixBlocks(np.cumsum([0, *map(len, blocks)]), np.array(sum(blocks, []), dtype=np.int64), BLOCK)
    return replace(trace, prefix_blocks=column)


def one_by_one(trace: Trace, **engine: object) -> Setting:
    return setting_of(trace, **{"concurrency": 1, "schedule": "no-overlap", "max_running_requests": 8, **engine})


def prefilled(steps: list[StepView]) -> list[int]:
    return [step.tokens for step in steps if step.kind == "prefill"]


# The tree, by hand: three requests share two blocks of 10 tokens.

A, B, C = 0, 1, 2
THREE = sharing((30, [1, 2, 3]), (35, [1, 2, 4]), (40, [1, 2, 5, 6]))


def cache_of(trace: Trace, *, overlap: bool = False) -> PrefixCache:
    prompts = Prompts.of(trace)
    assert prompts is not None
    return PrefixCache(prompts, overlap=overlap)


def kept(cache: PrefixCache, *requests: int) -> None:
    """The prefill of these requests has ended and was seen."""
    for request in requests:
        cache.prefilled(request, 1)
    cache.see(1)


def test_three_requests_that_share_two_blocks() -> None:
    cache = cache_of(THREE)
    assert cache.admit(A, 30) == 0
    kept(cache, A)
    assert cache.admit(B, 35) == 20
    assert cache.shared == 20 and cache.idle == 0  # A's third block is locked, too
    kept(cache, B)
    cache.finish(A, 34)
    assert cache.shared == 0 and cache.idle == 10 + 4  # its third block and its answer
    assert cache.admit(C, 40) == 20
    assert cache.shared == 20
    kept(cache, C)
    cache.finish(B, 36)
    cache.finish(C, 42)
    assert cache.shared == 0
    assert cache.idle == 20 + (10 + 4) + (10 + 5 + 1) + (20 + 2)


def test_the_least_recently_used_leaf_goes_first_and_whole() -> None:
    cache = cache_of(THREE)
    for request, context in ((A, 34), (B, 36), (C, 42)):
        cache.admit(request, context)
        cache.finish(request, context)
    everything = 20 + (10 + 4) + (15 + 1) + (20 + 2)
    assert cache.idle == everything
    cache.evict_to(everything - 1)  # a token too much: A's answer goes, all four of it
    assert cache.idle == everything - 4
    cache.evict_to(everything - 5)  # then A's block
    assert cache.idle == everything - 14
    assert cache.admit(B, 35) == 34  # still whole, and now used by somebody
    cache.drop(B)
    cache.evict_to(20 + 15)  # so its answer goes, which nobody looked at, and then C: answer, then its two blocks
    assert cache.idle == 20 + 15
    cache.evict_to(20)
    assert cache.idle == 20 and cache.admit(C, 40) == 20
    cache.drop(C)
    cache.evict_to(19)
    assert cache.idle == 0 and cache.admit(A, 30) == 0


def test_a_leaf_that_is_looked_at_moves_behind_the_others() -> None:
    tree = RadixTree(BLOCK)
    for key in (1, 2, 3):
        tree.insert(tree.root, np.array([key]), BLOCK)
    tree.match(np.array([1]))
    for most, left in ((2 * BLOCK, {1, 3}), (BLOCK, {1}), (0, set())):
        tree.evict_to(most)
        assert set(tree.root.children) == left and tree.idle == most


def test_what_a_running_request_needs_is_not_evicted() -> None:
    cache = cache_of(THREE)
    cache.admit(A, 30)
    cache.finish(A, 31)
    assert cache.admit(B, 35) == 20
    cache.evict_to(0)
    assert cache.idle == 0  # A's third block and its answer
    cache.drop(B)
    assert cache.idle == 20  # dropped before its prompt came into the tree: what was there stays
    assert cache.admit(C, 40) == 20


def test_what_two_prefilled_at_once_is_kept_once() -> None:
    cache = cache_of(sharing((30, [1, 2, 3]), (30, [1, 2, 3])))
    assert [cache.admit(request, 30) for request in (0, 1)] == [0, 0]
    kept(cache, 0)
    assert cache.shared == 0
    kept(cache, 1)
    assert cache.shared == 30 and cache.idle == 0
    cache.finish(0, 31)
    cache.finish(1, 31)
    assert cache.idle == 30 + 1 + 1


def test_a_whole_prompt_costs_its_last_token() -> None:
    cache = cache_of(sharing((30, [1, 2, 3]), (30, [1, 2, 3]), (20, [1, 2]), (1, [9]), (1, [9])))
    for request, hit in ((0, 0), (1, 29), (2, 19), (3, 0), (4, 0)):
        context = cache.prompts.input_length[request]
        assert cache.admit(request, context) == hit
        cache.finish(request, context + 1)


def test_a_short_last_block_is_shared_with_an_equal_one_only() -> None:
    cache = cache_of(sharing((25, [1, 2, 3]), (30, [1, 2, 3]), (25, [1, 2, 3]), (24, [1, 2, 3])))
    cache.admit(0, 25)
    cache.finish(0, 26)
    for request, hit in ((1, 20), (2, 24), (3, 20)):
        assert cache.admit(request, cache.prompts.input_length[request]) == hit
        cache.drop(request)


def test_the_overlap_loop_sees_a_prompt_a_step_later() -> None:
    for overlap, hit in ((False, 20), (True, 0)):
        cache = cache_of(THREE, overlap=overlap)
        cache.admit(A, 30)
        cache.prefilled(A, step=7)
        cache.see(7)
        assert cache.admit(B, 35) == hit
        cache.drop(B)
        cache.see(8)
        assert cache.admit(B, 35) == 20


def test_prefixes_of_waiting_requests_are_evicted_last() -> None:
    """Every 32nd pass, the next request last (SGLang's waiting-prefix refresh)."""
    cache = cache_of(sharing((20, [1, 7]), (20, [2, 7]), (20, [3, 7]), (20, [1, 8]), (20, [2, 8])))
    for request in (0, 1, 2):
        cache.admit(request, 20)
        cache.finish(request, 21)
    for _ in range(32):
        cache.refresh([3, 4])
    cache.refresh([4, 3])
    cache.evict_to(10)
    assert [cache.admit(request, 20) for request in (3, 4)] == [0, 10]


# In the engine.


def test_hits_are_not_prefilled() -> None:
    trace = sharing((30, [1, 2, 3]), (35, [1, 2, 4]), (40, [1, 2, 5, 6]), (30, [1, 2, 3]), (25, []))
    run, steps = finished(one_by_one(trace), FIXED, check_books)
    check_end(run, steps)
    assert prefilled(steps) == [30, 15, 20, 1, 25]
    assert run.recorder.cached_tokens == 20 + 20 + 29
    found = figures(run)
    assert found["cached_prompt_tokens"] == 69 and found["cached_prompt_share"] == pytest.approx(69 / 160)
    assert found["total_input_tokens"] == 160


def test_a_hit_is_context_of_the_chunk() -> None:
    """Attention reads what is cached: 30 new tokens behind 20 others."""
    costs = flat_cost(prefill_s=0.0, prefill_token_s=1.0, prefill_pair_s=0.5)
    trace = sharing((20, [1, 2]), (50, [1, 2, 3, 4, 5]))
    run, _ = finished(setting_of(trace, costs, concurrency=1, schedule="no-overlap"), FIXED)
    seconds = run.recorder.first_token_s - run.recorder.sent_s
    assert seconds.tolist() == pytest.approx([20 + 0.5 * 20 * 10, 30 + 0.5 * 30 * (20 + 15)])


def test_chunks_of_a_cut_prompt_are_there_for_the_next_request() -> None:
    """Both come at once. The second is let in beside the first one's third chunk, when two of them are in the tree."""
    trace = sharing((50, [1, 2, 3, 4, 5]), (50, [1, 2, 3, 4, 5]))
    for schedule in ("overlapped", "no-overlap"):
        run, steps = finished(setting_of(trace, chunked_prefill_size=20, schedule=schedule), FIXED, check_books)
        assert prefilled(steps) == [20, 20, 10 + 10] and run.recorder.cached_tokens == 40


def test_a_prompt_that_ends_with_a_chunk_is_seen_by_the_next_one_without_overlap() -> None:
    trace = sharing((50, [1, 2, 3, 4, 5]), (50, [1, 2, 3, 4, 5]))
    for schedule, tokens in (("overlapped", [50, 50]), ("no-overlap", [50, 1])):
        _, steps = finished(setting_of(trace, chunked_prefill_size=50, schedule=schedule), FIXED, check_books)
        assert prefilled(steps) == tokens


def test_shared_tokens_take_memory_once() -> None:
    """Nine requests of 100 tokens, 90 of them in common, each with 5 more to come and 16 reserved."""
    trace = sharing(*[(100, [*range(1, 10), 100 + n]) for n in range(9)])
    for served, together in ((trace, 9), (replace(trace, prefix_blocks=None), 3)):
        setting = setting_of(served, kv_tokens=450, chunked_prefill_size=100, schedule="no-overlap")
        run, steps = finished(setting, FIXED, check_books)
        check_end(run, steps)
        assert max(step.batch for step in steps) == together


@pytest.mark.parametrize(("last", "tokens"), [("A", 1), ("B", 100), ("C", 1)])
def test_eviction_in_the_engine_forgets_what_was_used_least_recently(last: str, tokens: int) -> None:
    """Room for two prompts of 100 tokens: A B A, then C takes the place of B."""
    blocks = {name: [*range(at, at + 10)] for name, at in (("A", 0), ("B", 100), ("C", 200))}
    trace = sharing(*[(100, blocks[name]) for name in ("A", "B", "A", "C", last)])
    run, steps = finished(one_by_one(trace, kv_tokens=250), FIXED, check_books)
    check_end(run, steps)
    assert prefilled(steps) == [100, 100, 1, 100, tokens]


def test_a_retracted_request_finds_its_prompt_again() -> None:
    cache = cache_of(THREE)
    cache.admit(B, 35)
    kept(cache, B)
    cache.drop(B)
    assert cache.idle == 35
    assert cache.admit(B, 35 + 8) == 35  # with 8 tokens of its answer, which are gone
    cache.drop(B)
    cache.admit(A, 30)
    cache.prefilled(A, 5)
    cache.drop(A)  # retracted before its prompt was seen
    cache.see(9)
    assert cache.idle == 35 and cache.admit(A, 31) == 20


def test_caches_are_each_replicas_own() -> None:
    trace = sharing(*[(30, [1, 2, 3])] * 4)
    for replicas, hits in ((1, 3 * 29), (2, 2 * 29)):
        setting = one_by_one(trace, replicas=replicas, router="round-robin")
        assert finished(setting, FIXED, check_books)[0].recorder.cached_tokens == hits


# Whatever the trace.


@st.composite
def shared_prompts(draw: st.DrawFn) -> Trace:
    prompts = draw(
        st.lists(st.tuples(st.integers(1, 90), st.lists(st.integers(0, 2), max_size=9)), min_size=1, max_size=20)
    )
    return sharing(*[(tokens, ids[: -(-tokens // BLOCK)]) for tokens, ids in prompts])


def without_hits(found: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in found.items() if not name.startswith("cached_prompt")}


@settings(max_examples=60)
@given(shared_prompts())
def test_with_room_for_all_the_hits_are_those_that_the_trace_has(trace: Trace) -> None:
    """One request after the other; and then hits cost what prompts cached on arrival cost."""
    run, _ = finished(one_by_one(trace, kv_tokens=ROOM), FIXED, check_books)
    if trace.prefix_blocks is None:
        assert run.recorder.cached_tokens == 0
        return
    tokens = shareable_tokens(trace.prefix_blocks, trace.input_length)
    assert run.recorder.cached_tokens == tokens.sum()
    known = replace(trace, prefix_blocks=None, cached_length=tokens)
    assert figures(run) == figures(finished(one_by_one(known, kv_tokens=ROOM), FIXED)[0])


@settings(max_examples=60)
@given(settings_to_try())
def test_hits_are_never_more_than_the_trace_has(setting: Setting) -> None:
    run, _ = finished(setting, ONE, check_books)
    blocks = run.trace.prefix_blocks
    most = 0 if blocks is None else shareable_tokens(blocks, run.trace.input_length).sum()
    assert run.recorder.cached_tokens <= most


@settings(max_examples=40)
@given(settings_to_try())
def test_a_cache_that_finds_nothing_changes_nothing(setting: Setting) -> None:
    """Blocks that no other prompt has: what is kept gives way to whoever needs the room, so every figure stays."""
    lengths = setting.trace.input_length
    own = PrefixBlocks(np.arange(len(lengths) + 1), np.arange(len(lengths)), 7)
    plain, _ = finished(replace(setting, trace=replace(setting.trace, prefix_blocks=None)), ONE)
    if plain.recorder.retractions.any():
        return  # they would find their own prompts again
    run, _ = finished(replace(setting, trace=replace(setting.trace, prefix_blocks=own)), ONE)
    assert without_hits(figures(run)) == figures(plain)


@settings(max_examples=20)
@given(settings_to_try())
def test_no_prefix_cache_is_a_trace_without_blocks(setting: Setting) -> None:
    plain = figures(finished(replace(setting, trace=replace(setting.trace, prefix_blocks=None)), ONE)[0])
    off = replace(setting, engine=replace(setting.engine, prefix_cache=False))
    if setting.trace.prefix_blocks is not None:
        assert figures(finished(off, ONE)[0]) == plain
        return
    with pytest.raises(InputError, match="--no-prefix-cache does nothing with test: it has no hash_ids"):
        finished(off, ONE)
