"""Changing a trace: its time window, first requests, rate, arrivals. Each change leaves a note."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from sglang_dspark.errors import InputError
from simulator.blocks.random import stream
from simulator.traces.trace import MAX_ARRIVAL_S, MAX_LENGTH, Trace


def window(trace: Trace, start_s: float | None = None, end_s: float | None = None) -> Trace:
    """Return the requests that arrive in start_s <= t < end_s, with start_s as the new 0; None is open."""
    if start_s is None and end_s is None:
        return trace
    low = 0.0 if start_s is None else start_s
    high = math.inf if end_s is None else end_s
    if not 0 <= low < high:
        raise InputError(f"time window {low} .. {high} s: expected 0 <= start_s < end_s")
    inside = (trace.arrival_s >= low) & (trace.arrival_s < high)
    if not trace.stamped:
        raise InputError(
            f"time window {low} .. {high} s needs stamps, {trace.source} has none: expected a limit instead"
        )
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
    check_limit(limit)
    if limit is None or limit >= len(trace):
        return trace
    note = f"limit: the first {limit} of {len(trace)} requests"
    return replace(_take(trace, slice(limit)), notes=(*trace.notes, note))


def part_of(trace: Trace, number: int, parts: int) -> Trace:
    """Return part `number` of `parts` consecutive ones of as many requests; its first request arrives at 0."""
    edges = np.linspace(0, len(trace), parts + 1).astype(int)
    kept = _take(trace, slice(edges[number], edges[number + 1]))
    note = f"window {number + 1} of {parts}: requests {edges[number]} .. {edges[number + 1] - 1}"
    return replace(kept, arrival_s=kept.arrival_s - kept.arrival_s[0], notes=(*trace.notes, note))


def requests_between(trace: Trace, begin: int, end: int) -> Trace:
    """Return requests begin .. end - 1; the first of them arrives at 0."""
    if (begin, end) == (0, len(trace)):
        return trace
    kept = _take(trace, slice(begin, end))
    note = f"part: requests {begin} .. {begin + len(kept) - 1} of {len(trace)}"
    return replace(kept, arrival_s=kept.arrival_s - kept.arrival_s[0], notes=(*trace.notes, note))


def scale_rate(trace: Trace, factor: float) -> Trace:
    """Return the trace with its arrival rate multiplied by `factor`: every stamp is divided by it."""
    if not (factor > 0 and math.isfinite(factor)):
        raise InputError(f"rate_scale is {factor}, expected a finite number above 0")
    if not trace.stamped:
        raise InputError(f"rate_scale needs stamps, {trace.source} has none: expected a request rate instead")
    with np.errstate(over="ignore"):  # checked below
        arrival_s = trace.arrival_s / factor
    if arrival_s[-1] > MAX_ARRIVAL_S:
        raise InputError(f"rate_scale is {factor}, which stretches the trace beyond {MAX_ARRIVAL_S:g} seconds")
    return replace(trace, arrival_s=arrival_s, notes=(*trace.notes, f"rate: multiplied by {factor}"))


def with_poisson_arrivals(trace: Trace, request_rate: float, seed: int) -> Trace:
    """Return the trace with the arrivals of a Poisson process of `request_rate` per second from time 0 on.

    Order and lengths stay. The gaps, the first one from 0 included, are exponential and not cut, so that the
    offered rate is the rate asked for. Infinity lets all arrive at 0. Other seeds give other arrivals.
    """
    if not request_rate > 0:
        raise InputError(f"request_rate is {request_rate}, expected a number above 0 or infinity")
    if math.isinf(request_rate):
        note = "arrivals: all at 0"
        return replace(trace, arrival_s=np.zeros(len(trace)), stamped=True, notes=(*trace.notes, note))
    with np.errstate(over="ignore"):  # checked below
        arrival_s = np.cumsum(stream(seed, "arrivals").exponential(1.0, len(trace))) / request_rate
    if not arrival_s[-1] <= MAX_ARRIVAL_S:
        raise InputError(f"request_rate is {request_rate}, which stretches the trace beyond {MAX_ARRIVAL_S:g} seconds")
    note = f"arrivals: Poisson at {request_rate} requests per second, seed {seed}"
    return replace(trace, arrival_s=arrival_s, stamped=True, notes=(*trace.notes, note))


def asking_for(trace: Trace, max_tokens: int | None) -> Trace:
    """Return the trace with every client asking for at most `max_tokens` tokens; None: as the trace says."""
    if max_tokens is None:
        return trace
    longest = int(trace.output_length.max())
    if not longest <= max_tokens <= MAX_LENGTH:
        raise InputError(
            f"max_tokens is {max_tokens}, expected at least the {longest} tokens of the longest answer in "
            f"{trace.source} and at most {MAX_LENGTH}"
        )
    note = f"max_tokens: every client asks for at most {max_tokens}"
    return replace(trace, max_tokens=np.full(len(trace), max_tokens), notes=(*trace.notes, note))


def check_limit(limit: int | None) -> None:
    """Raise InputError if `limit` is no number of requests."""
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
        cached_length=None if trace.cached_length is None else trace.cached_length[which],
        prefix_blocks=None if trace.prefix_blocks is None else trace.prefix_blocks.take(which),
        max_tokens=None if trace.max_tokens is None else trace.max_tokens[which],
    )
