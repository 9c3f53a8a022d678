"""From a file to the requests that a simulation serves: stamps put right, window, limit, rate."""

from __future__ import annotations

import importlib.resources
import os

import numpy as np

from sglang_dspark.errors import InputError
from simulator.blocks.random import stream
from simulator.traces.formats import detect_format, find_format
from simulator.traces.raw import RawRequests
from simulator.traces.select import check_limit, first_requests, scale_rate, window, with_poisson_arrivals
from simulator.traces.source import open_lines, printable, short_name
from simulator.traces.trace import Trace

#: Fewer gaps between stamps than this say nothing about a grid.
_MIN_GAPS = 4

#: How far a gap between stamps may be from whole buckets, in buckets; what share of the gaps must be so.
_GRID_TOLERANCE = 0.1
_GRID_SHARE = 0.9


def load_trace(
    path: str | os.PathLike[str],
    *,
    format: str | None = None,
    seed: int = 0,
    limit: int | None = None,
    start_s: float | None = None,
    end_s: float | None = None,
    rate_scale: float | None = None,
    request_rate: float | None = None,
) -> Trace:
    """Read a request trace; then first the window is taken, then the limit, then the rate changed.

    Args:
        path: the file, plain, gzip or zstd.
        format: a name in `TRACE_FORMATS`; None tells it from the first line.
        seed: of everything that is drawn: jitter within buckets, and the arrivals of `request_rate`.
        limit: keep the first so many requests of the window.
        start_s, end_s: keep the arrivals in start_s <= t < end_s, in seconds of the trace; start_s becomes 0.
        rate_scale: multiply the arrival rate: 2 halves every gap.
        request_rate: replace the arrivals by a Poisson process of so many requests per second; infinity
            lets all arrive at 0. Not together with `rate_scale`.

    Raises:
        InputError: if the file cannot be read as its format says (names file, line, column and what was
            expected), or an argument is out of range or leaves no request.
    """
    if rate_scale is not None and request_rate is not None:
        raise InputError("rate_scale and request_rate both set the arrival rate: give one of them")
    check_limit(limit)
    with open_lines(path) as lines:
        name = detect_format(lines) if format is None else format
        requests = find_format(name).read(lines)
    trace = _put_right(requests, printable(os.fspath(path)), f"{short_name(path)} ({name})", seed)
    trace = window(trace, start_s, end_s)
    trace = first_requests(trace, limit)
    if rate_scale is not None:
        trace = scale_rate(trace, rate_scale)
    if request_rate is not None:
        trace = with_poisson_arrivals(trace, request_rate, seed)
    return trace


def example_trace() -> Trace:
    """Return the shipped example: 600 requests in about two and a half minutes, of math, code and chat."""
    file = importlib.resources.files("simulator") / "examples" / "example.jsonl"
    with importlib.resources.as_file(file) as path:
        return load_trace(path, format="own")


def _put_right(requests: RawRequests, name: str, source: str, seed: int) -> Trace:
    """Turn a file's rows into a trace; `formats` says what is done to a foreign one."""
    order = np.arange(len(requests.stamp_s))
    stamp_s, notes = requests.stamp_s, list(requests.notes)
    if requests.foreign:
        served = (requests.input_length > 0) & (requests.output_length > 0)
        if not served.any():
            raise InputError(f"{name}: expected a request with tokens, got {len(order)} requests with none")
        if not served.all():
            notes.append(f"skipped: {len(order) - served.sum()} of {len(order)} requests have 0 tokens")
        order = order[served]
        if (np.diff(stamp_s[order]) < 0).any():
            order = order[np.argsort(stamp_s[order], kind="stable")]
            notes.append("sorted: the file is not in order of arrival")
        stamp_s = stamp_s[order]
        if stamp_s[0] > 0:
            notes.append(f"shifted: the file's first request arrives at {stamp_s[0]:g} s")
            stamp_s = stamp_s - stamp_s[0]
        stamp_s, jitter_note = _spread_in_buckets(stamp_s, seed)
        notes += jitter_note
    if requests.origin:
        notes.insert(0, f"made from: {requests.origin}")
    ids = requests.request_id
    return Trace(
        arrival_s=stamp_s,
        input_length=requests.input_length[order],
        output_length=requests.output_length[order],
        domain=None if requests.domain is None else requests.domain[order],
        domains=requests.domains,
        request_id=None if ids is None else tuple(ids[index] for index in order),
        source=source,
        notes=tuple(notes),
    )


def _spread_in_buckets(stamp_s: np.ndarray, seed: int) -> tuple[np.ndarray, list[str]]:
    """Move stamps that name a bucket uniformly within it, in file order; return them and a note on it."""
    starts, bucket, counts = np.unique(stamp_s, return_inverse=True, return_counts=True)
    width = _bucket_width(starts, len(stamp_s))
    if width is None:
        return stamp_s, []
    room = np.append(np.minimum(np.diff(starts), width), width)
    draws = stream(seed, "jitter").random(len(stamp_s))
    draws = draws[np.lexsort((draws, bucket))]  # increasing within each bucket
    moved = np.minimum(starts[bucket] + draws * room[bucket], np.append(starts[1:], np.inf)[bucket])
    note = (
        f"jitter: arrivals come in buckets of {width:.3f} s ({len(starts)} stamps for {len(stamp_s)} "
        f"requests, up to {counts.max()} each); each moved uniformly within its bucket, seed {seed}"
    )
    return moved, [note]


def _bucket_width(starts: np.ndarray, count: int) -> float | None:
    """Return the width, in seconds, of the grid on which the stamps [S] of `count` requests lie, if any."""
    gaps = np.diff(starts)
    if len(gaps) < _MIN_GAPS or 2 * len(starts) > count:
        return None
    unit = float(np.quantile(gaps, 0.05, method="lower"))
    steps = gaps / unit
    if np.mean(np.abs(steps - np.round(steps)) <= _GRID_TOLERANCE) < _GRID_SHARE:
        return None
    return float(np.median(gaps[np.round(steps) == 1]))
