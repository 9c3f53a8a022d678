"""Which of two implementations to use on this device: measured once, not hoped for."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

Mode = Literal["auto", "ours", "upstream"]


@dataclass(frozen=True)
class Choice:
    """What was chosen for one operation, and why. Seconds are medians, None where nothing was measured."""

    operation: str
    kernels: Literal["ours", "upstream"]
    reason: str
    ours_s: float | None = None
    upstream_s: float | None = None

    def __str__(self) -> str:
        return f"{self.operation}: {self.kernels} ({self.reason})"


def seconds_per_call(
    call: Callable[[], object], device: torch.device, *, repeats: int = 20, graph: bool = True
) -> list[float]:
    """Seconds of `repeats` calls, each timed by itself after warm-up.

    graph: on CUDA, capture the call in a CUDA graph and time replays, as the engine runs it; otherwise launches count
    too. On a CPU the wall clock is read, and inside the interpreter the figures say nothing about speed.
    """
    if device.type != "cuda":
        call()
        taken = []
        for _ in range(repeats):
            began = time.perf_counter()
            call()
            taken.append(time.perf_counter() - began)
        return taken
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    torch.cuda.current_stream(device).wait_stream(side)
    run = call
    if graph:
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            call()
        run = captured.replay
    begin, end = ([torch.cuda.Event(enable_timing=True) for _ in range(repeats)] for _ in range(2))
    run()
    for first, last in zip(begin, end, strict=True):
        first.record()
        run()
        last.record()
    torch.cuda.synchronize(device)
    return [first.elapsed_time(last) / 1e3 for first, last in zip(begin, end, strict=True)]


def choose(
    operation: str,
    ours: Callable[[], object],
    upstream: Callable[[], object],
    device: torch.device,
    mode: Mode = "auto",
    *,
    graph: bool = True,
) -> Choice:
    """Measure both on the device and keep the faster; `mode` "ours" or "upstream" decides without measuring.

    ours, upstream: the same work on the same inputs, at the shapes that will be served. graph: see
    `seconds_per_call`. Without CUDA nothing is measured: upstream's is kept, and the reason says so. Errors:
    ValueError for another mode; whatever the calls raise.
    """
    if mode not in ("auto", "ours", "upstream"):
        raise ValueError(f"kernels={mode!r} is refused, expected auto, ours or upstream")
    if mode != "auto":
        return Choice(operation, mode, "asked for")
    if device.type != "cuda":
        return Choice(operation, "upstream", f"nothing measured: {device.type} is no CUDA device")
    ours_s, upstream_s = (statistics.median(seconds_per_call(call, device, graph=graph)) for call in (ours, upstream))
    winner: Literal["ours", "upstream"] = "ours" if ours_s < upstream_s else "upstream"
    reason = f"measured {ours_s * 1e6:.0f} us against upstream's {upstream_s * 1e6:.0f} us"
    return Choice(operation, winner, reason, ours_s, upstream_s)
