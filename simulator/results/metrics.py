"""Figures of one run.

A figure under a name of bench_serving's (sglang 0.5.23, benchmark/serving.py) is what bench_serving computes, over the
whole run, from the simulated per-token timeline. What is measured otherwise has a name of its own: `steady_*`
(`steady`), offered rate and backlog (`open_loop`), and the terms of the paper's L = (T_draft + T_verify) / tau.
"""

from __future__ import annotations

import numpy as np

from simulator.engine.bursts import Bursts
from simulator.engine.recorder import Recorder
from simulator.engine.run import Assembly
from simulator.results.goodput import goodput
from simulator.results.open_loop import offered_and_served
from simulator.results.prefixes import cached_figures
from simulator.results.spread import Floats, spread_ms
from simulator.results.steady import steady

Figures = dict[str, float]
"""Name to value; milliseconds where the name says `_ms`, seconds, counts or tokens per second elsewhere."""


def figures(run: Assembly, slos_ms: dict[str, float] | None = None) -> Figures:
    """All figures of a finished run. slos_ms: goodput's limits by bench_serving's key."""
    recorder, trace = run.recorder, run.trace
    done = ~np.isnan(recorder.finish_s)
    sent, first, finish = recorder.sent_s[done], recorder.first_token_s[done], recorder.finish_s[done]
    prompt, output = int(trace.input_length[done].sum()), int(trace.output_length[done].sum())
    duration = float(finish.max() - np.nanmin(recorder.sent_s)) if done.any() else 0.0
    out: Figures = {
        "duration": duration,
        "completed": recorder.completed,
        "failed": run.router.failed,
        "total_input_tokens": prompt,
        "total_output_tokens": output,
        "request_throughput": per(recorder.completed, duration),
        "input_throughput": per(prompt, duration),
        "output_throughput": per(output, duration),
        "total_throughput": per(prompt + output, duration),
        "concurrency": per(float((finish - sent).sum()), duration),
        "max_concurrent_requests": _most_at_once(sent, finish),
        "max_output_tokens_per_s": _most_tokens(first, recorder.bursts, float(sent.min())) if done.any() else 0.0,
    }
    several = trace.output_length[done] > 1
    tpot = (finish - first)[several] / (trace.output_length[done][several] - 1)
    for name, values in (("e2e_latency", finish - sent), ("ttft", first - sent), ("tpot", tpot)):
        out |= spread_ms(name, values)
    out |= _inter_token(recorder.bursts)
    if run.router.full:
        out |= steady(run, done, slos_ms or {})
    else:
        out |= offered_and_served(run, done)
    if slos_ms:
        out |= goodput(recorder, trace, duration, slos_ms)
    out |= cached_figures(run, prompt)
    return out | _speculation(recorder) | _engine_share(recorder)


def _inter_token(bursts: Bursts) -> Figures:
    """A chunk's gap spread over its tokens, as bench_serving's native backend does (serving.py:796)."""
    _, gap_s, counts = bursts.rows()
    row, tokens = np.nonzero(counts[:, 1:])
    values, weights = gap_s[row] / (tokens + 1), counts[row, tokens + 1] * (tokens + 1)
    return spread_ms("itl", values, weights) | {"max_itl_ms": 1e3 * float(values.max(initial=0.0))}


def _most_tokens(first_s: Floats, bursts: Bursts, begin_s: float) -> float:
    """Most tokens of a second of the run, the tokens of a chunk spread over its gap."""
    seconds = (first_s - begin_s).astype(np.int64)
    found = np.bincount(seconds).astype(np.float64)
    for at_s, requests in bursts.tokens():
        more = np.bincount((at_s - begin_s).astype(np.int64), weights=requests)
        long = max(found.size, more.size)
        found = np.pad(found, (0, long - found.size)) + np.pad(more, (0, long - more.size))
    return float(found.max())


def _most_at_once(sent_s: Floats, finish_s: Floats) -> int:
    """Most requests in flight of any second of the run, those of a part of it included."""
    if sent_s.size == 0:
        return 0
    begins, ends = ((at - sent_s.min()).astype(np.int64) for at in (sent_s, finish_s))
    changes = np.bincount(begins, minlength=ends.max() + 2) - np.bincount(ends + 1, minlength=ends.max() + 2)
    return int(np.cumsum(changes).max())


def _speculation(recorder: Recorder) -> Figures:
    """Accept length (bonus included) and where the time and the verified tokens went."""
    steps, request_steps = recorder.decode_steps, recorder.request_steps
    tau = per(recorder.committed_tokens, steps)
    return {
        "accept_length": per(recorder.committed_tokens, request_steps),
        "decode_steps": steps,
        "mean_batch": per(request_steps, steps),
        "draft_ms_per_step": 1e3 * per(recorder.draft_s, steps),
        "verify_ms_per_step": 1e3 * per(recorder.verify_s, steps),
        "step_ms": 1e3 * per(recorder.decode_s, steps),
        "tau": tau,
        "latency_per_token_ms": 1e3 * per(per(recorder.draft_s + recorder.verify_s, steps), tau),
        "verified_tokens_per_step": per(recorder.verified_tokens, steps),
        "verified_tokens_per_request_step": per(recorder.verified_tokens, recorder.rows),
        "wasted_share": per(recorder.verified_tokens - recorder.committed_tokens, recorder.verified_tokens),
        "retractions": int(recorder.retractions.sum()),
        "beyond_probes_share": per(recorder.steps_beyond_probes, steps),
        "fallbacks": recorder.fallbacks,
    }


def _engine_share(recorder: Recorder) -> Figures:
    return {
        "prefill_steps": recorder.prefill_steps,
        "prefill_s": recorder.prefill_s,
        "decode_s": recorder.decode_s,
    }


def per(value: float, by: float) -> float:
    """value / by, 0 where there is nothing to divide by."""
    return value / by if by else 0.0
