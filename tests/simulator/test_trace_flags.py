"""The flags of `simulate` that say how a trace is read: --time-unit, --jitter, window and limit before the clock."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import PROFILE, QUICK, assert_one_line_error, call

from simulator.flags.load import LoadFlags
from simulator.traces import Trace, example_trace, first_requests, load_trace

VIDUR = "arrived_at,num_prefill_tokens,num_decode_tokens\n"
TICKS = VIDUR + "".join(f"{n // 4},{100 + n},5\n" for n in range(40))
BURSTS = VIDUR + "".join(f"{15 * (n // 10)},{100 + n},5\n" for n in range(60))
LENGTHS = "num_prefill_tokens,num_decode_tokens\n" + "100,5\n" * 8
SECONDS = "".join(
    json.dumps({"timestamp": n / 4 + n % 3 / 50, "input_length": 90 + n, "output_length": 5}) + "\n" for n in range(40)
)
OPEN = ("--profile", PROFILE, "--policy", "fixed:k=7", *QUICK)


@pytest.fixture
def file(tmp_path: Path):
    def write(text: str) -> str:
        path = tmp_path / "trace"
        path.write_text(text)
        return str(path)

    return write


def notes(capsys, *arguments: str) -> list[str]:
    answer = call(capsys, *OPEN, *arguments, "--json")
    assert answer.status == 0, answer.err
    return answer.report["setting"]["trace_notes"]


def test_span_and_rate_are_printed_for_every_trace(capsys, file) -> None:
    span_s = first_requests(example_trace(), 40).span_s
    assert notes(capsys, "--trace", "example")[-1] == f"40 requests over {span_s:.2f} s: {39 / span_s:.2f} requests/s"
    assert notes(capsys, "--trace", file(SECONDS), "--time-unit", "s")[-2:] == [
        "time unit: the stamps are read as s, as asked",
        "40 requests over 9.75 s: 4.00 requests/s",
    ]
    said = notes(capsys, "--trace", file(SECONDS))
    assert said[-1] == "40 requests over 0.00975 s: 4,000 requests/s"
    assert said[-2].startswith("warning: 4,000 requests/s is implausible") and "--time-unit s" in said[-2]
    assert notes(capsys, "--trace", file(SECONDS), "--time-unit", "s", "--rate-scale", "2")[-1].endswith(
        "8.00 requests/s"
    )
    answer = call(capsys, *OPEN, "--wide", "--trace", file(SECONDS), "--time-unit", "s")
    assert "trace: 40 requests over 9.75 s: 4.00 requests/s" in answer.out


def test_jitter_and_no_jitter(capsys, file) -> None:
    assert any(note.startswith("jitter: ") for note in notes(capsys, "--trace", file(TICKS)))
    assert any(note.startswith("bursts: ") for note in notes(capsys, "--trace", file(TICKS), "--no-jitter"))
    limit = ("--limit", "60")
    assert any(note.startswith("bursts: ") for note in notes(capsys, "--trace", file(BURSTS), *limit))
    assert any(note.startswith("jitter: ") for note in notes(capsys, "--trace", file(BURSTS), "--jitter", *limit))


@pytest.mark.parametrize(
    ("text", "flags", "says"),
    [
        (TICKS, ("--jitter",), "--jitter does nothing with trace (vidur)"),
        (BURSTS, ("--no-jitter", "--limit", "60"), "--no-jitter does nothing with trace (vidur)"),
        (SECONDS, ("--time-unit", "s", "--jitter"), "its stamps lie on no regular grid that requests share"),
        (TICKS, ("--no-jitter", "--concurrency", "4"), "--no-jitter does nothing with --concurrency"),
        (BURSTS, ("--jitter", "--request-rate", "4"), "--jitter does nothing with --request-rate"),
        (TICKS, ("--time-unit", "minutes"), "time unit 'minutes' is unknown, expected s or ms"),
        (LENGTHS, (), "trace (vidur) has no stamps for an open loop: give --request-rate or --concurrency"),
        (LENGTHS, ("--start", "1", "--concurrency", "4"), "needs stamps, trace (vidur) has none: expected a limit"),
        (LENGTHS, ("--end", "1", "--request-rate", "4"), "needs stamps, trace (vidur) has none"),
        (LENGTHS, ("--rate-scale", "2"), "needs stamps, trace (vidur) has none: expected a request rate instead"),
        (LENGTHS, ("--time-unit", "ms", "--concurrency", "4"), "--time-unit does nothing with trace (vidur): it has"),
        (LENGTHS, ("--jitter",), "--jitter does nothing with trace (vidur): it has no stamps"),
    ],
)
def test_a_flag_that_would_do_nothing_is_refused(capsys, file, text, flags, says) -> None:
    assert_one_line_error(call(capsys, *OPEN, *flags, "--trace", file(text)), says)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--time-unit", "s"), "--time-unit does nothing"),
        (("--jitter",), "--jitter does nothing"),
        (("--no-jitter",), "--no-jitter does nothing"),
    ],
)
def test_the_example_and_records_say_their_stamps_themselves(capsys, tmp_path, flags, says) -> None:
    for trace in ("example", str(tmp_path)):
        assert_one_line_error(call(capsys, *OPEN, "--trace", trace, *flags), says)


def test_lengths_alone_run_in_a_closed_loop_and_at_a_rate(capsys, file) -> None:
    for loop in (("--concurrency", "4"), ("--request-rate", "4")):
        assert notes(capsys, "--trace", file(LENGTHS), *loop) == ["8 requests without stamps"]


def test_the_command_takes_the_part_before_it_looks_at_the_clock(file) -> None:
    path = file(TICKS)
    part = {"start_s": 2.0, "end_s": 9.0, "limit": 20, "rate_scale": 2.0}
    flags = {"start": 2.0, "end": 9.0, "limit": 20, "rate_scale": 2.0}
    load = LoadFlags(path, **flags).requests(3, None)
    assert isinstance(load, Trace)
    assert load.arrival_s.tolist() == load_trace(path, seed=3, **part).arrival_s.tolist()
    assert load.notes == load_trace(path, seed=3, **part).notes
    example = LoadFlags("example", **flags).requests(3, None)
    assert isinstance(example, Trace) and [note.split(":")[0] for note in example.notes[-3:]] == [
        "window",
        "limit",
        "rate",
    ]
