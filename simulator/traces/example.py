"""Makes the trace that the package brings: our own, so that it may be shipped; with domains and bursts.

``python -m simulator.traces.example FILE`` writes it again, byte for byte.
"""

from __future__ import annotations

import math
import sys
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from sglang_dspark.errors import InputError
from simulator.blocks.random import stream
from simulator.traces.trace import Trace
from simulator.traces.write import write_trace

_SEED = 2026
_COUNT = 600
_BASE_RATE = 3.2  # requests per second
_BURST_RATE = 9.0
_BURSTS_S = ((30.0, 36.0), (75.0, 83.0), (120.0, 124.0))  # from, to


class _Domain(NamedTuple):
    """Lengths are log-normal: median tokens and the spread of their logarithm."""

    share: float
    input_median: float
    input_spread: float
    output_median: float
    output_spread: float


# Chosen by hand: chat somewhat like Azure's conversations, code with long prompts and short answers, math
# with short prompts and long answers.
_DOMAINS = {
    "math": _Domain(0.25, 140, 0.6, 420, 0.7),
    "code": _Domain(0.30, 900, 1.0, 160, 0.9),
    "chat": _Domain(0.45, 450, 1.1, 190, 0.8),
}
_LONGEST_INPUT = 8192
_LONGEST_OUTPUT = 1536


def make_example() -> Trace:
    """Make the example anew: 600 requests, the same with every NumPy, as only uniform draws are taken."""
    draws = stream(_SEED, "example").random((_COUNT, 4))
    names = tuple(_DOMAINS)
    edges = np.cumsum([domain.share for domain in _DOMAINS.values()])
    domain = np.minimum(np.searchsorted(edges, draws[:, 1], side="right"), len(names) - 1)
    shapes = [_DOMAINS[names[index]] for index in domain]
    lengths = [
        (
            _length(shape.input_median, shape.input_spread, row[2], _LONGEST_INPUT),
            _length(shape.output_median, shape.output_spread, row[3], _LONGEST_OUTPUT),
        )
        for shape, row in zip(shapes, draws, strict=True)
    ]
    input_length, output_length = np.array(lengths).T
    return Trace(
        arrival_s=_arrivals(draws[:, 0]),
        input_length=input_length,
        output_length=output_length,
        domain=domain,
        domains=names,
        source="simulator.traces.example",
        notes=("synthetic: Poisson arrivals with three bursts, log-normal lengths by domain",),
    )


def _length(median: float, spread: float, draw: float, longest: int) -> int:
    value = median * math.exp(spread * NormalDist().inv_cdf(min(max(draw, 1e-9), 1 - 1e-9)))
    return min(max(round(value), 1), longest)


def _arrivals(draws: np.ndarray) -> np.ndarray:
    """Return arrivals [N], in seconds to the millisecond: a Poisson process that is faster in the bursts."""
    arrivals, now = [], 0.0
    for draw in draws:
        work = -math.log1p(-draw)  # expected number of arrivals until the next one
        for edge, rate in _rate_steps():
            if edge <= now:
                continue
            if work <= (edge - now) * rate:
                now += work / rate
                break
            work -= (edge - now) * rate
            now = edge
        arrivals.append(round(now, 3))
    return np.array(arrivals)


def _rate_steps() -> list[tuple[float, float]]:
    """Return (end in seconds, rate) of each stretch of constant rate."""
    steps = [step for start, end in _BURSTS_S for step in ((start, _BASE_RATE), (end, _BURST_RATE))]
    return [*steps, (math.inf, _BASE_RATE)]


def main(arguments: list[str]) -> int:
    """Write the example to the file named by the only argument; return the exit status."""
    if len(arguments) != 1:
        print("usage: python -m simulator.traces.example FILE", file=sys.stderr)
        return 2
    try:
        write_trace(arguments[0], make_example())
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
