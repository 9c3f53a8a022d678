"""Measure what decode steps cost on a running server: budgets are forced over batch sizes and context lengths.

Every cell keeps `batch` requests decoding, has the server verify exactly B tokens a step (policy `tetris:capacity=B`,
`fixed:k=0` for B = batch), and reads the worker's own step times over several windows. What a cell costs belongs to the
graph tier that ran, so budgets end on tiers (`cells`). The model is that of `sglang_dspark.records.fit`; the file is
SGLang's additive table, which plain SGLang loads too.

Whole blocks are verified twice, by a budget rule and by `fixed`: the difference is what adaptivity costs a step on this
server, the copy included that an attention backend such as FlashInfer waits for before it can plan.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sglang_dspark.cost import SpsAdditiveCostTable
from sglang_dspark.cost.curves import Curve
from sglang_dspark.errors import InputError
from sglang_dspark.live.cells import CONTEXTS, Graphs, Room, budgets, default_batches, default_contexts, fits
from sglang_dspark.live.client import Server
from sglang_dspark.live.hold import Hold, held
from sglang_dspark.live.load import Load, Seen
from sglang_dspark.records.fit import FittedCost, StepTimes, fit_times

_TRIES = 8
_LEAST_ROOM, _WORTH_IT = 64, 256  # tokens of an answer: what can be measured, and what is without being asked for
_LONGEST_WINDOW_S = 60.0
_MIN_STEPS = 5  # timed steps of a window


@dataclass(frozen=True)
class ProfilePlan:
    """batches: requests at once; contexts: prompt tokens of every request. None: what the server decodes and holds.

    shares: of all draft tokens, verified; on a server with graphs the tiers next to them, and every other tier once.
    windows: per cell, of `window_s` seconds each. max_new_tokens: of a request; less where the server holds less.
    """

    batches: tuple[int, ...] | None = None
    shares: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    contexts: tuple[int, ...] | None = None
    windows: int = 3
    window_s: float = 1.0
    max_new_tokens: int = 4096


@dataclass(frozen=True)
class Cell:
    """One measurement. tokens: verified a step, anchors included; executed: of the graph that ran for them, or as many.

    adaptive: whether the policy needs survivals. context: tokens a request, about. seconds: median over windows of the
    mean step time; spread: (largest - smallest) / median.
    """

    requests: int
    tokens: int
    executed: int
    context: float
    seconds: float
    spread: float
    steps: int
    adaptive: bool = True


@dataclass(frozen=True)
class _Window:
    """One window of a cell: mean step seconds, steps, executed tokens, and what a request had grown by, on average."""

    seconds: float
    steps: int
    executed: float
    grown: float


@dataclass(frozen=True)
class _Asked:
    """One batch of a plan: what its requests hold, and the tokens a step to measure."""

    batch: int
    context: int
    answer: int
    gamma: int
    tokens: tuple[int, ...]

    def policies(self) -> Iterator[tuple[int, bool, str]]:
        """(tokens a step, whether adaptive, the policy that verifies so many)."""
        for tokens in self.tokens:
            drafted = tokens > self.batch
            yield tokens, drafted, f"tetris:capacity={tokens}" if drafted else "fixed:k=0"
            if tokens == self.batch * (self.gamma + 1):
                yield tokens, False, f"fixed:k={self.gamma}"


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
    traffic, too few slots).
    """
    if len(server.dspark()) != 1:
        raise InputError("this server has several replicas, which share the load unevenly: profile one of them alone")
    asked = _asked(server, plan)
    found: dict[tuple[int, int, int, bool], list[_Window]] = {}
    with held(server) as hold:
        for number in range(1, plan.windows + 1):
            on_round(number, plan.windows)
            for one in asked:
                for tokens, adaptive, window in _round(hold, plan, one):
                    key = (one.batch, tokens, one.context, adaptive)
                    found.setdefault(key, []).append(window)
                    if number == plan.windows:
                        on_cell(_cell(*key, found[key]))
    return [_cell(*key, windows) for key, windows in found.items()]


def _asked(server: Server, plan: ProfilePlan) -> list[_Asked]:
    """What is measured on this server; InputError where what the user asked for does not fit it."""
    state = server.dspark()[0]
    gamma, graphs, room = int(state["gamma"]), Graphs.of(state), room_of(server, state)
    batches = plan.batches or default_batches(room, graphs)
    contexts = plan.contexts or default_contexts(room, plan.max_new_tokens)
    tokens, asked = budgets(batches, gamma, plan.shares, graphs), list[_Asked]()
    for context in contexts:
        for batch in batches:
            answer = room.answer(batch, context, gamma, plan.max_new_tokens)
            given = plan.contexts is not None and (plan.batches is not None or batch == batches[0])
            if given and answer < _LEAST_ROOM:
                raise InputError(
                    f"context {context} leaves {answer} tokens to decode for each of {batch} requests, expected "
                    f"{_LEAST_ROOM} or more"
                )
            if given or fits(room, batch, context, answer, _WORTH_IT):
                asked.append(_Asked(batch, context, answer, gamma, tokens[batch]))
    if not asked:
        raise InputError(f"this server holds no request of {CONTEXTS[0]} prompt tokens and {_WORTH_IT} of an answer")
    return asked


