"""A file that is no trace gives one sentence that names the place and what was expected."""

import errno
import gzip
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import trace_files
import zstandard
from broken_files import BROKEN

from sglang_dspark.errors import InputError
from simulator.traces import PrefixBlocks, Trace, example_trace, load_trace, write_trace


@pytest.mark.parametrize("name", BROKEN)
def test_broken_file(tmp_path, name):
    content, message = BROKEN[name]
    path = tmp_path / "broken.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        load_trace(path)
    text = str(caught.value)
    assert text.startswith(str(path)) and "\n" not in text and len(text) < 900


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress], ids=["gzip", "zstd"])
def test_cut_and_damaged_packing(tmp_path, pack):
    rows = [(n / 7, n % 997 + 1, n % 91 + 1) for n in range(5000)]
    packed = pack(trace_files.vidur(rows).encode())
    path = tmp_path / "trace"
    path.write_bytes(packed[: len(packed) // 2])
    with pytest.raises(InputError, match=r"line \d+: the compressed file ends too early"):
        load_trace(path)
    path.write_bytes(packed[: len(packed) // 2] + b"\0" * 64 + packed[len(packed) // 2 :])
    with pytest.raises(InputError):
        load_trace(path)
    path.write_bytes(packed[:6])
    with pytest.raises(InputError, match="the compressed file ends too early"):
        load_trace(path)
    path.write_bytes(pack(b"arrived_at,num_prefill_tokens,num_decode_tokens\n") + pack(b"1,2,3\n"))
    assert load_trace(path).input_length.tolist() == [2]  # members one after the other are one file


def test_paths_that_are_no_files(tmp_path):
    with pytest.raises(InputError, match="cannot be opened: No such file"):
        load_trace(tmp_path / "missing.csv")
    with pytest.raises(InputError, match="cannot be opened: Is a directory"):
        load_trace(tmp_path)
    with pytest.raises(InputError, match="cannot be opened: embedded null byte"):
        load_trace("a\0b")
    with pytest.raises(InputError, match="is empty"):
        load_trace(os.devnull)


def test_endless_line_is_refused_before_memory_is():
    if not os.path.exists("/dev/zero"):
        pytest.skip("no /dev/zero here")
    with pytest.raises(InputError, match="line 1: expected a line of at most"):
        load_trace("/dev/zero")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "csv"}, "trace format 'csv' is unknown, expected one of azure, burstgpt"),
        ({"format": "azure"}, "line 1: expected a header with the columns TIMESTAMP, ContextTokens, GeneratedTokens"),
        ({"format": "mooncake"}, "line 1: expected one JSON object"),
        ({"format": "own"}, "line 1: expected one JSON object"),
        ({"limit": 0}, "limit is 0"),
        ({"limit": -3}, "limit is -3"),
        ({"start_s": -1.0}, "expected 0 <= start_s < end_s"),
        ({"start_s": 5.0, "end_s": 5.0}, "expected 0 <= start_s < end_s"),
        ({"end_s": float("nan")}, "expected 0 <= start_s < end_s"),
        ({"start_s": 34.0}, "holds no request"),
        ({"rate_scale": 0.0}, "rate_scale is 0.0"),
        ({"rate_scale": float("inf")}, "rate_scale is inf"),
        ({"rate_scale": float("nan")}, "rate_scale is nan"),
        ({"rate_scale": 1e-300}, "stretches the trace"),
        ({"request_rate": 0.0}, "request_rate is 0.0"),
        ({"request_rate": -1.0}, "request_rate is -1.0"),
        ({"request_rate": float("nan")}, "request_rate is nan"),
        ({"request_rate": 5e-324}, "stretches the trace"),
        ({"request_rate": 1.0, "rate_scale": 1.0}, "give one of them"),
        ({"request_rate": 1.0, "jitter": False}, "jitter does nothing with request_rate"),
        ({"time_unit": "us"}, "time unit 'us' is unknown, expected s or ms"),
    ],
    ids=str,
)
def test_arguments_out_of_range(tmp_path, options, message):
    path = tmp_path / "t.csv"
    path.write_text(trace_files.vidur())
    with pytest.raises(InputError, match=re.escape(message)):
        load_trace(path, **options)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"arrival_s": []}, "is empty"),
        ({"arrival_s": [1.0, 0.5]}, "arrival_s of request 1 is 0.5, before"),
        ({"arrival_s": [0.0, float("nan")]}, "arrival_s of request 1 is nan"),
        ({"arrival_s": [-1.0, 0.0]}, "arrival_s of request 0 is -1.0"),
        ({"input_length": [1, 0]}, "input_length of request 1 is 0, expected 1 .. 2147483647"),
        ({"input_length": [1.5, 1.0]}, "input_length has type float64"),
        ({"output_length": [1]}, "output_length has shape [1], expected [2]"),
        ({"domain": [0, 1]}, "domain of request 1 is 1, expected 0 .. 0"),
        ({"request_id": ("a",)}, "request_id has 1 entries for 2 requests"),
        ({"prefix_blocks": PrefixBlocks([0, 1], [7], 4)}, "prefix_blocks has 1 entries for 2 requests"),
        (
            {"prefix_blocks": PrefixBlocks([0, 0, 2], [7, 8], 4)},
            "prefix_blocks of request 1 has 2 blocks, expected at most 1 of 4 tokens for 2 prompt tokens",
        ),
        (
            {"prefix_blocks": PrefixBlocks([0, 0, 1], [7], 4), "cached_length": [0, 1]},
            "a trace has cached_length and prefix_blocks, expected one",
        ),
        ({"max_tokens": [1]}, "max_tokens has shape [1], expected [2]"),
        ({"max_tokens": [1, 1]}, "max_tokens of request 1 is 1, expected at least the 2 tokens that it generates"),
        ({"stamped": False}, "arrival_s of a trace without stamps is not 0"),
    ],
    ids=str,
)
def test_trace_checks_itself(fields, message):
    good = {"arrival_s": [0.0, 1.0], "input_length": [1, 2], "output_length": [1, 2], "domains": ("a",)}
    Trace(**good)
    with pytest.raises(InputError, match=re.escape(message)):
        Trace(**(good | fields))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (([0, 1], [7], 0), "block_tokens is 0, expected 1 .. 1048576"),
        (([0, 2], [7], 4), "offsets of prefix blocks do not divide the 1 ids"),
        (([0, 1, 0, 1], [7], 4), "offsets of prefix blocks do not divide the 1 ids"),
        (([], [7], 4), "offsets of prefix blocks do not divide the 1 ids"),
        (([0, 1], [-7], 4), "a prefix block is -7, expected 0 .. 9223372036854775807"),
    ],
)
def test_prefix_blocks_check_themselves(fields, message):
    with pytest.raises(InputError, match=re.escape(message)):
        PrefixBlocks(*fields)


