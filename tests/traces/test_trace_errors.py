"""A file that is no trace gives one sentence that names the place and what was expected."""

import errno
import gzip
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import trace_files
import zstandard

from sglang_dspark.errors import InputError
from simulator.traces import Trace, example_trace, load_trace, write_trace

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
VIDUR = "arrived_at,num_prefill_tokens,num_decode_tokens\n0,5,5\n"
OWN = '{"format": "sglang-dspark-trace", "version": 1}\n{"arrival_s": 1, "input_length": 5, "output_length": 5}\n'
OWN_2 = OWN.replace('"version": 1', '"version": 2').replace("5}", '5, "cached_length": 2}')
MOONCAKE = '{"timestamp": 0, "input_length": 5, "output_length": 5}\n'
BAILIAN = '{"chat_id": 1, "timestamp": 0, "input_length": 5, "output_length": 5}\n'

BROKEN = {
    "empty": ("", "is empty"),
    "blank": ("\n \n", "is empty"),
    "unknown columns": ("time,tokens\n1,2\n", "line 1: unknown trace format: got keys or columns 'time, tokens'"),
    "unknown keys": ('{"prompt": 3}\n', "line 1: unknown trace format: got keys or columns 'prompt'"),
    "half an object": ('{"timestamp": 0, "inp', "line 1: unknown trace format"),
    "binary": (bytes(range(255, -1, -1)) * 9, "line 1, byte 1: expected UTF-8 text, got byte 0xff"),
    "nul bytes": (b"\0" * 999, "line 1: unknown trace format"),
    "header alone": (AZURE, "line 1: expected at least one request below the header"),
    "negative length": (
        VIDUR + "1,-5,5\n",
        "line 3, column num_prefill_tokens: expected an integer 0 .. 2147483647, got '-5'",
    ),
    "nan length": (
        VIDUR + "1,5,nan\n",
        "line 3, column num_decode_tokens: expected an integer 0 .. 2147483647, got 'nan'",
    ),
    "huge length": (VIDUR + f"1,{'9' * 5000},5\n", "line 3, column num_prefill_tokens: expected an integer 0 .. 2147"),
    "length above int32": (VIDUR + "1,5,2147483648\n", "line 3, column num_decode_tokens: expected an integer"),
    "fractional length": (VIDUR + "1,5,5.5\n", "line 3, column num_decode_tokens: expected an integer"),
    "underscore": (VIDUR + "1,5_0,5\n", "line 3, column num_prefill_tokens: expected an integer"),
    "arabic digits": (VIDUR + "1,5,\u0665\n", "line 3, column num_decode_tokens: expected an integer"),
    "nan stamp": (VIDUR + "nan,5,5\n", "line 3, column arrived_at: expected seconds 0 .. 1e+10, got 'nan'"),
    "inf stamp": (VIDUR + "inf,5,5\n", "line 3, column arrived_at: expected seconds"),
    "negative stamp": (VIDUR + "-1,5,5\n", "line 3, column arrived_at: expected seconds 0 .. 1e+10, got '-1'"),
    "overflowing stamp": (VIDUR + "1e99,5,5\n", "line 3, column arrived_at: expected seconds"),
    "missing value": (
        VIDUR + "1,,5\n",
        "line 3, column num_prefill_tokens: expected an integer 0 .. 2147483647, got ''",
    ),
    "too few columns": (VIDUR + "1,5\n", "line 3: expected 3 columns, got 2"),
    "too many columns": (VIDUR + "1,5,5,5\n", "line 3: expected 3 columns, got 4"),
    "open quote": (VIDUR + '1,5,"5\n6,6,6\n', "line 4: expected comma-separated values: unexpected end of data"),
    "line in a field": (VIDUR + '1,5,"5\n6"\n', "line 4, column num_decode_tokens: expected an integer"),
    "after blank lines": (VIDUR + "\n\n1,x,5\n", "line 5, column num_prefill_tokens"),
    "no such day": (AZURE + "2023-02-30 00:00:00.5,5,5\n", "line 2, column TIMESTAMP: expected a UTC time"),
    "not UTC": (AZURE + "2024-05-10 00:00:00.5+02:00,5,5\n", "line 2, column TIMESTAMP: expected a UTC time"),
    "no date": (AZURE + "12.5,5,5\n", "line 2, column TIMESTAMP: expected a UTC time"),
    "nothing to serve": (VIDUR.replace("5", "0"), "expected a request with tokens, got 1 requests with none"),
    "mooncake negative": (
        MOONCAKE + MOONCAKE.replace("5", "-5"),
        "line 2, column input_length: expected an integer 0 .. 2147483647, got '-5'",
    ),
    "mooncake text": (
        MOONCAKE + MOONCAKE.replace("5", '"5"'),
        "line 2, column input_length: expected an integer 0 .. 2147483647, got '\"5\"'",
    ),
    "mooncake huge": (
        MOONCAKE + MOONCAKE.replace("5", "9" * 400),
        "line 2, column input_length: expected an integer 0 .. 2147483647, got '9999",
    ),
    "mooncake float": (
        MOONCAKE + MOONCAKE.replace("5", "655.5"),
        "line 2, column input_length: expected an integer 0 .. 2147483647, got '655.5'",
    ),
    "mooncake negative stamp": (
        MOONCAKE + MOONCAKE.replace("0", "-1"),
        "line 2, column timestamp: expected milliseconds 0 .. 1e+13, got '-1'",
    ),
    "mooncake null stamp": (
        MOONCAKE + MOONCAKE.replace("0", "null"),
        "line 2, column timestamp: expected milliseconds 0 .. 1e+13, got 'null'",
    ),
    "mooncake stamp missing": (
        MOONCAKE + MOONCAKE.replace('"timestamp": 0, ', ""),
        "line 2, column timestamp: expected timestamp for every request or for none",
    ),
    "stamp after none": (
        MOONCAKE.replace('"timestamp": 0, ', "") + MOONCAKE,
        "line 2, column timestamp: expected timestamp for every request or for none",
    ),
    "own without header": (OWN.splitlines()[1], "line 1: unknown trace format: got keys or columns 'arrival_s, input"),
    "git lfs": (
        "version https://git-lfs.github.com/spec/v1\noid sha256:44bf\nsize 144819209\n",
        "is a Git LFS pointer, not the trace itself: expected the file that `git lfs pull` fetches",
    ),
    "mooncake NaN": (MOONCAKE + MOONCAKE.replace("0", "NaN"), "line 2: expected one JSON object"),
    "mooncake overflow": (MOONCAKE + MOONCAKE.replace("0", "1e999"), "line 2"),
    "mooncake no key": (MOONCAKE + '{"timestamp": 0}\n', "line 2, column input_length: expected this key, got none"),
    "mooncake list": (MOONCAKE + "[]\n", "line 2: expected one JSON object (Expected `object`, got `array`), got '[]'"),
    "mooncake cut": (MOONCAKE + MOONCAKE[:20], "line 2: expected one JSON object"),
    "mooncake deep": (MOONCAKE + MOONCAKE[:-2] + ', "x": ' + "[" * 100_000 + "\n", "line 2: expected one JSON object"),
    "mooncake surrogate": (MOONCAKE + '{"\\ud800": 1}\n', "line 2"),
    "bailian no id": (BAILIAN + MOONCAKE, "line 2, column chat_id: expected this key, got none"),
    "bailian huge id": (
        BAILIAN.replace("1", "9" * 5000),
        "line 1, column chat_id: expected integer value within range, got '9999",
    ),
    "own unprintable key": (
        OWN.replace('"version"', '"a\\nb": 1, "version"'),
        "line 1, column 'a\\nb': expected no such key",
    ),
    "own unprintable domain": (
        trace_files.own().replace('["math"', '["ma\\nth"'),
        "line 2, column domain: expected one of ma th, chat, got 'math'",
    ),
    "own many domains": (
        OWN.replace('"version"', f'"domains": {json.dumps([str(n) for n in range(2**15)])}, "version"'),
        "line 1, column domains: expected at most 32767 domains, got 32768",
    ),
    "own many new domains": (
        OWN.splitlines()[0] + "".join(f'\n{OWN.splitlines()[1][:-1]}, "domain": "{n}"}}' for n in range(2**15)),
        "line 32769, column domain: expected at most 32767 domains",
    ),
    "own version": (
        OWN.replace('"version": 1', '"codec": "x", "version": 3'),
        "line 1, column version: expected version 1 or 2 (for a newer one update sglang-dspark, or write the trace "
        "with this release), got 3",
    ),
    "own first version has no cached": (
        OWN.replace("5}", '5, "cached_length": 2}'),
        "line 2, column cached_length: expected no such key",
    ),
    "own first version has stamps": (
        OWN.replace('"arrival_s": 1, ', ""),
        "line 2, column arrival_s: expected this key, got none",
    ),
    "own cached": (
        OWN_2 + OWN_2.splitlines()[1].replace('"cached_length": 2', '"cached_length": 5'),
        "line 3, column cached_length: expected fewer than the 5 prompt tokens, got 5",
    ),
    "own some cached": (
        OWN_2 + OWN.splitlines()[1],
        "line 3, column cached_length: expected cached_length for every request or for none",
    ),
    "own negative cached": (
        OWN_2.replace('"cached_length": 2', '"cached_length": -1'),
        "line 2, column cached_length: expected an integer 0 .. 2147483647, got '-1'",
    ),
    "own some stamps": (
        OWN_2 + OWN_2.splitlines()[1].replace('"arrival_s": 1, ', ""),
        "line 3, column arrival_s: expected arrival_s for every request or for none",
    ),
    "own format": (OWN.replace("sglang", "x"), "line 1, column format: expected 'sglang-dspark-trace', got 'x-dspark"),
    "own header key": (OWN.replace('"version"', '"x": 1, "version"'), "line 1, column x: expected no such key"),
    "own key": (
        OWN.replace('"arrival_s"', '"domian": "a", "arrival_s"'),
        "line 2, column domian: expected no such key",
    ),
    "own zero": (OWN.replace("5", "0"), "line 2, column input_length: expected an integer 1 .. 2147483647, got '0'"),
    "own alone": (OWN.splitlines()[0], "line 1: expected at least one request"),
    "own disorder": (
        OWN + OWN.splitlines()[1].replace("1,", "0.5,"),
        "line 3, column arrival_s: expected arrivals in order",
    ),
    "own count": (
        OWN.replace('"version"', '"requests": 3, "version"'),
        "column requests: expected 3 requests as the header",
    ),
    "own some domains": (
        OWN + OWN.splitlines()[1].replace("}", ', "domain": "a"}'),
        "line 3, column domain: expected domain for",
    ),
    "own domain": (
        trace_files.own().replace('"domain": "chat"', '"domain": "code"'),
        "line 3, column domain: expected one of math, chat",
    ),
    "own same domains": (
        trace_files.own().replace('"chat"]', '"math"]'),
        "line 1, column domains: expected different names",
    ),
}  # fmt: skip


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
        ({"stamped": False}, "arrival_s of a trace without stamps is not 0"),
    ],
    ids=str,
)
def test_trace_checks_itself(fields, message):
    good = {"arrival_s": [0.0, 1.0], "input_length": [1, 2], "output_length": [1, 2], "domains": ("a",)}
    Trace(**good)
    with pytest.raises(InputError, match=re.escape(message)):
        Trace(**(good | fields))


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
