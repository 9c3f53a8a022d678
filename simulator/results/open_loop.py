"""What an open loop is asked for and what it serves: with arrivals of its own, output throughput judges nothing."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from simulator.engine.run import Assembly

_GROWTH = 1.5
"""A backlog that grows evenly is 7/3 as long in the last quarter of the arrivals as in the second one."""


def offered_and_served(run: Assembly, done: NDArray[np.bool_]) -> dict[str, float]:
    """offered_request_rate (inf: all at once), the backlog, and by what factor a run is overloaded (0: it is not).

    backlog_requests: mean number of requests without a first token over the last quarter of the arrivals. A run is
    overloaded when that is more than a full batch and grew since the second quarter. It then works at its limit until
    the end, so that requests over duration are what it sustains.
    """
    recorder = run.recorder
    sent = recorder.sent_s
    begin, end = float(np.nanmin(sent)), float(np.nanmax(sent))
    count, span = sent.size, end - begin
    offered = (count - 1) / span if span > 0 else math.inf
    out = {"offered_request_rate": offered, "backlog_requests": 0.0, "overload": 0.0}
    if not done.any():
        return out
    duration = float(np.nanmax(recorder.finish_s)) - begin
    sustained = recorder.completed / duration if duration else math.inf
    settings = run.model.settings
    slots = settings.max_running_requests * settings.replicas
    if span == 0:
        return {**out, "overload": math.inf if count > slots else 0.0}
    quarters = np.linspace(begin, end, 5)
    waits = np.where(done, recorder.first_token_s, sent)
    second, last = (_mean_number(sent, waits, quarters[i], quarters[i + 1]) for i in (1, 3))
    grows = last > slots and last > _GROWTH * second
    return {**out, "backlog_requests": last, "overload": offered / sustained if grows else 0.0}


def _mean_number(from_s: NDArray[np.float64], to_s: NDArray[np.float64], begin: float, end: float) -> float:
    """Mean number of intervals [from_s, to_s) that are open between begin and end."""
    shared = np.minimum(to_s, end) - np.maximum(from_s, begin)
    return float(np.maximum(shared, 0.0).sum() / (end - begin))
