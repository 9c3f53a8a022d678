"""Chrome trace events for ui.perfetto.dev: engine steps, counters, and request lanes, one process a policy."""

from __future__ import annotations

import gzip
import heapq
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from sglang_dspark.cost import write_atomically
from sglang_dspark.policies import Policy, policy_to_string
from simulator.recorder import Recorder, StepView
from simulator.run import Setting, run_once

_STEPS, _REQUESTS = 0, 1  # thread numbers; request lanes follow


def write_timeline(path: Path, setting: Setting, policies: list[Policy]) -> None:
    """Run the first replication of each policy and write its timeline; gzip when the name ends in .gz."""
    events: list[dict[str, Any]] = []
    for process, policy in enumerate(policies):
        steps: list[StepView] = []
        _, recorder = run_once(setting, policy, on_step=steps.append)
        events += _header(process, policy_to_string(policy))
        for step in steps:
            events += _step(process, step)
        events += _lanes(process, recorder)
    data = msgspec.json.encode({"traceEvents": events, "displayTimeUnit": "ms"})
    write_atomically(path, gzip.compress(data, mtime=0) if path.name.endswith(".gz") else data)


def _header(process: int, name: str) -> list[dict[str, Any]]:
    return [
        {"ph": "M", "pid": process, "name": "process_name", "args": {"name": name}},
        {"ph": "M", "pid": process, "tid": _STEPS, "name": "thread_name", "args": {"name": "engine steps"}},
    ]


def _step(process: int, step: StepView) -> Iterator[dict[str, Any]]:
    start, duration = (step.end_s - step.seconds) * 1e6, step.seconds * 1e6
    name = f"decode x{step.batch}" if step.kind == "decode" else "prefill"
    yield {
        "ph": "X", "pid": process, "tid": _STEPS, "name": name, "cat": step.kind, "ts": start, "dur": duration,
        "args": {"requests": step.batch, "tokens": step.tokens},
    }  # fmt: skip
    for counter, value in (("running", step.running), ("waiting", step.waiting), ("kv tokens", step.kv)):
        yield {"ph": "C", "pid": process, "name": counter, "ts": step.end_s * 1e6, "args": {counter: value}}


def _lanes(process: int, recorder: Recorder) -> Iterator[dict[str, Any]]:
    """Every request as a span, lanes reused: as many rows as requests in flight at the peak."""
    free: list[int] = []
    busy: list[tuple[float, int]] = []
    lanes = _REQUESTS
    for request in np.argsort(recorder.sent_s, kind="stable").tolist():
        sent, first, finish = (
            float(at[request]) for at in (recorder.sent_s, recorder.first_token_s, recorder.finish_s)
        )
        if np.isnan(finish):
            continue
        while busy and busy[0][0] <= sent:
            heapq.heappush(free, heapq.heappop(busy)[1])
        if free:
            lane = heapq.heappop(free)
        else:
            lane, lanes = lanes, lanes + 1
        heapq.heappush(busy, (finish, lane))
        for name, begin, end in (("wait + prefill", sent, first), (f"decode {request}", first, finish)):
            yield {
                "ph": "X", "pid": process, "tid": lane, "name": name, "cat": "request", "ts": begin * 1e6,
                "dur": (end - begin) * 1e6, "args": {"request": request},
            }  # fmt: skip
