"""What an open loop is asked for and what it serves: with arrivals of its own, output throughput judges nothing."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from simulator.engine.run import Assembly

_GROWTH = 1.5
"""A backlog that grows evenly is 7/3 as long in the last quarter of the arrivals as in the second one."""

Floats = NDArray[np.float64]


def offered_and_served(run: Assembly, done: NDArray[np.bool_]) -> dict[str, float]:
    """offered_request_rate (inf: all at once), the backlog, and by what factor a run is overloaded (0: it is not).

    Requests that can never fit are refused at once and count nowhere. backlog_requests: mean number of requests that no
    replica decodes yet, over the last quarter of the arrivals. A run is overloaded when that is more than a full batch
    and grew since the second quarter. overload, sustained_request_rate: since the backlog last was a full batch, what
    came a second against what was finished a second, until the last one.
    """
    recorder, slots = run.recorder, run.model.server.max_running_requests * run.model.settings.replicas
    sent, entered, finish = recorder.sent_s[done], recorder.entered_s[done], recorder.finish_s[done]
    out = {"offered_request_rate": 0.0, "backlog_requests": 0.0, "overload": 0.0, "sustained_request_rate": 0.0}
    if sent.size == 0:
        return out
    begin, end = float(sent.min()), float(sent.max())
    if begin == end:
        sustained = sent.size / (float(finish.max()) - begin) if finish.max() > begin else math.inf
        overload = math.inf if sent.size > slots else 0.0
        return {**out, "offered_request_rate": math.inf, "overload": overload, "sustained_request_rate": sustained}
    out["offered_request_rate"] = (sent.size - 1) / (end - begin)
    quarters = np.linspace(begin, end, 5)
    second, last = (_mean_number(sent, entered, quarters[i], quarters[i + 1]) for i in (1, 3))
    out["backlog_requests"] = last
    if last <= slots or last <= _GROWTH * second:
        return out
    since = _full_since(sent, entered, slots, end)
    came, served = int((sent > since).sum()), int((finish > since).sum())
    sustained = served / (float(finish.max()) - since)
    offered = came / (end - since) if end > since else math.inf
    return {**out, "overload": offered / sustained, "sustained_request_rate": sustained}


def _full_since(sent_s: Floats, entered_s: Floats, slots: int, end: float) -> float:
    """When the number of requests that wait was at most `slots` for the last time before `end`."""
    at = np.concatenate([sent_s, entered_s])
    order = np.argsort(at, kind="stable")
    waiting = np.cumsum(np.repeat([1, -1], sent_s.size)[order])
    few = np.flatnonzero((waiting <= slots) & (at[order] < end))
    return float(at[order][few[-1]]) if few.size else float(sent_s.min())


def _mean_number(from_s: Floats, to_s: Floats, begin: float, end: float) -> float:
    """Mean number of intervals [from_s, to_s) that are open between begin and end."""
    shared = np.minimum(to_s, end) - np.maximum(from_s, begin)
    return float(np.maximum(shared, 0.0).sum() / (end - begin))
