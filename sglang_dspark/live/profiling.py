"""Measure what decode steps cost on a running server: budgets are forced over batch sizes and context lengths.

Every cell keeps `batch` requests decoding, has the server verify exactly B tokens a step (policy `tetris:capacity=B`,
`fixed:k=0` for B = batch), and reads the worker's own step times over several windows. The model is that of
`sglang_dspark.records.fit`; the file is SGLang's additive table, which plain SGLang loads too.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from sglang_dspark.cost import SpsAdditiveCostTable
from sglang_dspark.cost.curves import Curve
from sglang_dspark.errors import InputError
from sglang_dspark.live.client import Server, run_closed_loop
from sglang_dspark.live.hold import Hold, held
from sglang_dspark.records.fit import StepTimes, fit_times

_SETTLE_S = 0.3
_TRIES = 8
_LEAST_ROOM = 64
_LONGEST_WINDOW_S = 60.0
_MIN_STEPS = 5  # timed steps of a window


@dataclass(frozen=True)
class ProfilePlan:
    """batches: requests at once. shares: of all draft tokens, verified. contexts: prompt tokens of every request.

    windows: per cell, of `window_s` seconds each. max_new_tokens: of a request; less where the model's context ends.
    """

    batches: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    shares: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    contexts: tuple[int, ...] = (64, 512)
    windows: int = 3
    window_s: float = 1.0
    max_new_tokens: int = 2048


@dataclass(frozen=True)
class Cell:
    """One measurement. tokens: verified a step, anchors included. context: tokens a request, about.

    seconds: median over windows of the mean step time; spread: (largest - smallest) / median.
    """

    requests: int
    tokens: int
    context: float
    seconds: float
    spread: float
    steps: int


@dataclass(frozen=True)
class _Window:
    """One window of a cell: mean step seconds, steps, and tokens that a request had grown by, on average."""

    seconds: float
    steps: int
    grown: float


def measure(
    server: Server,
    plan: ProfilePlan,
    on_cell: Callable[[Cell], None] = lambda cell: None,
    on_round: Callable[[int, int], None] = lambda number, rounds: None,
) -> list[Cell]:
    """All cells of the plan. The server's policy is put back and our requests are aborted, whatever happens, SIGTERM
    included.

    The windows of a cell lie in different rounds over all cells, so that a slow minute spoils one window of many cells
    and not all windows of one. on_round(number, rounds) is called when a round begins.
    Errors: InputError if the server does not run our policies, or never holds the batch that is asked for (other
    traffic, too short answers, too few slots).
    """
    gamma = int(server.dspark()[0]["gamma"])
    if len(server.dspark()) != 1:
        raise InputError("this server has several replicas, which share the load unevenly: profile one of them alone")
    longest = _longest_request(server)
    found: dict[tuple[int, int, int], list[_Window]] = {}
    with held(server) as hold:
        for number in range(1, plan.windows + 1):
            on_round(number, plan.windows)
            for context in plan.contexts:
                room = _room(plan, longest, context, gamma)
                for batch in plan.batches:
                    for tokens, window in _round(hold, plan, batch, context, gamma, room):
                        windows = found.setdefault((context, batch, tokens), [])
                        windows.append(window)
                        if number == plan.windows:
                            on_cell(_cell(batch, tokens, context, windows))
    return [_cell(batch, tokens, context, windows) for (context, batch, tokens), windows in found.items()]


def _room(plan: ProfilePlan, longest: int, context: int, gamma: int) -> int:
    """Tokens that a request of this context may generate."""
    room = min(plan.max_new_tokens, longest - context - 2 * (gamma + 1))
    if room < _LEAST_ROOM:
        raise InputError(f"context {context} leaves {room} tokens to decode, expected {_LEAST_ROOM} or more")
    return room


def _longest_request(server: Server) -> int:
    """Tokens that a request may have, prompt included; without a bound where the server does not say."""
    models = server.get("/v1/models").get("data") or [{}]
    return int(models[0].get("max_model_len") or 1 << 30)


def _round(
    hold: Hold, plan: ProfilePlan, batch: int, context: int, gamma: int, max_new_tokens: int
) -> Iterator[tuple[int, _Window]]:
    """One window for every budget of a batch size: (verified tokens a step, window)."""
    server = hold.server
    budgets = sorted({round(share * batch * gamma) for share in plan.shares})
    generated = _counters(server)[4]
    with _decoding(server, batch, context, max_new_tokens) as refresh:
        for budget in budgets:
            hold.switch("fixed:k=0" if budget == 0 else f"tetris:capacity={batch + budget}")
            time.sleep(_SETTLE_S)
            tokens = batch + budget
            yield tokens, _window(server, plan.window_s, batch, tokens, generated, max_new_tokens, refresh)
            hold.check()


def _cell(batch: int, tokens: int, context: int, windows: Sequence[_Window]) -> Cell:
    seconds = [window.seconds for window in windows]
    median = float(np.median(seconds))
    grown = float(np.mean([window.grown for window in windows]))
    steps = sum(window.steps for window in windows)
    return Cell(batch, tokens, context + grown, median, (max(seconds) - min(seconds)) / median, steps)


def _window(
    server: Server,
    window_s: float,
    batch: int,
    tokens: int,
    generated: float,
    most: int,
    refresh: Callable[[], None],
) -> _Window:
    """One steady window; a window in which a request came or went is taken again.

    generated: tokens committed before these requests began; most: tokens that one of them generates.
    """
    for _ in range(_TRIES):
        begin = _counters(server)
        time.sleep(window_s)
        end = _counters(server)
        count, seconds, requests, verified, _ = (after - first for first, after in zip(begin, end, strict=True))
        if count >= _MIN_STEPS and requests == batch * count and verified == tokens * count:
            grown = ((begin[4] + end[4]) / 2 - generated) / batch
            # Requests that reached their end have begun anew.
            return _Window(seconds / count, int(count), grown if grown < most else most / 2)
        if count < _MIN_STEPS:
            window_s = min(2 * window_s, _LONGEST_WINDOW_S)  # slower steps than the plan had thought of
            refresh()
        elif requests != batch * count:
            refresh()
    raise InputError(
        f"the server never decoded {batch} requests with {tokens} tokens a step: is there other traffic, or are its "
        "slots, its context or its KV cache too small for that?"
    )


def _counters(server: Server) -> tuple[float, float, float, float, float]:
    """(timed steps, their seconds, requests, verified tokens, committed tokens)."""
    counters = server.dspark()[0]["counters"]
    try:
        names = ("timed_steps", "timed_s", "timed_requests", "timed_verified", "timed_committed")
        steps, seconds, requests, verified, committed = (float(counters[name]) for name in names)
    except KeyError as error:
        raise InputError("the server's counters have no timed steps: it runs another sglang-dspark") from error
    return steps, seconds, requests, verified, committed


@contextmanager
def _decoding(server: Server, batch: int, context: int, max_new_tokens: int) -> Iterator[Callable[[], None]]:
    """Keep `batch` requests decoding; the yielded call waits until their prompts are through."""
    stop, tag = threading.Event(), f"profile/{secrets.token_hex(4)}"
    sampling = {"max_new_tokens": max_new_tokens, "ignore_eos": True, "temperature": 1.0}
    rng = np.random.default_rng(0)

    def body(number: int) -> dict[str, Any]:
        ids = rng.integers(5, 60, size=context).tolist()  # ids that every vocabulary has
        return {"input_ids": ids, "sampling_params": sampling, "rid": f"{tag}-{number}"}

    bodies = [body(number) for number in range(batch * 64)]
    failures: list[InputError] = []
    answered: set[int] = set()

    def load() -> None:
        try:
            run_closed_loop(server, bodies, batch, lambda answer: answered.add(answer.number), stop)
        except InputError as error:
            failures.append(error)

    thread = threading.Thread(target=load, daemon=True)
    thread.start()

    def refresh() -> None:
        if failures:
            raise failures[0]
        time.sleep(_SETTLE_S)

    try:
        refresh()
        yield refresh
    finally:
        stop.set()
        for number in sorted(set(range(len(answered) + batch)) - answered):  # bodies are sent in order
            server.post("/abort_request", {"rid": f"{tag}-{number}"})
        thread.join(timeout=60.0)


def machine_of(state: dict[str, Any]) -> dict[str, Any]:
    """What a server's state says of its GPUs, for a profile's `meta`: SGLang's defaults depend on it."""
    memory = state.get("gpu_memory_gib")
    return {} if memory is None else {"gpu_memory_gib": round(float(memory), 1)}


