"""Windows, limits and rates keep what they do not change; the project's own format keeps everything."""

import math
from dataclasses import replace

import numpy as np
import pytest
import trace_files
from hypothesis import given, settings
from hypothesis import strategies as st

from simulator.traces import (
    PrefixBlocks,
    Trace,
    example_trace,
    first_requests,
    load_trace,
    scale_rate,
    window,
    with_poisson_arrivals,
    write_trace,
)

LENGTHS = st.integers(1, 2**31 - 1)


@st.composite
def traces(draw) -> Trace:
    count = draw(st.integers(1, 40))
    many = dict(min_size=count, max_size=count)
    names = tuple(draw(st.lists(st.text(max_size=5), min_size=1, max_size=3, unique=True)))
    domain = draw(st.none() | st.lists(st.integers(0, len(names) - 1), **many))
    input_length = np.array(draw(st.lists(LENGTHS, **many)))
    cached = draw(st.none() | st.lists(st.floats(0, 1, exclude_max=True), **many))
    blocks = draw(st.none() | st.lists(st.lists(st.integers(0, 2**63 - 1), max_size=5), **many))
    output_length = np.array(draw(st.lists(LENGTHS, **many)))
    slack = draw(st.none() | st.lists(st.integers(0, 5000), **many))
    return Trace(
        arrival_s=np.sort(draw(st.lists(st.floats(0, 1e9, allow_subnormal=False), **many))),
        input_length=input_length,
        output_length=output_length,
        max_tokens=None if slack is None else np.minimum(output_length + slack, 2**31 - 1),
        domain=domain,
        domains=() if domain is None else names,
        request_id=draw(st.none() | st.lists(st.text(max_size=5), **many)),
        cached_length=None if cached is None or blocks else (cached * input_length).astype(np.int64),
        prefix_blocks=None if blocks is None else ragged(blocks, input_length, draw(st.integers(1, 1 << 20))),
        source=draw(st.text(max_size=9)),
        notes=tuple(draw(st.lists(st.text(max_size=9), max_size=2))),
    )


