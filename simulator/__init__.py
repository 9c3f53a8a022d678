"""Replays request traces through a SimPy model of SGLang's engine, under the very policies that serve live.

from simulator import Load, simulate
result = simulate(Load("trace.csv", concurrency=64), "vllm-b300-dsv4-flash", ["none", "hull", "argmax:lag=2"])
print(result)
"""

from simulator.blocks.acceptance import Confidence
from simulator.blocks.drafters import DRAFTERS
from simulator.drafter_comparison import DrafterComparison, compare_drafters
from simulator.engine.settings import EngineSettings
from simulator.inputs import Acceptance, Engine, Load
from simulator.results.comparison import Comparison, PolicyResult
from simulator.results.paired import Paired
from simulator.simulate import simulate
from simulator.traces import Trace, load_trace, write_trace

__all__ = [
    "DRAFTERS",
    "Acceptance",
    "Comparison",
    "Confidence",
    "DrafterComparison",
    "Engine",
    "EngineSettings",
    "Load",
    "Paired",
    "PolicyResult",
    "Trace",
    "compare_drafters",
    "load_trace",
    "simulate",
    "write_trace",
]
