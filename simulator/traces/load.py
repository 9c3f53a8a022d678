"""From a file to the requests that a simulation serves: stamps put right, window, limit, rate."""

from __future__ import annotations

import math
import os
from dataclasses import replace

import numpy as np

from sglang_dspark.errors import InputError

from ..random import stream
from .formats import detect_format, find_format
from .raw import RawRequests
from .source import open_lines, printable, short_name
from .trace import MAX_ARRIVAL_S, Trace

#: Fewer gaps between stamps than this say nothing about a grid.
_MIN_GAPS = 4

#: How far, in shares of the bucket, a gap between stamps may be from a whole number of buckets; how many must fit.
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
    """Read a request trace; the steps are done in the order in which the arguments stand here.

    Args:
        path: the file, plain, gzip or zstd.
        format: a name in `TRACE_FORMATS`; None tells it from the first line.
        seed: of everything that is drawn: jitter within buckets, and the arrivals of `request_rate`.
        limit: keep the first so many requests (of the window, if there is one).
        start_s, end_s: keep the arrivals in start_s <= t < end_s, in seconds of the trace; start_s becomes 0.
        rate_scale: multiply the arrival rate: 2 halves every gap.
        request_rate: replace the arrivals by a Poisson process of so many requests per second; infinity lets all
            arrive at 0. Not together with `rate_scale`.

    Raises:
        InputError: if the file cannot be read as said, names file, line, column and what was expected; if an argument is
            out of range or leaves no request.
    """
    if rate_scale is not None and request_rate is not None:
        raise InputError("rate_scale and request_rate both set the arrival rate: give one of them")
    _check_limit(limit)
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


def window(trace: Trace, start_s: float | None = None, end_s: float | None = None) -> Trace:
    """Return the requests that arrive in start_s <= t < end_s, shifted so that start_s becomes 0; None is open."""
    if start_s is None and end_s is None:
        return trace
    low = 0.0 if start_s is None else start_s
    high = math.inf if end_s is None else end_s
    if not 0 <= low < high:
        raise InputError(f"time window {low} .. {high} s: expected 0 <= start_s < end_s")
    inside = (trace.arrival_s >= low) & (trace.arrival_s < high)
    if not inside.any():
        raise InputError(
            f"time window {low} .. {high} s holds no request of {trace.source}: "
            f"expected one that meets {trace.arrival_s[0]:.3f} .. {trace.arrival_s[-1]:.3f} s"
        )
    kept = _take(trace, inside)
    note = f"window: {low} .. {high} s holds {len(kept)} of {len(trace)} requests"
    return replace(kept, arrival_s=kept.arrival_s - low, notes=(*trace.notes, note))


def first_requests(trace: Trace, limit: int | None) -> Trace:
    """Return the first `limit` requests, all of them if there are fewer or if it is None."""
    _check_limit(limit)
    if limit is None or limit >= len(trace):
        return trace
    note = f"limit: the first {limit} of {len(trace)} requests"
    return replace(_take(trace, slice(limit)), notes=(*trace.notes, note))


def scale_rate(trace: Trace, factor: float) -> Trace:
    """Return the trace with its arrival rate multiplied by `factor`: every stamp is divided by it."""
    if not (factor > 0 and math.isfinite(factor)):
        raise InputError(f"rate_scale is {factor}, expected a finite number above 0")
    arrival_s = trace.arrival_s / factor
    if arrival_s[-1] > MAX_ARRIVAL_S:
        raise InputError(
            f"rate_scale is {factor}, which stretches the trace beyond {MAX_ARRIVAL_S:g} seconds"
        )
    return replace(trace, arrival_s=arrival_s, notes=(*trace.notes, f"rate: multiplied by {factor}"))


def with_poisson_arrivals(trace: Trace, request_rate: float, seed: int) -> Trace:
    """Return the trace with the arrivals of a Poisson process of `request_rate` per second from time 0 on.

    Order and lengths stay; the gaps, the first one from 0 included, are exponential and not cut, so that the offered rate
    is the rate asked for. Infinity lets all arrive at 0. Different seeds give different arrivals.
    """
    if not request_rate > 0:
        raise InputError(f"request_rate is {request_rate}, expected a number above 0 or infinity")
    if math.isinf(request_rate):
        note = "arrivals: all at 0"
        return replace(trace, arrival_s=np.zeros(len(trace)), notes=(*trace.notes, note))
    arrival_s = np.cumsum(stream(seed, "arrivals").exponential(1.0, len(trace))) / request_rate
    if not arrival_s[-1] <= MAX_ARRIVAL_S:
        raise InputError(
            f"request_rate is {request_rate}, which stretches the trace beyond {MAX_ARRIVAL_S:g} seconds"
        )
    note = f"arrivals: Poisson at {request_rate} requests per second, seed {seed}"
    return replace(trace, arrival_s=arrival_s, notes=(*trace.notes, note))


def _check_limit(limit: int | None) -> None:
    if limit is not None and limit < 1:
        raise InputError(f"limit is {limit}, expected at least 1 request")


def _take(trace: Trace, which: np.ndarray | slice) -> Trace:
    names = trace.request_id
    if names is not None:
        names = tuple(names[index] for index in np.arange(len(trace))[which])
    return replace(
        trace,
        arrival_s=trace.arrival_s[which],
        input_length=trace.input_length[which],
        output_length=trace.output_length[which],
        domain=None if trace.domain is None else trace.domain[which],
        request_id=names,
    )


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
        stamp_s = stamp_s[order] - stamp_s[order[0]]
        stamp_s, jitter_note = _spread_in_buckets(stamp_s, seed)
        notes += jitter_note
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
    """Move stamps that name a bucket uniformly within it, file order kept; return them and a note if it was done."""
    starts, bucket, counts = np.unique(stamp_s, return_inverse=True, return_counts=True)
    width = _bucket_width(starts, len(stamp_s))
    if width is None:
        return stamp_s, []
    room = np.append(np.minimum(np.diff(starts), width), width)
    draws = stream(seed, "jitter").random(len(stamp_s))
    draws = draws[np.lexsort((draws, bucket))]  # increasing within each bucket
    moved = np.minimum(starts[bucket] + draws * room[bucket], np.append(starts[1:], np.inf)[bucket])
    note = (
        f"jitter: arrivals come in buckets of {width:.3f} s ({len(starts)} stamps for {len(stamp_s)} requests, up to "
        f"{counts.max()} each); each moved uniformly within its bucket, seed {seed}"
    )
    return moved, [note]


def _bucket_width(starts: np.ndarray, count: int) -> float | None:
    """Return the width of the grid, in seconds, that distinct stamps [S] of `count` requests lie on; None if on none."""
    gaps = np.diff(starts)
    if len(gaps) < _MIN_GAPS or 2 * len(starts) > count:
        return None
    unit = float(np.quantile(gaps, 0.05, method="lower"))
    steps = gaps / unit
    if np.mean(np.abs(steps - np.round(steps)) <= _GRID_TOLERANCE) < _GRID_SHARE:
        return None
    return float(np.median(gaps[np.round(steps) == 1]))