def ragged(blocks: list[list[int]], input_length: np.ndarray, block_tokens: int) -> PrefixBlocks:
    """The blocks, as many of each prompt as it has room for."""
    kept = [ids[: -(-int(prompt) // block_tokens)] for ids, prompt in zip(blocks, input_length, strict=True)]
    offsets = np.cumsum([0, *map(len, kept)])
    return PrefixBlocks(offsets, np.array([block for ids in kept for block in ids], dtype=np.int64), block_tokens)


def rows(trace: Trace) -> list[tuple]:
    """The requests without their arrivals."""
    domains = [None] * len(trace) if trace.domain is None else [trace.domains[index] for index in trace.domain]
    names = trace.request_id or [None] * len(trace)
    cached = [None] * len(trace) if trace.cached_length is None else trace.cached_length.tolist()
    blocks: list[list[int]] = [[]] * len(trace)  # of a trace where no request has any, it is None
    if trace.prefix_blocks is not None:
        blocks = [trace.prefix_blocks.of(n).tolist() for n in range(len(trace))]
    most = [None] * len(trace) if trace.max_tokens is None else trace.max_tokens.tolist()
    lengths = trace.input_length.tolist(), trace.output_length.tolist(), most
    return list(zip(*lengths, domains, names, cached, blocks, strict=True))


@settings(deadline=None)
@given(trace=traces(), stamped=st.booleans(), suffix=st.sampled_from(["jsonl", "jsonl.gz", "jsonl.zst"]))
def test_what_is_written_is_read_back(tmp_path_factory, trace, stamped, suffix):
    if not stamped:
        trace = replace(trace, arrival_s=np.zeros(len(trace)), stamped=False)
    path = tmp_path_factory.mktemp("trace") / f"t.{suffix}"
    write_trace(path, trace)
    first = path.read_bytes()
    back = load_trace(path)
    assert back.stamped == stamped
    assert back.arrival_s.tolist() == trace.arrival_s.tolist()
    assert rows(back) == rows(trace)
    assert back.domains == trace.domains
    if trace.prefix_blocks is not None:
        assert back.prefix_blocks.block_tokens == trace.prefix_blocks.block_tokens
    first_note = 1 if trace.source else 0  # behind "made from: ..."
    assert back.notes[first_note : first_note + len(trace.notes)] == trace.notes
    write_trace(path, trace)
    assert path.read_bytes() == first
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@given(trace=traces(), cuts=st.lists(st.floats(0, 1.1e9), max_size=4, unique=True))
def test_windows_that_tile_the_trace_keep_every_request_once(trace, cuts):
    edges = [0.0, *sorted(set(cuts) - {0.0}), math.inf]
    kept, arrivals = [], []
    for low, high in zip(edges, edges[1:], strict=False):
        if ((trace.arrival_s >= low) & (trace.arrival_s < high)).any():
            part = window(trace, low, high)
            assert part.arrival_s[0] >= 0 and part.arrival_s[-1] <= high - low
            kept += rows(part)
            arrivals += (part.arrival_s + low).tolist()
    assert kept == rows(trace)
    np.testing.assert_allclose(arrivals, trace.arrival_s, rtol=0, atol=1e-6)


@given(trace=traces(), limit=st.integers(1, 50))
def test_limit_keeps_the_first(trace, limit):
    kept = first_requests(trace, limit)
    assert len(kept) == min(limit, len(trace))
    assert rows(kept) == rows(trace)[:limit]
    assert kept.arrival_s.tolist() == trace.arrival_s[:limit].tolist()


@given(trace=traces(), factor=st.floats(0.2, 1e6))
def test_rate_scale_multiplies_the_rate(trace, factor):
    scaled = scale_rate(trace, factor)
    np.testing.assert_allclose(scaled.arrival_s * factor, trace.arrival_s, rtol=1e-12, atol=1e-290)
    assert rows(scaled) == rows(trace)


@given(trace=traces(), rate=st.floats(1e-3, 1e6) | st.just(math.inf), seed=st.integers(-(2**70), 2**70))
def test_poisson_arrivals_change_arrivals_alone(trace, rate, seed):
    asked = with_poisson_arrivals(trace, rate, seed)
    assert rows(asked) == rows(trace)
    assert asked.arrival_s.tolist() == with_poisson_arrivals(trace, rate, seed).arrival_s.tolist()
    if math.isinf(rate):
        assert not asked.arrival_s.any()
    else:
        assert asked.arrival_s[0] > 0


@pytest.mark.parametrize("rate", [0.5, 4.0, 2500.0])
def test_offered_rate_is_the_rate_asked_for(rate):
    count = 200_000
    trace = Trace(np.zeros(count), np.ones(count, dtype=int), np.ones(count, dtype=int))
    gaps = np.diff(with_poisson_arrivals(trace, rate, seed=11).arrival_s, prepend=0.0)
    # 4.5 standard errors of the mean of exponential gaps; gaps that were cut at 3 means would miss by 5 %
    assert gaps.mean() * rate == pytest.approx(1, abs=4.5 / math.sqrt(count))
    assert gaps.std() / gaps.mean() == pytest.approx(1, abs=0.01)
    assert gaps.max() * rate > 8


def test_seeds_give_other_arrivals_and_the_lengths_of_the_trace():
    trace = example_trace()
    first, second = (with_poisson_arrivals(trace, 4.0, seed) for seed in (0, 1))
    assert first.arrival_s.tolist() != second.arrival_s.tolist()
    assert first.input_length.tolist() == second.input_length.tolist()


def test_window_then_limit_then_rate(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(trace_files.vidur())
    trace = load_trace(path, start_s=4.0, end_s=30.0, limit=3, rate_scale=2.0)
    assert trace.arrival_s.tolist() == [0.125, 0.125, 1.25]
    assert trace.input_length.tolist() == [396, 879, 91]
    assert [note.split(":")[0] for note in trace.notes] == ["window", "limit", "rate"]
    trace = load_trace(path, limit=2, request_rate=math.inf)
    assert trace.arrival_s.tolist() == [0.0, 0.0] and trace.input_length.tolist() == [374, 396]
