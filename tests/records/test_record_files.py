"""Records survive the way to disk and back: round trips, rotation, damage, readers' bounds."""

import random
import subprocess
import sys
import textwrap
import zlib

import msgspec
import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from synthetic_records import header_of, synthetic_request, synthetic_steps

from sglang_dspark.errors import InputError
from sglang_dspark.records import (
    Gap,
    Header,
    Lagged,
    RecordSet,
    RecordWriter,
    StepRecord,
    WriterLimits,
    codec,
    read_records,
)
from sglang_dspark.records.codec import MAGIC, encode_record

SMALL = WriterLimits(block_bytes=4096, file_bytes=8_000, poll_s=0.005)


def equal(left: object, right: object) -> bool:
    """Deep equality with exact arrays."""
    if isinstance(left, np.ndarray):
        return isinstance(right, np.ndarray) and left.shape == right.shape and left.tobytes() == right.tobytes()
    if isinstance(left, msgspec.Struct):
        fields = left.__struct_fields__
        return type(left) is type(right) and all(equal(getattr(left, f), getattr(right, f)) for f in fields)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(equal, left, right))
    return left == right


def write(folder, records, limits=SMALL, gamma=5):
    writer = RecordWriter(folder, header_of("argmax:lag=2", gamma), limits)
    for record in records:
        assert writer.put(record)
    stats = writer.close()
    assert (stats.dropped, stats.problem) == (0, "")
    return stats


@pytest.mark.parametrize("policy", ["argmax:lag=2", "hull:fill=true", "goodput", "argmax:lag=3,cold=prior"])
def test_round_trip_over_rotated_files(tmp_path, policy):
    records = [*synthetic_steps(policy, steps=60), *map(synthetic_request, range(20))]
    stats = write(tmp_path, records)
    files = sorted(tmp_path.iterdir())
    assert len(files) > 2 and stats.written == len(records)
    found = [record for record in read_records(tmp_path) if not isinstance(record, Header)]
    assert all(map(equal, records, found)) and len(found) == len(records)
    summary = RecordSet(tmp_path).scan()
    assert (summary.steps, summary.requests, summary.problems) == (60, 20, [])


rows = st.integers(1, 6)
probability = st.floats(0, 1, width=32)


@st.composite
def any_step(draw):
    count, gamma = draw(rows), draw(st.integers(1, 8))
    lengths = draw(arrays(np.int32, count, elements=st.integers(0, gamma)))
    confidence = draw(st.none() | arrays(np.float32, (count, gamma), elements=probability))
    units = arrays(np.int32, (count, gamma), elements=st.integers(0, 1 << 24))
    lagged = draw(
        st.lists(st.builds(Lagged, lag=st.integers(1, 8), units=units, published=arrays(np.bool_, count)), max_size=2)
    )
    carry = draw(st.none() | st.floats(allow_nan=False) | arrays(np.int64, 3, elements=st.integers(-9, 1 << 62)))
    return gamma, StepRecord(
        step=draw(st.integers(0, 1 << 62)),
        slots=np.arange(count),
        lengths=lengths,
        accepted=lengths // 2,
        confidence=confidence,
        lagged=lagged,
        carry=carry,
        rids=draw(st.none() | st.just([f"é{i}" for i in range(count)])),
        draft_s=draw(st.none() | st.floats(0, 1)),
        override=draw(st.text(max_size=8)),
        explore=draw(st.booleans()),
    )


@given(any_step())
@settings(max_examples=60, deadline=None)
def test_any_step_survives(tmp_path_factory, drawn):
    gamma, step = drawn
    folder = tmp_path_factory.mktemp("any")
    write(folder, [step], gamma=gamma)
    [(_, found)] = RecordSet(folder).steps()
    assert equal(step, found)


def test_zstd_itself_unpacks_a_file(tmp_path):
    write(tmp_path, synthetic_steps(steps=5))
    [path] = tmp_path.iterdir()
    try:
        plain = subprocess.run(["zstd", "-dcq"], input=path.read_bytes(), capture_output=True, check=True).stdout
    except FileNotFoundError:
        pytest.skip("no zstd command on this machine")
    assert b"argmax:lag=2" in plain


def test_every_damage_is_named_and_the_rest_is_used(tmp_path):
    records = list(synthetic_steps(steps=200))
    write(tmp_path, records, WriterLimits(block_bytes=4096, poll_s=0.005))
    [path] = tmp_path.iterdir()
    whole = path.read_bytes()
    chance = random.Random(7)
    for _ in range(60):
        data, kind = bytearray(whole), chance.choice(["flip", "cut", "hole", "insert"])
        at, span = chance.randrange(len(data)), chance.randrange(1, 3000)
        if kind == "flip":
            data[at] ^= 1 << chance.randrange(8)
        elif kind == "cut":
            del data[at:]
        elif kind == "hole":
            del data[at : at + span]
        else:
            data[at:at] = chance.randbytes(span)
        path.write_bytes(data)
        check_damaged(path, data, whole, records, at)


def check_damaged(path, data, whole, records, at):
    known = {record.step: record for record in records}
    damaged = RecordSet(path)
    try:
        found = [step for _, step in damaged.steps()]
    except InputError as error:
        raise AssertionError(f"refused as a whole: {error}") from error
    assert all(equal(known[step.step], step) for step in found)
    problems = damaged.summary.problems
    first_block_end = whole.find(MAGIC, 1)
    boundaries = {0, len(whole)}
    start = 0
    while (start := whole.find(MAGIC, start + 1)) > 0:
        boundaries.add(start)
    if bytes(data) == whole or (len(data) <= len(whole) and len(data) in boundaries and whole.startswith(bytes(data))):
        return
    assert problems and problems[0].offset <= at and str(problems[0]).startswith(f"{path.name}, offset ")
    # Without its only header a file cannot be used; otherwise what is lost stays near the damage.
    assert found or at < first_block_end or len(data) <= first_block_end * 2 or not data


