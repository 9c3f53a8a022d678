"""Work that leaves traces of itself and kills the worker that does it. In a file of its own: the cluster imports it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path


def traced(folder: Path, victim: str = "") -> Callable[[tuple[int, str], Callable[[int], None]], int]:
    """A task is (number, what it does); it leaves a line of its number and node, and does not end on node `victim`."""
    (folder / f"begun-{os.getpid()}").touch()

    def work(task: tuple[int, str], report: Callable[[int], None]) -> int:
        import ray

        number, what = task
        node = ray.get_runtime_context().get_node_id()
        with open(folder / "tasks", "a") as file:
            file.write(f"{number} {node}\n")
        if what == "dies always" or (what == "dies once" and times(folder)[number] == 1):
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "raises":
            raise ValueError(f"task {number}")
        time.sleep(600 if node == victim else 0.1)
        report(10)
        return number * number

    return work


def times(folder: Path) -> dict[int, int]:
    """How often each task was begun."""
    numbers = [int(line.split()[0]) for line in (folder / "tasks").read_text().splitlines()]
    return {number: numbers.count(number) for number in numbers}
