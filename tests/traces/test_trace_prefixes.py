"""`hash_ids`: how they are read, and how much of the prompts a cache without bounds could hold."""

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import trace_files
from hypothesis import given
from hypothesis import strategies as st

from sglang_dspark.errors import InputError
from simulator.traces import PrefixBlocks, Trace, load_trace, part_of, trace_facts, write_trace
from simulator.traces.prefixes import shareable_tokens

MOONCAKE = Path(__file__).parents[3] / "shared" / "data" / "mooncake" / "synthetic_trace.jsonl"


def blocks_of(trace: Trace) -> list[list[int]]:
    return [trace.prefix_blocks.of(request).tolist() for request in range(len(trace))]


def row(prompt: int, ids: list[int] | None, **more: object) -> dict:
    return {"timestamp": 0, "input_length": prompt, "output_length": 5, "hash_ids": ids, **more}


def written(path: Path, *rows: dict) -> Path:
    path.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return path


@pytest.mark.parametrize(("text", "block_tokens"), [(trace_files.mooncake(), 512), (trace_files.bailian(), 16)])
def test_blocks_are_as_long_as_published(tmp_path, text, block_tokens):
    """Mooncake: 512 tokens (FAST'25 release); Qwen-Bailian: 16 (README of the data set)."""
    path = tmp_path / "t"
    path.write_text(text)
    trace = load_trace(path)
    assert trace.prefix_blocks.block_tokens == block_tokens
    assert [len(ids) for ids in blocks_of(trace)] == [-(-prompt // block_tokens) for prompt in trace.input_length]


def test_null_empty_and_missing_are_no_blocks(tmp_path):
    rows = [row(600, [4, 5]), row(9, None), row(9, []), {"timestamp": 0, "input_length": 9, "output_length": 5}]
    assert blocks_of(load_trace(written(tmp_path / "t", *rows))) == [[4, 5], [], [], []]
    assert load_trace(written(tmp_path / "t", *rows[1:])).prefix_blocks is None


def test_blocks_of_another_size(tmp_path):
    path = written(tmp_path / "t", row(600, [4, 5, 6]), row(400, [4, 5]))
    with pytest.raises(InputError, match="2 of 2 requests have more hash_ids than blocks of 512 tokens"):
        load_trace(path)
    assert load_trace(path, block_tokens=256).prefix_blocks.block_tokens == 256
    for block_tokens in (0, 2**20 + 1):
        with pytest.raises(InputError, match=f"block_tokens is {block_tokens}, expected 1 .. 1048576"):
            load_trace(path, block_tokens=block_tokens)
    for text in (trace_files.vidur(), trace_files.own_2_blocks()):
        path.write_text(text)
        with pytest.raises(InputError, match="--block-tokens does nothing with .*: format (vidur|own) has no hash_ids"):
            load_trace(path, block_tokens=256)
    with pytest.raises(InputError, match="--block-tokens does nothing with .*: it has no hash_ids"):
        load_trace(written(path, row(600, None)), block_tokens=256)


def test_a_few_requests_with_too_many_blocks_are_cut_and_counted(tmp_path):
    trace = load_trace(written(tmp_path / "t", row(600, [4, 5, 6]), *[row(600, [4, n]) for n in range(99)]))
    assert blocks_of(trace)[0] == [4, 5]
    assert trace.notes == (
        "hash_ids: 1 of 100 requests have more hash_ids than blocks of 512 tokens, those beyond it are not read",
    )


def test_sorting_skipping_and_writing_keep_each_request_its_blocks(tmp_path):
    rows = [row(1024, [1, 2], timestamp=3), row(512, [3], timestamp=1), row(0, []), row(700, [1, 4], timestamp=2)]
    trace = load_trace(written(tmp_path / "t", *rows))
    assert blocks_of(trace) == [[3], [1, 4], [1, 2]]
    write_trace(tmp_path / "own.jsonl", trace)
    back = load_trace(tmp_path / "own.jsonl")
    assert blocks_of(back) == blocks_of(trace) and back.prefix_blocks.block_tokens == 512
    write_trace(tmp_path / "own.jsonl", load_trace(written(tmp_path / "t", row(5, None))))
    assert "hash_ids" not in (tmp_path / "own.jsonl").read_text()


def test_parts_keep_each_request_its_blocks():
    trace = made(10, *[(20, [n, n + 1]) for n in range(7)])
    parts = [part_of(trace, number, 3) for number in range(3)]
    assert [ids for part in parts for ids in blocks_of(part)] == blocks_of(trace)
    assert part_of(made(10, (20, [1]), (20, [])), 1, 2).prefix_blocks is None


def made(block_tokens: int, *prompts: tuple[int, list[int]]) -> Trace:
    lengths = np.array([length for length, _ in prompts])
    offsets = np.cumsum([0, *(len(ids) for _, ids in prompts)])
    ids = np.array([block for _, blocks in prompts for block in blocks], dtype=np.int64)
    blocks = PrefixBlocks(offsets, ids, block_tokens)
    return Trace(np.zeros(len(lengths)), lengths, np.ones_like(lengths), prefix_blocks=blocks)


def shared(trace: Trace) -> list[int]:
    if trace.prefix_blocks is None:
        return [0] * len(trace)
    return shareable_tokens(trace.prefix_blocks, trace.input_length).tolist()


def test_shareable_tokens_by_hand():
    trace = made(
        10,
        (25, [1, 2, 3]),  # nothing was there before
        (30, [1, 2, 3]),  # its third block is whole, the one before had 5 tokens: two blocks
        (25, [1, 2, 3]),  # all of it; the last token is computed anyway
        (20, [2, 1]),  # the same blocks elsewhere are other blocks
        (40, [1, 2]),  # 20 of the 40 have no number
        (40, []),
        (10, [1]),  # whole
        (50, [1, 9, 3, 4, 5]),  # nothing behind another block
    )
    assert shared(trace) == [0, 20, 24, 0, 20, 0, 9, 10]
    assert trace_facts(trace)[1] == (
        "prefixes by hash_ids in blocks of 10 tokens, which cover 75.0% of the prompt tokens: "
        "34.6% of the prompt tokens could hit a prefix cache without bounds"
    )


@given(
    prompts=st.lists(
        st.tuples(st.integers(1, 20), st.lists(st.sampled_from([0, 1, 2, 2**63 - 1]), max_size=5)),
        min_size=1,
        max_size=12,
    ),
    block_tokens=st.integers(1, 6),
)
def test_shareable_tokens_are_those_of_a_plain_search(prompts, block_tokens):
    """Every leading part of every prompt before, as a set of tuples."""
    prompts = [(length, ids[: -(-length // block_tokens)]) for length, ids in prompts]
    seen, expected = set(), []
    for length, ids in prompts:
        parts = [(number, min(block_tokens, length - n * block_tokens)) for n, number in enumerate(ids)]
        leading = [tuple(parts[: n + 1]) for n in range(len(parts))]
        held = max((sum(tokens for _, tokens in part) for part in leading if part in seen), default=0)
        expected.append(min(held, length - 1))
        seen.update(leading)
    assert shared(made(block_tokens, *prompts)) == expected


@pytest.mark.skipif(not MOONCAKE.exists(), reason="mooncake/synthetic_trace.jsonl is not beside the repository")
def test_the_public_mooncake_trace():
    trace = load_trace(MOONCAKE)
    assert len(trace.prefix_blocks.ids) == 121_877 and trace.prefix_blocks.ids.max() == 43_923
    assert "65.1% of the prompt tokens could hit" in trace_facts(trace)[1]


def test_a_million_blocks_take_their_eight_bytes(tmp_path):
    """Python integers would take four times as much, and stay."""
    rows = [row(16 * 2000, list(range(1000 * n, 1000 * n + 2000)), chat_id=n) for n in range(500)]
    path = written(tmp_path / "t", *rows)
    del rows
    tracemalloc.start()
    trace = load_trace(path)
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(trace.prefix_blocks.ids) == 1_000_000
    assert kept < 9e6 and peak < 60e6