def test_a_file_without_its_first_block_uses_the_run_s_other_header(tmp_path):
    write(tmp_path, synthetic_steps(steps=200))
    files = sorted(tmp_path.iterdir())
    whole = RecordSet(tmp_path).scan()
    data = bytearray(files[0].read_bytes())
    data[40] ^= 255
    files[0].write_bytes(data)
    damaged = RecordSet(tmp_path).scan()
    assert damaged.steps == whole.steps
    assert [problem.offset for problem in damaged.problems] == [0]


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("lengths", np.array([9, 0]), "lengths holds a value outside 0..5"),
        ("accepted", np.array([3, 0]), "accepted holds"),
        ("confidence", np.full((2, 5), np.nan, dtype=np.float32), "confidence holds a value outside 0..1"),
        ("confidence", np.ones((2, 4), dtype=np.float32), "confidence is float32[2, 4]"),
        ("rids", ["a"], "rids has 1 names"),
        ("temperature", np.array([1, 1]), "temperature is int64[2]"),
    ],
)
def test_a_step_that_makes_no_sense_is_left_out(tmp_path, field, value, words):
    good = StepRecord(step=0, slots=np.arange(2), lengths=np.array([2, 1]), accepted=np.array([1, 1]))
    write(tmp_path, [good, msgspec.structs.replace(good, step=1, **{field: value}), good])
    records = RecordSet(tmp_path)
    assert len(list(records.steps())) == 2
    assert words in str(records.summary.problems[0]) and records.summary.bad_records == 1


def test_missing_paths_and_foreign_files(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        RecordSet(tmp_path / "nowhere")
    with pytest.raises(InputError, match="holds no .dspark file"):
        RecordSet(tmp_path)
    for name, data in [("empty.dspark", b""), ("foreign.dspark", b"PK\x03\x04" + bytes(5000))]:
        (tmp_path / name).write_bytes(data)
    summary = RecordSet(tmp_path).scan()
    assert [problem.reason for problem in summary.problems] == ["the file is empty", "no block starts here"]
    with pytest.raises(InputError, match="no readable record"):
        RecordSet(tmp_path).header()


def test_a_later_format_is_refused(tmp_path):
    writer = RecordWriter(tmp_path, Header(gamma=5, version=99))
    writer.put(Gap(dropped=1, reason="x"))
    writer.close()
    with pytest.raises(InputError, match="dspark-records 99"):
        list(read_records(tmp_path))


def test_a_bomb_is_refused(tmp_path):
    write(tmp_path, synthetic_steps(steps=3))
    [path] = tmp_path.iterdir()
    data = path.read_bytes()
    at = data.find(MAGIC, 1)
    huge = bytearray(data)
    huge[at + len(MAGIC) + 4 : at + len(MAGIC) + 8] = (1 << 31).to_bytes(4, "little")
    path.write_bytes(huge)
    assert RecordSet(path).scan().problems[0].offset == at


def test_unknown_fields_are_ignored(tmp_path):
    """A later version may add fields."""
    plain = msgspec.msgpack.decode(encode_record(synthetic_request()))
    writer = RecordWriter(tmp_path, header_of("fixed:k=5", 5))
    writer._queue.append(msgspec.msgpack.encode({**plain, "added_later": 1}))
    writer.close()
    assert next(RecordSet(tmp_path).requests()).rid == "r0"


def crafted(plain_bytes, packed, said=None):
    """A file with one block whose head says `plain_bytes`."""
    head = codec._HEAD.pack(
        codec._SKIPPABLE, codec.HEAD_BYTES - 8, codec._MARKER, len(packed), plain_bytes, zlib.crc32(packed)
    )
    return head + codec._CHECK.pack(zlib.crc32(head)) + packed


def nothing_but(byte, count):
    return zstandard.ZstdCompressor().compress(byte * count)


EMPTY_LISTS = b"\xdd" + (1 << 30).to_bytes(4, "big") + b"\x90" * 1000
CRAFTED = {
    "a frame of 2 GB in a block of 1 KB": (crafted(1024, nothing_but(b"\0", 2_000_000_000)), "2000000000 bytes"),
    "a head of 2 GB": (crafted(2_000_000_000, nothing_but(b"\0", 1000)), "expected at most"),
    "a billion records": (
        crafted(len(EMPTY_LISTS), zstandard.ZstdCompressor().compress(EMPTY_LISTS)),
        "no list of at most",
    ),
    "lists in lists": (
        crafted(100_005, zstandard.ZstdCompressor().compress(b"\xdd\0\0\0\1" + b"\x91" * 100_000)),
        "cannot be decoded",
    ),
}


@pytest.mark.parametrize("name", CRAFTED)
def test_a_crafted_file_is_refused_in_one_sentence_and_small_memory(tmp_path, name):
    data, reason = CRAFTED[name]
    assert len(data) < 200_000
    (tmp_path / "run-00000.dspark").write_bytes(data)
    code = f"""
        import resource
        from sglang_dspark.errors import InputError
        from sglang_dspark.records import RecordSet
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            RecordSet({str(tmp_path)!r}).header()
        except InputError as error:
            print(error)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
    sentence, grown = done.stdout.splitlines()
    assert "no readable record" in sentence and reason in sentence, sentence
    assert int(grown) < 50_000, f"{grown} KiB"
