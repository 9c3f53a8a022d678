"""Request traces: readers with automatic detection, selection, rates, and the project's own format."""

from simulator.traces.facts import trace_facts
from simulator.traces.formats import TRACE_FORMATS
from simulator.traces.load import example_trace, load_trace
from simulator.traces.prefixes import PrefixBlocks
from simulator.traces.random import random_trace
from simulator.traces.select import (
    asking_for,
    first_requests,
    part_of,
    requests_between,
    scale_rate,
    window,
    with_poisson_arrivals,
)
from simulator.traces.trace import Trace
from simulator.traces.write import write_trace

__all__ = [
    "TRACE_FORMATS",
    "PrefixBlocks",
    "Trace",
    "asking_for",
    "example_trace",
    "first_requests",
    "load_trace",
    "part_of",
    "random_trace",
    "requests_between",
    "scale_rate",
    "trace_facts",
    "window",
    "with_poisson_arrivals",
    "write_trace",
]
