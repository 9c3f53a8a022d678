"""`steady_*`: a closed loop between its start burst and its last requests.

Throughput counts the tokens that come inside the window, as SGLang's steady-state benchmark does; TPOT, TTFT and
latency, which that one does not have, are those of the requests sent inside it, whenever they finish: taking those that
finish inside would leave out the long ones.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sglang_dspark.records.steady import steady_window
from simulator.engine.run import Assembly
from simulator.results.goodput import kept
from simulator.results.spread import spread_ms

ENOUGH = 5
"""Requests sent inside the window, in multiples of those in flight, that a verdict needs."""


def steady(run: Assembly, done: NDArray[np.bool_], slos_ms: dict[str, float]) -> dict[str, float]:
    """Figures of the steady window of a finished closed loop; done: [N] requests that were served.

    slos_ms: where limits are given, steady_request_goodput: requests a second that were sent inside and keep them.
    """
    recorder, trace = run.recorder, run.trace
    order = np.argsort(recorder.sent_s[done], kind="stable")
    sent, first, finish = (at[done][order] for at in (recorder.sent_s, recorder.first_token_s, recorder.finish_s))
    output = trace.output_length[done][order]
    window = steady_window(sent, first, finish, run.router.full) if done.any() else None
    begin, end = window or (0.0, 0.0)
    inside = (sent >= begin) & (sent < end)
    out: dict[str, float] = {"steady_window_s": end - begin, "steady_requests": int(inside.sum())}
    if window is not None:
        tokens = float(((first >= begin) & (first <= end)).sum())
        for at_s, requests in recorder.bursts.tokens():
            tokens += float(requests[(at_s >= begin) & (at_s <= end)].sum())
        out["steady_output_throughput"] = tokens / (end - begin)
    else:
        out["steady_output_throughput"] = 0.0
    if slos_ms:
        good = np.logical_and.reduce(list(kept(sent, first, finish, output, slos_ms).values()))
        out["steady_request_goodput"] = float((good & inside).sum()) / (end - begin) if window else 0.0
    several = inside & (output > 1)
    tpot = (finish - first)[several] / (output[several] - 1)
    for name, values in (("e2e_latency", (finish - sent)[inside]), ("ttft", (first - sent)[inside]), ("tpot", tpot)):
        out |= {f"steady_{key}": value for key, value in spread_ms(name, values).items()}
    return out
