"""Replays request traces through a SimPy model of SGLang's engine, under the very policies that serve live.

from simulator import simulate
result = simulate("trace.csv", "vllm-b300-dsv4-flash", ["fixed:k=7", "hull", "argmax:lag=2"], concurrency=64)
print(result.best().policy)
"""

from simulator.blocks.acceptance import Confidence
from simulator.blocks.drafters import DRAFTERS
from simulator.engine.settings import EngineSettings
from simulator.results.comparison import Comparison, PolicyResult
from simulator.results.paired import Paired
from simulator.simulate import simulate
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
