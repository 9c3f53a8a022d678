"""Figures of one run under bench_serving's names, and the terms of the paper's L = (T_draft + T_verify) / tau."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from simulator.engine.recorder import Recorder
from simulator.traces import Trace

if TYPE_CHECKING:
    from simulator.engine.model import EngineModel
    from simulator.engine.router import Router

Figures = dict[str, float]
"""Name to value; milliseconds where the name says `_ms`, seconds, counts or tokens per second elsewhere."""


def figures(trace: Trace, recorder: Recorder, router: Router, model: EngineModel) -> Figures:
    """All figures of a finished run."""
    done = ~np.isnan(recorder.finish_s)
    sent, first, finish = recorder.sent_s[done], recorder.first_token_s[done], recorder.finish_s[done]
    output = trace.output_length[done]
    duration = float(np.nanmax(recorder.finish_s) - np.nanmin(recorder.sent_s)) if done.any() else 0.0
    out: Figures = {
        "duration": duration,
        "completed": recorder.completed,
        "failed": router.failed,
        "total_input_tokens": int(trace.input_length[done].sum()),
        "total_output_tokens": int(output.sum()),
        "request_throughput": _per(recorder.completed, duration),
        "input_throughput": _per(int(trace.input_length[done].sum()), duration),
        "total_throughput": _per(int((trace.input_length + trace.output_length)[done].sum()), duration),
        "run_output_throughput": _per(int(output.sum()), duration),
        "output_throughput": _windowed_throughput(router, int(output.sum()), duration),
        "concurrency": _per(float((finish - sent).sum()), duration),
    }
    several = output > 1
    tpot = (finish - first)[several] / (output[several] - 1)
    for name, values in (("e2e_latency", finish - sent), ("ttft", first - sent), ("tpot", tpot)):
        out |= _spread(name, values, np.ones(values.size))
    bursts = np.frombuffer(recorder.burst_s, dtype=np.float64)
    counts = np.frombuffer(recorder.burst_count, dtype=np.int64).astype(np.float64)
    out |= _spread("itl", bursts, counts)
    return out | _speculation(recorder, model) | _engine_share(recorder)


def _speculation(recorder: Recorder, model: EngineModel) -> Figures:
    """Accept length (bonus included) and where the time and the verified tokens went."""
    steps, request_steps = recorder.decode_steps, recorder.request_steps
    tau = _per(recorder.committed_tokens, steps)
    return {
        "accept_length": _per(recorder.committed_tokens, request_steps),
        "decode_steps": steps,
        "mean_batch": _per(request_steps, steps),
        "draft_ms_per_step": 1e3 * _per(recorder.draft_s, steps),
        "verify_ms_per_step": 1e3 * _per(recorder.verify_s, steps),
        "step_ms": 1e3 * _per(recorder.decode_s, steps),
        "tau": tau,
        "latency_per_token_ms": 1e3 * _per(_per(recorder.draft_s + recorder.verify_s, steps), tau),
        "verified_tokens_per_step": _per(recorder.verified_tokens, steps),
        "verified_tokens_per_request_step": _per(recorder.verified_tokens, request_steps),
        "wasted_share": _per(recorder.verified_tokens - recorder.committed_tokens, recorder.verified_tokens),
        "retractions": int(recorder.retractions.sum()),
    }


def _engine_share(recorder: Recorder) -> Figures:
    return {
        "prefill_steps": recorder.prefill_steps,
        "prefill_s": recorder.prefill_s,
        "decode_s": recorder.decode_s,
    }


def _windowed_throughput(router: Router, tokens: int, duration: float) -> float:
    """Closed loop: between the first full batch and the first empty queue; else over the whole run."""
    start, end = router.window.start, router.window.end
    if start is None or end is None or end[0] <= start[0]:
        return _per(tokens, duration)
    return (end[1] - start[1]) / (end[0] - start[0])


def _per(value: float, by: float) -> float:
    return value / by if by else 0.0


def _spread(name: str, values: NDArray[np.float64], weights: NDArray[np.float64]) -> Figures:
    """mean, median, std, p90, p95, p99 in milliseconds; zeros when there is nothing."""
    if values.size == 0:
        return {f"{kind}_{name}_ms": 0.0 for kind in ("mean", "median", "std", "p90", "p95", "p99")}
    total = weights.sum()
    mean = float(values @ weights / total)
    out = {"mean": mean, "std": float(np.sqrt(((values - mean) ** 2) @ weights / total))}
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(weights[order])
    for kind, share in (("median", 0.5), ("p90", 0.9), ("p95", 0.95), ("p99", 0.99)):
        at = np.searchsorted(reached, share * total)
        out[kind] = float(values[order[min(at, values.size - 1)]])
    return {f"{kind}_{name}_ms": 1e3 * value for kind, value in out.items()}
