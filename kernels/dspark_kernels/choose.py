"""Which of two implementations to use on this device: measured once, not hoped for."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

Mode = Literal["auto", "ours", "upstream"]


@dataclass(frozen=True)
class Choice:
    """What was chosen for one operation, and why. Seconds are medians, summed over what was measured, None where
    nothing was. left: forms of the operation that stay upstream's although the others are ours."""

    operation: str
    kernels: Literal["ours", "upstream"]
    reason: str
    ours_s: float | None = None
    upstream_s: float | None = None
    left: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.operation}: {self.kernels} ({self.reason})"


def seconds_per_call(
    call: Callable[[], object], device: torch.device, *, repeats: int = 20, graph: bool = True, calls: int = 1
) -> list[float]:
    """Seconds of a call, `repeats` times after warm-up.

    graph: on CUDA, capture `calls` calls in one CUDA graph and time its replays, as the engine runs it (the launch of a
    graph is then a small part of what is timed); otherwise launches count too. On a CPU the wall clock is read, and
    inside the interpreter the figures say nothing about speed.
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
            for _ in range(calls):
                call()
        run = captured.replay
    else:
        calls = 1
    begin, end = ([torch.cuda.Event(enable_timing=True) for _ in range(repeats)] for _ in range(2))
    run()
    for first, last in zip(begin, end, strict=True):
        first.record()
        run()
        last.record()
    torch.cuda.synchronize(device)
    return [first.elapsed_time(last) / 1e3 / calls for first, last in zip(begin, end, strict=True)]


CALLS = 10
"""Calls in one graph where two implementations are compared."""


@dataclass(frozen=True)
class Pair:
    """The same work by both implementations on the same inputs; what: in words, such as "64 rows, filtered"."""

    what: str
    ours: Callable[[], object]
    upstream: Callable[[], object]


def medians(pair: Pair, device: torch.device) -> tuple[float, float, bool]:
    """(ours, upstream) seconds of a call, and whether both ran in graphs: where one cannot be captured, launches count
    for both."""
    calls = (pair.ours, pair.upstream)
    try:
        found = [statistics.median(seconds_per_call(call, device, calls=CALLS)) for call in calls]
        return found[0], found[1], device.type == "cuda"
    except RuntimeError:  # a capture was refused; what is wrong with the call itself is raised again below
        found = [statistics.median(seconds_per_call(call, device, graph=False)) for call in calls]
        return found[0], found[1], False


def choose_over(
    operation: str,
    pairs: Sequence[Pair],
    device: torch.device,
    timer: Callable[[Pair, torch.device], tuple[float, float, bool]] = medians,
) -> Choice:
    """Measure every pair, at the shapes that will be served, and keep what is faster over all of them together.

    Errors: ValueError without pairs; whatever the calls raise.
    """
    if not pairs:
        raise ValueError(f"nothing to measure {operation} on")
    found = [(pair.what, *timer(pair, device)) for pair in pairs]
    ours_s, upstream_s = (sum(times[index] for times in found) for index in (1, 2))
    winner: Literal["ours", "upstream"] = "ours" if ours_s < upstream_s else "upstream"
    told = ", ".join(
        f"{what} {ours * 1e6:.0f} us against upstream's {upstream * 1e6:.0f} us{'' if captured else ' (launched)'}"
        for what, ours, upstream, captured in found
    )
    return Choice(operation, winner, f"measured {told}", ours_s, upstream_s)


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
