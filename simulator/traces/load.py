"""From a file to the requests that a simulation serves: stamps put right, window, limit, coarse clock, rate."""

from __future__ import annotations

import importlib.resources
import os
from dataclasses import replace

import numpy as np

from sglang_dspark.errors import InputError
from simulator.traces.clock import doubt_rate, settle_clock
from simulator.traces.formats import TRACE_FORMATS, TraceReader, format_of
from simulator.traces.json_formats import JsonFormat
from simulator.traces.prefixes import MAX_BLOCK_TOKENS
from simulator.traces.raw import TIME_UNITS, RawRequests
from simulator.traces.select import check_limit, first_requests, scale_rate, window, with_poisson_arrivals
from simulator.traces.source import open_lines, printable, quoted, short_name
from simulator.traces.trace import Trace


def load_trace(
    path: str | os.PathLike[str],
    *,
    format: str | None = None,
    seed: int = 0,
    limit: int | None = None,
    start_s: float | None = None,
    end_s: float | None = None,
    time_unit: str | None = None,
    jitter: bool | None = None,
    block_tokens: int | None = None,
    rate_scale: float | None = None,
    request_rate: float | None = None,
) -> Trace:
    """Read a request trace; first the window is taken, then the limit, then a coarse clock spread, the rate changed.

    So a part of a file means the same as a file that holds only that part, on the same clock.

    Args:
        path: the file, plain, gzip or zstd.
        format: a name in `TRACE_FORMATS`; None tells it from the first line.
        seed: of everything that is drawn: jitter within buckets, and the arrivals of `request_rate`.
        limit: keep the first so many requests of the window.
        start_s, end_s: keep the stamps in start_s <= t < end_s, in seconds of the trace; start_s becomes 0.
        time_unit: unit of numeric stamps, "s" or "ms"; None: the format's, with a warning if the rate is odd.
        jitter: True spreads stamps on any regular grid within its steps, False none; None only the clock of a foreign
            trace with ticks of at most about a second, while bursts further apart are kept.
        block_tokens: tokens of a block of `hash_ids`; None: the format's.
        rate_scale: multiply the arrival rate: 2 halves every gap.
        request_rate: replace the arrivals by a Poisson process of so many requests per second; infinity
            lets all arrive at 0. Not together with `rate_scale` or `jitter`.

    Raises:
        InputError: if the file cannot be read as its format says (names file, line, column and what was
            expected), or an argument is out of range, does nothing, or leaves no request.
    """
    if request_rate is not None and rate_scale is not None:
        raise InputError("rate_scale and request_rate both set the arrival rate: give one of them")
    if request_rate is not None and jitter is not None:
        raise InputError("jitter does nothing with request_rate, which draws its own arrivals: give one of them")
    if time_unit is not None and time_unit not in TIME_UNITS:
        raise InputError(f"time unit {quoted(time_unit)} is unknown, expected {' or '.join(TIME_UNITS)}")
    check_limit(limit)
    with open_lines(path) as lines:
        name = format_of(lines, format)
        reader = TRACE_FORMATS[name]
        if time_unit is not None and reader.time_unit is None:
            raise InputError(f"--time-unit does nothing with {lines.name}: the stamps of format {name} have their unit")
        if block_tokens is not None:
            reader = _with_blocks(reader, block_tokens, name, lines.name)
        requests = reader.read(lines, time_unit or reader.time_unit)
    if block_tokens is not None and requests.prefix_blocks is None:
        raise InputError(f"--block-tokens does nothing with {printable(os.fspath(path))}: it has no hash_ids")
    trace = _put_right(requests, printable(os.fspath(path)), f"{short_name(path)} ({name})")
    if time_unit is not None:
        trace = _with_unit(trace, time_unit)
    trace = first_requests(window(trace, start_s, end_s), limit)
    if time_unit is None and reader.time_unit is not None:
        trace = doubt_rate(trace, reader.time_unit)
    if request_rate is not None:
        return with_poisson_arrivals(trace, request_rate, seed)
    trace = settle_clock(trace, jitter, seed, foreign=requests.foreign)
    return trace if rate_scale is None else scale_rate(trace, rate_scale)


def example_trace() -> Trace:
    """Return the shipped example: 600 requests in about two and a half minutes, of math, code and chat."""
    file = importlib.resources.files("simulator") / "examples" / "example.jsonl.gz"
    with importlib.resources.as_file(file) as path:
        trace = load_trace(path, format="own")
    return replace(trace, source=trace.source.replace(".gz", ""))


def _put_right(requests: RawRequests, name: str, source: str) -> Trace:
    """Turn a file's rows into a trace; `formats` says what is done to a foreign one."""
    order = np.arange(len(requests.input_length))
    stamp, notes = requests.stamp, list(requests.notes)
    if requests.foreign:
        served = (requests.input_length > 0) & (requests.output_length > 0)
        if not served.any():
            raise InputError(f"{name}: expected a request with tokens, got {len(order)} requests with none")
        if not served.all():
            notes.append(f"skipped: {len(order) - served.sum()} of {len(order)} requests have 0 tokens")
        order = order[served]
        if stamp is not None and (np.diff(stamp[order]) < 0).any():
            order = order[np.argsort(stamp[order], kind="stable")]
            notes.append("sorted: the file is not in order of arrival")
    if stamp is None:
        arrival_s = np.zeros(len(order))
    else:
        zero = stamp[order[0]] if requests.foreign else 0
        arrival_s = (stamp[order] - zero) / requests.per_second
        if zero > 0 and not requests.dated:
            notes.append(f"shifted: the file's first request arrives at {zero / requests.per_second:g} s")
    if requests.origin:
        notes.insert(0, f"made from: {requests.origin}")
    ids = requests.request_id
    return Trace(
        arrival_s=arrival_s,
        input_length=requests.input_length[order],
        output_length=requests.output_length[order],
        domain=None if requests.domain is None else requests.domain[order],
        domains=requests.domains,
        request_id=None if ids is None else tuple(ids[index] for index in order),
        cached_length=None if requests.cached_length is None else requests.cached_length[order],
        max_tokens=None if requests.max_tokens is None else requests.max_tokens[order],
        prefix_blocks=None if requests.prefix_blocks is None else requests.prefix_blocks.take(order),
        source=source,
        notes=tuple(notes),
        stamped=stamp is not None,
    )


def _with_blocks(reader: TraceReader, block_tokens: int, name: str, path: str) -> TraceReader:
    if not isinstance(reader, JsonFormat):
        raise InputError(f"--block-tokens does nothing with {path}: format {name} has no hash_ids, or says their size")
    if not 1 <= block_tokens <= MAX_BLOCK_TOKENS:
        raise InputError(f"block_tokens is {block_tokens}, expected 1 .. {MAX_BLOCK_TOKENS} tokens a block")
    return replace(reader, block_tokens=block_tokens)


def _with_unit(trace: Trace, time_unit: str) -> Trace:
    if not trace.stamped:
        raise InputError(f"--time-unit does nothing with {trace.source}: it has no stamps")
    return replace(trace, notes=(*trace.notes, f"time unit: the stamps are read as {time_unit}, as asked"))
