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
    assert trace.stamped
    assert trace.arrival_s.dtype == np.float64 and trace.input_length.dtype == np.int64
    named = load_trace(path, format=expected)
    assert named.arrival_s.tolist() == trace.arrival_s.tolist()


def test_every_format_is_covered():
    without_stamps = {"bench-serving"}  # test_server_files has it
    assert {file[1] for file in FILES} == set(TRACE_FORMATS) - without_stamps


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


def test_cached_prompt_tokens(tmp_path):
    path = tmp_path / "t"
    path.write_text(trace_files.own_2())
    trace = load_trace(path)
    assert trace.cached_length.tolist() == [187, 198, 439, 45, 45, 190]
    assert trace.cached_share == pytest.approx(1104 / 2212)


@pytest.mark.parametrize(
    ("expected", "text"),
    [
        ("azure", "ContextTokens,GeneratedTokens\n9,3\n7,0\n5,2\n"),
        ("burstgpt", "Model,Request tokens,Response tokens,Total tokens,Log Type\nx,9,3,12,y\nx,7,0,7,y\nx,5,2,7,y\n"),
        ("vidur", "num_prefill_tokens,num_decode_tokens\n9,3\n7,0\n5,2\n"),
        (
            "mooncake",
            '{"input_length": 9, "output_length": 3}\n{"input_length": 7, "output_length": 0}\n'
            '{"input_length": 5.0, "output_length": 2.0}\n',
        ),
        (
            "bailian",
            "".join(
                f'{{"chat_id": {i}, "input_length": {i}, "output_length": {o}}}\n' for i, o in ((9, 3), (7, 0), (5, 2))
            ),
        ),
    ],
)
def test_stamps_may_be_missing_altogether(tmp_path, expected, text):
    path = tmp_path / "t"
    path.write_text(text)
    trace = load_trace(path)
    assert trace.source == f"t ({expected})"
    assert not trace.stamped and trace.offered_rate is None
    assert (trace.arrival_s.tolist(), trace.input_length.tolist(), trace.output_length.tolist()) == (
        [0.0, 0.0],
        [9, 5],
        [3, 2],
    )
    assert load_trace(path, format=expected, limit=1).input_length.tolist() == [9]
    for options in ({"start_s": 0.0}, {"end_s": 5.0}, {"rate_scale": 2.0}, {"time_unit": "s"}, {"jitter": True}):
        with pytest.raises(InputError, match="stamps"):
            load_trace(path, **options)
    drawn = load_trace(path, request_rate=2.0)
    assert drawn.stamped and drawn.arrival_s[0] > 0 and drawn.input_length.tolist() == [9, 5]


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