def table_of(cells: list[Cell], meta: dict[str, Any]) -> SpsAdditiveCostTable:
    """SGLang's additive table of measured cells, at the mean context; what it cannot hold stands in `meta`."""
    times = StepTimes()
    for cell in cells:
        # The fit weighs cells by their steps; a median of windows is worth more than one step.
        for _ in range(min(max(cell.steps, 20), 50)):
            times.note(cell.requests, cell.tokens, cell.requests * cell.context, cell.seconds)
    fitted = fit_times(times)
    slope = fitted.cost.terms["context_token_s"]
    spread = float(np.median([cell.spread for cell in cells]))
    alpha = _on_integers(fitted.cost.draft)
    theta = _on_integers(fitted.cost.verify)
    bias = float(theta[1][0])
    mean_context = float(np.mean([cell.context for cell in cells]))
    return SpsAdditiveCostTable(
        bias_seconds=bias,
        bs_probes=alpha[0],
        # The table knows no context: it holds the mean one's share, by requests.
        alpha_seconds=[float(s + slope * mean_context * r) for r, s in zip(*alpha, strict=True)],
        m_probes=theta[0],
        theta_seconds=[float(seconds - bias) for seconds in theta[1]],
        meta={
            **meta,
            "how": "forced budgets on a running server, medians of windows",
            "cells": len(cells),
            "spread": spread,
            "fit_error": fitted.error,
            "context_tokens_per_request": mean_context,
            "seconds_per_context_token": slope,
            "sweep": "off-diagonal",
            # The last probes lie on a straight line beyond the cells: SGLang's own look-up would clamp there.
            "measured_to": {"requests": fitted.cost.draft.span[1], "tokens": fitted.cost.verify.span[1]},
        },
    )


def _on_integers(curve: Curve) -> tuple[list[int], list[float]]:
    return [int(probe) for probe in curve.probes], [float(second) for second in curve.seconds]