def room_of(server: Server, state: dict[str, Any]) -> Room:
    """What the server holds, as it says itself. state: what our worker shows."""
    models = server.get("/v1/models").get("data") or [{}]
    longest = int(models[0].get("max_model_len") or 1 << 30)
    limits = state.get("limits") or {}
    return Room(longest, limits.get("kv_tokens"), limits.get("max_running_requests"))


def _round(hold: Hold, plan: ProfilePlan, one: _Asked) -> Iterator[tuple[int, bool, _Window]]:
    """One window for every budget of a batch: (verified tokens a step, whether adaptive, window)."""
    with Load(hold.server, one.batch, one.context, one.answer) as load:
        for tokens, adaptive, policy in one.policies():
            hold.switch(policy)
            yield tokens, adaptive, _window(load, plan.window_s, tokens)
            hold.check()


def _cell(batch: int, tokens: int, context: int, adaptive: bool, windows: Sequence[_Window]) -> Cell:
    seconds = [window.seconds for window in windows]
    median = float(np.median(seconds))
    grown, executed = (float(np.mean([getattr(window, name) for window in windows])) for name in ("grown", "executed"))
    steps = sum(window.steps for window in windows)
    spread = (max(seconds) - min(seconds)) / median
    return Cell(batch, tokens, round(executed), context + grown, median, spread, steps, adaptive)


def _window(load: Load, window_s: float, tokens: int) -> _Window:
    """One steady window; a window in which a request came or went is taken again with fresh requests."""
    for _ in range(_TRIES):
        seconds = load.ready(window_s)
        begin = Seen.now(load.server)
        time.sleep(seconds)
        end = Seen.now(load.server)
        found = end.since(begin)
        steady = found.requests == load.batch * found.steps and found.verified == tokens * found.steps
        if found.steps >= _MIN_STEPS and steady:
            load.saw(found, seconds)
            grown = load.grown(begin, end)
            return _Window(found.seconds / found.steps, int(found.steps), found.executed / found.steps, grown)
        if found.steps < _MIN_STEPS:
            window_s = min(2 * window_s, _LONGEST_WINDOW_S)  # slower steps than the plan had thought of
        load.saw(found, seconds)
        if found.requests != load.batch * found.steps:
            load.restart()
    raise InputError(
        f"the server never decoded {load.batch} requests with {tokens} tokens a step: is there other traffic, or are "
        "its slots, its context or its KV cache too small for that?"
    )


def machine_of(state: dict[str, Any]) -> dict[str, Any]:
    """What a server's state says of its GPUs, for a profile's `meta`: SGLang's defaults depend on it."""
    memory = state.get("gpu_memory_gib")
    return {} if memory is None else {"gpu_memory_gib": round(float(memory), 1)}


def table_of(cells: list[Cell], meta: dict[str, Any], graphs: Graphs | None = None) -> SpsAdditiveCostTable:
    """SGLang's additive table of measured cells, at the mean context; what it cannot hold stands in `meta`.

    graphs: of the server that was measured.
    """
    times = StepTimes(stairs=graphs is not None)
    for level, cell in enumerate(cells):
        # The fit weighs cells by their steps; a median of windows is worth more than one step.
        for _ in range(min(max(cell.steps, 20), 50)):
            context = cell.requests * cell.context
            times.note(cell.requests, cell.executed, context, cell.seconds, adaptive=cell.adaptive, level=level)
    fitted = fit_times(times)
    slope, adaptive = (fitted.cost.terms[key] for key in ("context_token_s", "adaptive_s"))
    alpha = _on_integers(fitted.cost.draft)
    theta = _on_integers(fitted.cost.verify)
    bias = float(theta[1][0])
    mean_context = float(np.mean([cell.context for cell in cells]))
    captured = {} if graphs is None else {"captured_tokens": graphs.tiers, "captured_requests": graphs.batches[-1]}
    return SpsAdditiveCostTable(
        bias_seconds=bias,
        bs_probes=alpha[0],
        # SGLang's table knows no context: it holds the mean one's share, by requests. Ours takes it out again.
        alpha_seconds=[float(s + slope * mean_context * r) for r, s in zip(*alpha, strict=True)],
        m_probes=theta[0],
        theta_seconds=[float(seconds - bias) for seconds in theta[1]],
        meta={
            **meta,
            "how": "forced budgets on a running server, medians of windows",
            "cells": len(cells),
            "spread": float(np.median([cell.spread for cell in cells])),
            "fit_error": fitted.error,
            "largest_fit_error": fitted.worst,
            "context_tokens_per_request": mean_context,
            "contexts": sorted({round(cell.context) for cell in cells}),
            "seconds_per_context_token": slope,
            **({"adaptive_seconds": adaptive} if _told(fitted) else {}),
            "sweep": "off-diagonal",
            # The last probes lie on a straight line beyond the cells: SGLang's own look-up would clamp there.
            "measured_to": {"requests": fitted.cost.draft.span[1], "tokens": fitted.cost.verify.span[1]},
            **captured,
        },
    )


def _told(fitted: FittedCost) -> bool:
    """Whether the cells tell what adaptivity costs."""
    return all(one.key != "adaptive_s" for one in fitted.cost.assumptions)


def _on_integers(curve: Curve) -> tuple[list[int], list[float]]:
    return [int(probe) for probe in curve.probes], [float(second) for second in curve.seconds]
