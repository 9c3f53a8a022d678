"""Replays request traces through a SimPy model of SGLang's engine, under the very policies that serve live.

from simulator import simulate
result = simulate("trace.csv", "vllm-b300-dsv4-flash", ["fixed:k=7", "hull", "argmax:lag=2"], concurrency=64)
print(result.best().policy)
"""

from simulator.acceptance import Confidence
from simulator.drafters import DRAFTERS
from simulator.settings import EngineSettings
from simulator.simulate import Comparison, Paired, PolicyResult, simulate
from simulator.traces import Trace, load_trace, write_trace

__all__ = [
    "DRAFTERS",
    "Comparison",
    "Confidence",
    "EngineSettings",
    "Paired",
    "PolicyResult",
    "Trace",
    "load_trace",
    "simulate",
    "write_trace",
]