def test_trace_keeps_copies_that_cannot_be_changed():
    arrival_s = np.array([0.0, 1.0])
    trace = Trace(arrival_s, np.array([1, 2]), np.array([1, 2]))
    arrival_s[0] = 0.5
    assert trace.arrival_s[0] == 0
    with pytest.raises(ValueError, match="read-only"):
        trace.input_length[0] = 7


def test_refused_output_leaves_nothing(tmp_path):
    trace = example_trace()
    with pytest.raises(InputError, match="cannot be written: No such file or directory"):
        write_trace(tmp_path / "none" / "t.jsonl", trace)
    with pytest.raises(InputError, match="expected a regular file or a new name"):
        write_trace(tmp_path, trace)
    with pytest.raises(InputError, match="expected a regular file or a new name"):
        write_trace(os.devnull, trace)
    with pytest.raises(InputError, match="embedded null"):
        write_trace("a\0b", trace)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on file sizes there")
@pytest.mark.parametrize("name", ["t.jsonl", "t.jsonl.gz", "t.jsonl.zst"])
def test_a_disk_that_refuses_leaves_the_old_file(tmp_path, name):
    target = tmp_path / name
    target.write_text("old")
    code = (
        "import resource, signal, sys\n"
        "from simulator.traces import example_trace, write_trace\n"
        "from sglang_dspark.errors import InputError\n"
        "trace = example_trace()\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2048, 2048))\n"
        "try:\n"
        "    write_trace(sys.argv[1], trace)\n"
        "except InputError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, target], capture_output=True, text=True, check=True)
    assert done.stdout == f"{target}: the trace cannot be written: {os.strerror(errno.EFBIG)}\n"
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert target.read_text() == "old"
