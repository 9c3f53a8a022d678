"""What every source is simulated with: step costs as functions, a closed loop that only decodes, means over draws."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from sglang_dspark.cost import StepCost
from sglang_dspark.cost.curves import Curve
from sglang_dspark.cost.terms import TERMS
from sglang_dspark.policies import make_policy
from simulator import Confidence, EngineSettings
from simulator.blocks.drafter import METHODS, Drafter, Origin
from simulator.blocks.survival import accept_length, shifted_to_length
from simulator.engine.run import Setting
from simulator.results.metrics import Figures
from simulator.results.run import run_once
from simulator.traces.random import random_trace

THROUGHPUT = "steady_output_throughput"
PROMPT, OUTPUT = 1 << 16, 1024
"""Tokens of a request. Prompts come prefilled and are long, so that what a step costs by context is what it costs by
request; outputs are drawn from half of theirs up."""
REPLICATIONS = 1


def step_cost(
    name: str,
    verify_s: Callable[[np.ndarray], np.ndarray],
    draft_s: Callable[[np.ndarray], np.ndarray],
    most_tokens: int,
    most_requests: int,
    request_s: float = 0.0,
    output: int = OUTPUT,
    **terms: float,
) -> StepCost:
    """Steps without graph padding: verify by tokens, draft by requests, and `request_s` for each running request, which
    a step cost has by context tokens: those that a request holds in the mean."""
    tokens = np.unique(np.geomspace(1, most_tokens, 160).round())
    requests = np.unique(np.geomspace(1, most_requests, 60).round())
    known = {key: 0.0 for key in TERMS} | {"kv_tokens": 1e9, "context_token_s": request_s / context(output)} | terms
    return StepCost(
        name, "tiered", Curve(requests, draft_s(requests)), Curve(tokens, verify_s(tokens)), terms=known, meta={}
    )


def context(output: int) -> float:
    """Mean tokens that a running request holds, outputs uniform from half of `output` up."""
    return PROMPT + 7 / 18 * output


def drafter_of(name: str, conditional: Sequence[float], method: str = "dspark") -> Drafter:
    """A drafter with one domain."""
    return Drafter.of(name, METHODS[method], {"all": tuple(conditional)}, origin=Origin())


def at_length(conditional: Sequence[float], length: float, positions: int | None = None) -> tuple[float, ...]:
    """The shape of an acceptance at another accept length; a position beyond its last is as likely as the last."""
    count = positions or len(conditional)
    shape = [*conditional, *[conditional[-1]] * count][:count]
    return shifted_to_length(shape, length)


def serve(
    cost: StepCost,
    drafter: Drafter,
    policy: str,
    in_flight: int,
    *,
    confidence: Confidence | None = None,
    schedule: str | None = None,
    replications: int = REPLICATIONS,
    requests: int | None = None,
    output: int = OUTPUT,
) -> Figures:
    """Means over draws of a closed loop that only decodes: prompts come prefilled, the host takes no time."""
    drafts = policy != "none"
    count = requests or (max(240, 4 * in_flight) if drafts else max(8, 2 * in_flight))
    trace = random_trace(count, PROMPT, output, 0.5)
    trace = replace(trace, input_length=np.full(count, PROMPT))
    engine = EngineSettings(max_running_requests=in_flight, kv_tokens=10**9, schedule=schedule, prefill_elsewhere_s=0.0)
    setting = Setting(
        trace,
        cost,
        cost,
        drafter,
        confidence or Confidence(),
        engine,
        concurrency=in_flight,
        graphs="profile",
    )
    chosen = make_policy(policy)
    setting.check(chosen)
    runs = [run_once(setting, chosen, replication)[0] for replication in range(replications)]
    return {key: float(np.mean([run[key] for run in runs])) for key in runs[0]}


def spread_by(factor: float, calibration: str = "sts") -> Confidence:
    """Confidences whose spreads are `factor` times the default ones, which the paper's Figure 5 gave."""
    known = Confidence.of(calibration)
    names = ("spread_request", "spread_block", "spread_position")
    return Confidence.of(calibration, **{name: factor * getattr(known, name) for name in names})


def with_adaptive(cost: StepCost, seconds: float) -> StepCost:
    """The same steps with a surcharge on those of adaptive policies."""
    return replace(cost, terms={**cost.terms, "adaptive_s": seconds})


__all__ = [
    "THROUGHPUT",
    "accept_length",
    "at_length",
    "drafter_of",
    "serve",
    "spread_by",
    "step_cost",
    "with_adaptive",
    "context",
]
