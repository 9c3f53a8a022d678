"""Whatever bytes a file holds, reading gives a valid trace or one InputError; no other exception, no endless read."""

import gzip
import random

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from trace_files import FILES

from sglang_dspark.errors import InputError
from simulator.traces import TRACE_FORMATS, load_trace

TEXTS = {name: text.encode() for name, _, text in FILES}
TOKENS = (
    b"nan",
    b"-1",
    b"1e400",
    b"9" * 30,
    b"\xff\xfe",
    b"\0",
    b'"',
    b",",
    b"\n",
    b"\r",
    b"{",
    b"}",
    b"[",
    b"null",
    b"true",
    b"1_0",
    b"\xd9\xa5",
    b"\\ud800",
    b"0",
    b" ",
    b"1e-400",
    b"\xef\xbb\xbf",
    b":",
    b'{"format"',
    b"+00:00",
)


def survives(path, data: bytes, format: str | None = None) -> None:
    path.write_bytes(data)
    try:
        trace = load_trace(path, format=format)
    except InputError as error:
        assert str(path) in str(error) and "\n" not in str(error)
    else:
        assert len(trace) >= 1 and trace.input_length.min() >= 1 and trace.output_length.min() >= 1
        assert trace.arrival_s[0] >= 0 and (trace.arrival_s[1:] >= trace.arrival_s[:-1]).all()


def mutated(data: bytes, draws: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(draws.randint(1, 4)):
        where = draws.randrange(len(changed) + 1)
        match draws.randrange(5):
            case 0:
                changed[where : where + draws.randint(1, 9)] = b""
            case 1:
                changed[where:where] = draws.choice(TOKENS)
            case 2:
                changed[where : where + draws.randint(1, 6)] = draws.choice(TOKENS)
            case 3:
                changed[where : where + 1] = bytes([draws.randrange(256)])
            case 4:
                part = changed[where : where + draws.randint(1, 60)]
                changed[where:where] = part
    return bytes(changed)


@pytest.mark.parametrize("name", TEXTS)
def test_mutated_files(tmp_path, name):
    draws = random.Random(name)
    for _ in range(150):
        survives(tmp_path / "t", mutated(TEXTS[name], draws))


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.compress], ids=["gzip", "zstd"])
def test_mutated_packed_files(tmp_path, pack):
    draws = random.Random(7)
    for text in TEXTS.values():
        packed = pack(text)
        for _ in range(30):
            survives(tmp_path / "t", mutated(packed, draws))


@pytest.mark.parametrize("name", TEXTS)
def test_cut_anywhere(tmp_path, name):
    for end in range(0, len(TEXTS[name]), 3):
        survives(tmp_path / "t", TEXTS[name][:end])


@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=300), format=st.sampled_from([None, *TRACE_FORMATS]))
def test_random_bytes(tmp_path_factory, data, format):
    survives(tmp_path_factory.getbasetemp() / "random-bytes", data, format)


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=200), name=st.sampled_from(sorted(TEXTS)), data=st.data())
def test_random_text_inside_a_file(tmp_path_factory, text, name, data):
    where = data.draw(st.integers(0, len(TEXTS[name])))
    inside = TEXTS[name][:where] + text.encode("utf-8", "surrogatepass") + TEXTS[name][where:]
    survives(tmp_path_factory.getbasetemp() / "random-text", inside)


def test_formats_read_each_others_files(tmp_path):
    for text in TEXTS.values():
        for format in TRACE_FORMATS:
            survives(tmp_path / "t", text, format)


def test_a_bomb_is_refused(tmp_path):
    path = tmp_path / "bomb.zst"
    path.write_bytes(zstandard.compress(bytes(1 << 28)))
    with pytest.raises(InputError, match="expected a line of at most"):
        load_trace(path)
