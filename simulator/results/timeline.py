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
from simulator.engine.recorder import Recorder, StepView
from simulator.engine.run import Setting
from simulator.results.run import run_once


def write_timeline(path: Path, setting: Setting, policies: list[Policy]) -> None:
    """Run the first replication of each policy and write its timeline; gzip when the name ends in .gz."""
    events: list[dict[str, Any]] = []
    for process, policy in enumerate(policies):
        steps: list[StepView] = []
        _, recorder = run_once(setting, policy, on_step=steps.append)
        replicas = setting.engine.replicas
        events += _header(process, policy_to_string(policy), replicas)
        for step in steps:
            events += _step(process, step, replicas)
        events += _lanes(process, recorder, first=replicas)
    data = msgspec.json.encode({"traceEvents": events, "displayTimeUnit": "ms"})
    write_atomically(path, gzip.compress(data, mtime=0) if path.name.endswith(".gz") else data)


def _header(process: int, name: str, replicas: int) -> Iterator[dict[str, Any]]:
    yield {"ph": "M", "pid": process, "name": "process_name", "args": {"name": name}}
    for replica in range(replicas):
        title = "engine steps" + _which(replica, replicas)
        yield {"ph": "M", "pid": process, "tid": replica, "name": "thread_name", "args": {"name": title}}


def _which(replica: int, replicas: int) -> str:
    return f" {replica}" if replicas > 1 else ""


def _step(process: int, step: StepView, replicas: int) -> Iterator[dict[str, Any]]:
    start, duration = (step.end_s - step.seconds) * 1e6, step.seconds * 1e6
    name = f"decode x{step.batch}" if step.kind == "decode" else "prefill"
    yield {
        "ph": "X",
        "pid": process,
        "tid": step.replica,
        "name": name,
        "cat": step.kind,
        "ts": start,
        "dur": duration,
        "args": {"requests": step.batch, "tokens": step.tokens},
    }
    counters = [("running", step.running), ("waiting", step.waiting), ("kv tokens", step.kv)]
    if step.cached is not None:
        counters.append(("cached kv tokens", step.cached))
    for counter, value in counters:
        counter += _which(step.replica, replicas)
        yield {"ph": "C", "pid": process, "name": counter, "ts": step.end_s * 1e6, "args": {counter: value}}


def _lanes(process: int, recorder: Recorder, first: int) -> Iterator[dict[str, Any]]:
    """Every request as a span, lanes reused: as many rows as requests in flight at the peak, from thread `first`."""
    free: list[int] = []
    busy: list[tuple[float, int]] = []
    lanes = first
    for request in np.argsort(recorder.sent_s, kind="stable").tolist():
        sent, started, finish = (
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
        for name, begin, end in (("wait + prefill", sent, started), (f"decode {request}", started, finish)):
            yield {
                "ph": "X",
                "pid": process,
                "tid": lane,
                "name": name,
                "cat": "request",
                "ts": begin * 1e6,
                "dur": (end - begin) * 1e6,
                "args": {"request": request},
            }
