"""What a part of a trace means does not depend on what lies outside it.

A file loaded with a window and a limit gives the same trace as a file that holds only the rows so chosen, on the same
clock: the first request of the whole file, where the clock is 0, is written in front of them.
"""

import json
import math
from dataclasses import dataclass

import numpy as np
import pytest
import trace_files
from hypothesis import event, given, settings
from hypothesis import strategies as st

from sglang_dspark.errors import InputError
from simulator.engine.run import domains_of
from simulator.traces import Trace, load_trace

FORMATS = ("azure", "burstgpt", "vidur", "mooncake", "bailian", "own", "own with blocks")
BLOCK_TOKENS = {"mooncake": 512, "bailian": 16, "own with blocks": 8}


@dataclass(frozen=True)
class Row:
    eighths: int  # arrival, in 1/8 s: exact in every format
    prompt: int
    answer: int
    name: str
    domain: str

    @property
    def triple(self) -> tuple[float, int, int]:
        return self.eighths / 8, self.prompt, self.answer


def written(format: str, rows: list[Row], stamped: bool = True) -> str:
    """A file of these rows, each with the name, domain and cached tokens or blocks that are its own."""
    triples = [row.triple for row in rows]
    if format.startswith("own"):
        lines = [{"format": "sglang-dspark-trace", "version": 2}]
        lines[0] |= {"block_tokens": BLOCK_TOKENS[format]} if format in BLOCK_TOKENS else {}
        lines += [own_row(row, format) for row in rows]
    elif format in ("mooncake", "bailian"):
        lines = [json.loads(line) for line in getattr(trace_files, format)(triples).splitlines()]
        lines = [line | {"hash_ids": blocks_of(row, format)} for line, row in zip(lines, rows, strict=True)]
        if format == "bailian":
            lines = [line | {"chat_id": row.name} for line, row in zip(lines, rows, strict=True)]
    else:
        text = getattr(trace_files, format)(triples)
        return text if stamped else "\n".join(without_stamp(line, format) for line in text.splitlines())
    if not stamped:
        for line in lines:
            line.pop("timestamp", None)
            line.pop("arrival_s", None)
    return "".join(json.dumps(line) + "\n" for line in lines)


