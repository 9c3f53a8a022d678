"""What SimPy and NumPy alone cost: the loop that ours is held against."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import numpy as np
import simpy

from speed.loads import OUTPUT_TOKENS


def bare_loop(steps: int, running: int) -> None:
    """One SimPy process, one event a step, the batch as one array; requests arrive in a process of their own."""
    env, rng = simpy.Environment(), np.random.default_rng(0)
    waiting: list[int] = []
    wake: list[simpy.Event] = []

    def arrivals() -> Generator[simpy.Event, Any, None]:
        while True:
            waiting.append(OUTPUT_TOKENS)
            if wake:
                wake.pop().succeed()
            # Enough to keep every place taken, as in the runs that this is compared with.
            yield env.timeout(0.006 * 60 / running)

    def engine() -> Generator[simpy.Event, Any, None]:
        remaining = np.zeros(0)
        for _ in range(steps):
            if waiting and len(remaining) < running:
                count = min(len(waiting), running - len(remaining))
                remaining = np.concatenate([remaining, waiting[:count]])
                del waiting[:count]
            if len(remaining) == 0:
                wake.append(env.event())
                yield wake[0]
                continue
            yield env.timeout(0.006 + 0.00002 * len(remaining) * 4)
            remaining = remaining - (1 + rng.integers(0, 5, len(remaining)))
            remaining = remaining[remaining > 0]

    waiting += [OUTPUT_TOKENS] * running
    env.process(arrivals())
    env.run(until=env.process(engine()))
