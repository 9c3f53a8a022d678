"""What is simulated, and how its CPU time is taken. Another commit's simulator runs this file as well."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from sglang_dspark.cost import load_profile
from simulator.blocks.acceptance import BlockTable, StatisticalAcceptance
from simulator.blocks.drafters import DRAFTERS
from simulator.engine.run import Setting
from simulator.engine.settings import EngineSettings
from simulator.traces import Trace

PROFILE = "vllm-b300-dsv4-flash"
SIMULATED = ("fixed:k=7", "hull", "argmax:lag=2")
OUTPUT_TOKENS = 211  # mean of the Azure 2023 conversation trace


def synthetic(requests: int, tokens: int = OUTPUT_TOKENS) -> Trace:
    """Equal requests that all arrive at once."""
    prompt, output = np.full(requests, 512), np.full(requests, tokens)
    return Trace(np.zeros(requests), prompt, output, source="synthetic")


def setting(trace: Trace, running: int, *, closed: bool = True) -> Setting:
    """A trace on one replica with a limit of running requests."""
    cost = load_profile(PROFILE)
    engine = EngineSettings(max_running_requests=running)
    return Setting(trace, cost, cost, DRAFTERS["dspark"], engine=engine, concurrency=running if closed else None)


def drawing_s(todo: Setting, repeats: int) -> float:
    """CPU seconds to draw the blocks of every request of the trace once, the least of `repeats`."""
    output = todo.trace.output_length
    source = StatisticalAcceptance(todo.drafter, todo.confidence, todo.domains(todo.trace, 0), output, 0)
    table = BlockTable.empty(int(output.max()) + 1, source.gamma, confidence=False)
    anchors = (output + 1).tolist()

    def all_blocks() -> None:
        for request, count in enumerate(anchors):
            source.fill(request, 0, table.rows(0, count))

    return min(timed(all_blocks)[0] for _ in range(repeats))


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds, and what the call returned."""
    start = time.process_time()
    result = call()
    return time.process_time() - start, result


def on_one_core() -> None:
    """Keep this process and its children on one core, where the system can."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