def own_row(row: Row, format: str) -> dict:
    lengths = {"arrival_s": row.eighths / 8, "input_length": row.prompt, "output_length": row.answer}
    held = {"hash_ids": blocks_of(row, format)} if format in BLOCK_TOKENS else {"cached_length": row.prompt // 2}
    return lengths | {"domain": row.domain, "request_id": row.name, "max_tokens": row.answer + row.eighths} | held


def blocks_of(row: Row, format: str) -> list[int] | None:
    """Blocks that are this request's own, none for some."""
    count = -(-row.prompt // BLOCK_TOKENS[format])
    return [1000 * row.eighths + n for n in range(count)] if row.prompt % 5 else None


def without_stamp(line: str, format: str) -> str:
    return line.partition(",")[2]  # the first column in each of the CSV formats


@st.composite
def files(draw) -> tuple[str, list[Row]]:
    """Requests by ticks of 1/8, 1 or 3 s, crowded or sparse, in any order; some have no tokens to serve."""
    format = draw(st.sampled_from(FORMATS))
    step, offset = draw(st.sampled_from([1, 8, 24])), draw(st.integers(0, 40))
    sparse = st.lists(st.integers(0, 3), max_size=14).map(lambda counts: [1, *counts])
    counts = draw(sparse | st.lists(st.integers(2, 8), min_size=6, max_size=14))
    at = np.repeat(np.arange(len(counts)), counts)
    chance = draw(st.randoms(use_true_random=False))
    idle = 0.0 if format.startswith("own") else draw(st.sampled_from([0.0, 0.2]))
    rows = [
        Row(
            offset + step * int(tick),
            0 if chance.random() < idle else chance.randint(1, 50),
            0 if chance.random() < idle else chance.randint(1, 50),
            f"r{n}",
            chance.choice(["math", "code", "law"]),
        )
        for n, tick in enumerate(at)
    ]
    if not format.startswith("own") and draw(st.booleans()):
        chance.shuffle(rows)
    return format, rows


def served(format: str, rows: list[Row]) -> list[tuple[int, Row]]:
    """What the clock of the trace says of each request that is served (in 1/8 s), in order of arrival."""
    kept = sorted((row for row in rows if row.prompt and row.answer), key=lambda row: row.eighths)
    zero = kept[0].eighths if kept and not format.startswith("own") else 0
    return [(row.eighths - zero, row) for row in kept]


def loaded(path, text: str, **options) -> Trace | None:
    """The trace; None if the options are refused."""
    path.write_text(text)
    try:
        return load_trace(path, **options)
    except InputError:
        return None


def meaning(trace: Trace | None) -> object:
    """All that a simulation takes from a trace, domains and blocks by request."""
    if trace is None:
        return None
    domains = None if trace.domain is None else [trace.domains[index] for index in trace.domain]
    cached = None if trace.cached_length is None else trace.cached_length.tolist()
    blocks = [] if trace.prefix_blocks is None else [trace.prefix_blocks.of(n).tolist() for n in range(len(trace))]
    most = None if trace.max_tokens is None else trace.max_tokens.tolist()
    lengths = trace.input_length.tolist(), trace.output_length.tolist(), most
    return trace.stamped, trace.arrival_s.tolist(), *lengths, trace.request_id, domains, cached, blocks


OPTIONS = st.fixed_dictionaries(
    {"seed": st.integers(0, 3)},
    optional={"jitter": st.booleans(), "rate_scale": st.sampled_from([0.5, 3.0])},
) | st.fixed_dictionaries({"request_rate": st.sampled_from([0.7, float("inf")]), "seed": st.integers(0, 3)})
LIMITS = st.none() | st.integers(1, 30)
EDGES = st.none() | st.integers(0, 200)


@settings(deadline=None, max_examples=300)
@given(file=files(), start=EDGES, length=st.none() | st.integers(1, 200), limit=LIMITS, options=OPTIONS)
def test_a_window_and_a_limit(tmp_path_factory, file, start, length, limit, options):
    format, rows = file
    on_clock = served(format, rows)
    low = start or 0
    high = math.inf if length is None else low + length
    inside = {row for _, row in [(at, row) for at, row in on_clock if low <= at < high][:limit]}
    path = tmp_path_factory.getbasetemp() / "slice"
    window = {"start_s": None if start is None else low / 8, "end_s": None if length is None else high / 8}
    part = loaded(path, written(format, rows), **window, limit=limit, **options)
    if not inside:
        assert part is None
        return
    zero = on_clock[0][1]
    alone = [row for row in rows if row in inside or row is zero]
    assert meaning(part) == meaning(loaded(path, written(format, alone), **window, limit=limit, **options))
    if part is None:
        event("refused")
        return
    event("spread" if any(note.startswith("jitter") for note in part.notes) else "as stamped")
    assert sorted(zip(part.input_length.tolist(), part.output_length.tolist(), strict=True)) == sorted(
        (row.prompt, row.answer) for row in inside
    )
    if zero not in inside and "request_rate" not in options:  # without the zero of the clock: the same, but begun later
        bare = loaded(path, written(format, [row for row in alone if row is not zero]), **options)
        later = part.arrival_s[0] - bare.arrival_s[0]
        np.testing.assert_allclose(part.arrival_s, bare.arrival_s + later, rtol=0, atol=1e-9)
        assert meaning(part)[2:] == meaning(bare)[2:]


@settings(deadline=None, max_examples=60)
@given(file=files(), limit=st.integers(1, 30))
def test_a_limit_without_stamps(tmp_path_factory, file, limit):
    format, rows = file
    path = tmp_path_factory.getbasetemp() / "slice"
    inside = [row for row in rows if row.prompt and row.answer][:limit]
    part = loaded(path, written(format, rows, stamped=False), limit=limit)
    if not inside:
        assert part is None
        return
    assert meaning(part) == meaning(loaded(path, written(format, inside, stamped=False)))
    assert not part.stamped


def test_a_domain_outside_the_part_is_no_obstacle(tmp_path):
    """The acceptance of a domain that nobody has measured is asked for only where a request has it."""
    path = tmp_path / "t"
    rows = [Row(0, 5, 5, "a", "math"), Row(8, 5, 5, "b", "code"), Row(16, 5, 5, "c", "law")]
    path.write_text(written("own", rows))
    mix = {"math": 1.0}
    first, second = domains_of(load_trace(path, limit=2), mix, 0)
    assert [first] == domains_of(load_trace(path, limit=1), mix, 0).tolist()
    assert [second] == domains_of(load_trace(path, start_s=1.0, end_s=2.0), mix, 0).tolist()
    with pytest.raises(InputError, match="trace domain 'law' has no acceptance"):
        domains_of(load_trace(path), mix, 0)


def test_the_clock_of_a_part_is_its_own_whatever_lies_beyond(tmp_path):
    """A second of crowded ticks at the end of a trace of bursts: only the part decides what its stamps are."""
    bursts = [(15.0 * n, 100 + k, 7) for n in range(6) for k in range(50)]
    ticks = [(100.0 + n, 200 + k, 7) for n in range(60) for k in range(3)]
    path = tmp_path / "t.csv"
    path.write_text(trace_files.vidur(bursts + ticks))
    early = load_trace(path, end_s=100.0)
    late = load_trace(path, start_s=100.0)
    assert early.arrival_s.tolist() == [row[0] for row in bursts]
    assert [note.split(":")[0] for note in early.notes] == ["window", "bursts"]
    assert [note.split(":")[0] for note in late.notes] == ["window", "jitter"]
    path.write_text(trace_files.vidur(ticks))
    assert load_trace(path).arrival_s.tolist() == late.arrival_s.tolist()
