"""Times the draft and the verify part of a step: by events on a device with streams, by the host's clock on a CPU."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from sglang_dspark.serving.base.faults import Faults


class StepClock:
    """The segments of one step. Seconds are available once the step's values are on the host.

    A mark that cannot be set leaves its segment without a time and is counted in `faults`.
    """

    def __init__(self, device: torch.device, faults: Faults | None = None) -> None:
        self._faults = faults or Faults()
        self._on_device = device.type == "cuda"
        self._marks: dict[str, tuple[Any, Any]] = {}

    @contextmanager
    def segment(self, name: str) -> Iterator[None]:
        """Time what runs inside."""
        begin = self._mark()
        try:
            yield
        finally:
            end = self._mark()
            if begin is not None and end is not None:
                self._marks[name] = (begin, end)

    def _mark(self) -> Any:
        if not self._on_device:
            return time.perf_counter()
        with self._faults.caught("step clock", "the step has no times"):
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            return event
        return None

    def seconds(self, name: str) -> float | None:
        """Seconds of a segment; on a device only after its end event has passed."""
        if name not in self._marks:
            return None
        begin, end = self._marks[name]
        return float(begin.elapsed_time(end) * 1e-3 if self._on_device else end - begin)
