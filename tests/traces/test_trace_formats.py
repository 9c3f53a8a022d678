"""Every format is told from its content, and gives the same requests."""

import gzip
import re

import numpy as np
import pytest
import trace_files
import zstandard
from trace_files import FILES, ROWS

from sglang_dspark.errors import InputError
from simulator.traces import TRACE_FORMATS, load_trace


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstandard.compress], ids=["plain", "gzip", "zstd"])
@pytest.mark.parametrize(("expected", "text"), [file[1:] for file in FILES], ids=[file[0] for file in FILES])
def test_content_tells_the_format(tmp_path, expected, text, pack):
    path = tmp_path / "requests.dat"
    path.write_bytes(pack(text.encode()))
    trace = load_trace(path)
    arrival_s, input_length, output_length = zip(*ROWS, strict=True)
    np.testing.assert_allclose(trace.arrival_s, arrival_s, rtol=0, atol=1e-6)
    assert trace.input_length.tolist() == list(input_length)
    assert trace.output_length.tolist() == list(output_length)
    assert trace.source == f"requests.dat ({expected})"
    assert trace.arrival_s.dtype == np.float64 and trace.input_length.dtype == np.int64
    named = load_trace(path, format=expected)
    assert named.arrival_s.tolist() == trace.arrival_s.tolist()


def test_every_format_is_covered():
    assert {file[1] for file in FILES} == set(TRACE_FORMATS)


def test_domains_and_request_ids(tmp_path):
    path = tmp_path / "t"
    path.write_text(trace_files.own())
    trace = load_trace(path)
    assert trace.domains == ("math", "chat")
    assert trace.domain.tolist() == [0, 1, 0, 1, 0, 1]
    assert trace.request_id is None
    path.write_text(trace_files.bailian())
    trace = load_trace(path)
    assert trace.request_id == ("0", "1", "2", "3", "4", "5")
    assert trace.domain is None


def test_own_header_may_be_bare_and_clock_may_begin_early(tmp_path):
    path = tmp_path / "t"
    path.write_text(
        '{"format": "sglang-dspark-trace", "version": 1}\n\n'
        '{"arrival_s": 5, "input_length": 1, "output_length": 2, "domain": "b", "request_id": "x"}\n'
        '{"arrival_s": 5.5, "input_length": 3, "output_length": 4, "domain": "a", "request_id": "y"}\n'
    )
    trace = load_trace(path)
    assert trace.arrival_s.tolist() == [5.0, 5.5]
    assert trace.domains == ("b", "a") and trace.domain.tolist() == [0, 1]
    assert trace.request_id == ("x", "y")
    assert trace.span_s == 0.5


def test_100_ns_digits_survive(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:15:46.6805900,374,44\n"
        "2023-11-16 18:15:46.6805901,374,44\n"
    )
    assert load_trace(path).span_s == pytest.approx(1e-7, rel=1e-9)


def test_failed_requests_are_skipped_and_said(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(trace_files.burstgpt([(0, 5, 0), (1, 0, 5), (2.5, 5, 5), (4, 6, 7)]))
    trace = load_trace(path)
    assert trace.input_length.tolist() == [5, 6]
    assert trace.arrival_s.tolist() == [0.0, 1.5]
    assert "skipped: 2 of 4 requests have 0 tokens" in trace.notes


def test_disorder_is_sorted_and_said(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(trace_files.azure([(3, 30, 1), (1, 10, 1), (3, 31, 1), (2, 20, 1)]))
    trace = load_trace(path)
    assert trace.input_length.tolist() == [10, 20, 30, 31]  # stable for equal stamps
    assert trace.arrival_s.tolist() == [0, 1, 2, 2]
    assert any("sorted" in note for note in trace.notes)


def test_whole_floats_columns_in_any_order_and_byte_order_mark(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("\ufeffx,num_decode_tokens,arrived_at,num_prefill_tokens\nq,4.0,1e1, 7 \n,5,20.5,8.00\n")
    trace = load_trace(path)
    assert trace.source == "t.csv (vidur)"
    assert trace.input_length.tolist() == [7, 8]
    assert trace.output_length.tolist() == [4, 5]
    assert trace.arrival_s.tolist() == [0, 10.5]


def test_more_rows_than_one_block(tmp_path, monkeypatch):
    monkeypatch.setattr("simulator.traces.csv_formats._ROWS_AT_ONCE", 7)
    rows = [(n / 8, n + 1, 2 * n + 1) for n in range(30)]
    path = tmp_path / "t.csv"
    path.write_text(trace_files.vidur(rows))
    assert load_trace(path).input_length.tolist() == [row[1] for row in rows]
    path.write_text(trace_files.vidur([*rows, (40, -1, 1)]))
    with pytest.raises(InputError, match=re.escape("line 32, column num_prefill_tokens")):
        load_trace(path)


def bucketed(width_ms: float, seed: int = 5, count: int = 400, buckets: int = 90):
    draws = np.sort(np.random.default_rng(seed).integers(0, buckets, count))
    return [(round(width_ms * bucket) / 1e3, 10 + n, 5) for n, bucket in enumerate(draws)]


@pytest.mark.parametrize("width_ms", [3000, 3053.5, 1000])
def test_bucketed_stamps_are_spread_within_their_bucket(tmp_path, width_ms):
    rows = bucketed(width_ms)
    path = tmp_path / "t.jsonl"
    path.write_text(trace_files.mooncake(rows))
    trace = load_trace(path, seed=3)
    assert any(note.startswith(f"jitter: arrivals come in buckets of {width_ms / 1e3:.2f}") for note in trace.notes)
    stamps = np.array([row[0] for row in rows])
    moved = trace.arrival_s - (stamps - stamps[0])
    assert (moved >= 0).all() and (moved <= width_ms / 1e3 + 0.001).all()
    assert trace.input_length.tolist() == [row[1] for row in rows]  # file order kept
    assert moved.mean() == pytest.approx(width_ms / 2e3, rel=0.1)
    assert np.unique(trace.arrival_s).size == len(rows)
    assert load_trace(path, seed=3).arrival_s.tolist() == trace.arrival_s.tolist()
    assert load_trace(path, seed=4).arrival_s.tolist() != trace.arrival_s.tolist()


def test_fine_stamps_are_not_moved(tmp_path):
    arrivals = np.cumsum(np.random.default_rng(1).exponential(0.25, 300))
    rows = [(round(t, 3), 5, 5) for t in arrivals]
    path = tmp_path / "t.jsonl"
    path.write_text(trace_files.mooncake(rows))
    trace = load_trace(path)
    assert not any("jitter" in note for note in trace.notes)
    np.testing.assert_allclose(np.diff(trace.arrival_s), np.diff([row[0] for row in rows]), atol=1e-9)


def test_irregular_bunches_are_not_taken_for_buckets(tmp_path):
    starts = np.cumsum(np.random.default_rng(2).exponential(3.0, 60))
    rows = [(round(t, 3), 5, 5) for t in np.repeat(starts, 5)]
    path = tmp_path / "t.jsonl"
    path.write_text(trace_files.mooncake(rows))
    assert not any("jitter" in note for note in load_trace(path).notes)
