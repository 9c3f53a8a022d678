"""Kernel times of a forward as the terms of a profile: a curve by tokens, slopes by context, prefill by tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from sglang_dspark.cost.curves import Floats
from sglang_dspark.cost.estimate.forward import Forward

REQUESTS = (1, 4, 16, 32, 64, 128, 256)
WIDTHS = (1, 2, 4, 8)
CONTEXTS = (256, 1024, 4096, 16384)
_SHARED_CONTEXT = 256  # context a row at which modules are priced by tokens

_NEW, _CACHED = (256, 512, 1024, 2048, 4096, 8192), (0, 4096, 16384)


@dataclass(frozen=True)
class Fit:
    """floor_s: attention at no context. context_s, width_s: per context token of the batch, and per (verified token
    beyond a request's first x its context token). mean_error, largest_error: of whole steps against their kernel times.
    """

    floor_s: float
    context_s: float
    width_s: float
    mean_error: float
    largest_error: float


def fit_context(forward: Forward, most_tokens: int, kv_tokens: int, widths: Sequence[int] = WIDTHS) -> Fit:
    """Attention of R requests, `width` queries each, over their contexts: floor + slopes, in batches that fit memory.

    One width tells no slope by width. Modules have their floor in the curve by tokens (`step_s`).
    """
    shapes = [
        (r, q, c)
        for r in REQUESTS
        for q in widths
        for c in CONTEXTS
        if r * q <= most_tokens and (r * c <= kv_tokens or r == 1)
    ]
    requests, width, context = (np.array(axis, dtype=np.float64) for axis in zip(*shapes, strict=True))
    floor = np.array([module_floor_s(forward, r * q) for r, q, _ in shapes])
    attention = np.array([forward.attention_s(*shape) for shape in shapes])
    step = attention + np.array([forward.tokens_s(r * q) for r, q, _ in shapes])
    held = requests * context
    # Modules: what the rows of a request read together is what it holds, however many they are.
    alone = forward.has_modules or len(widths) == 1
    wide = np.zeros_like(held) if alone else requests * (width - 1) * context
    constant = np.zeros_like(held) if forward.has_modules else np.ones_like(held)
    columns = np.stack([constant, held, wide], axis=1)
    wanted = attention - floor
    solved, _ = nnls(columns / step[:, None], np.maximum(wanted, 0.0) / step)
    error = np.abs(columns @ solved - wanted) / step
    return Fit(float(solved[0]), float(solved[1]), float(solved[2]), float(error.mean()), float(error.max()))


def step_s(forward: Forward, tokens: int, fit: Fit) -> float:
    """The part of a verify step that context does not change, by verified tokens."""
    return forward.tokens_s(tokens) + fit.floor_s + module_floor_s(forward, tokens)


def module_floor_s(forward: Forward, tokens: int) -> float:
    """Attention modules at a short context, by rows; 0 for models without."""
    return forward.attention_s(tokens, 1, _SHARED_CONTEXT) if forward.has_modules else 0.0


@dataclass(frozen=True)
class Prefill:
    """Seconds of a prefill step: base + token * new + pair * new * (context + new / 2); largest_error of the fit."""

    base_s: float
    token_s: float
    pair_s: float
    largest_error: float


def fit_prefill(forward: Forward, chunk: int) -> Prefill:
    """Prefill chunks up to the server's, without and with cached context."""
    shapes = [(new, cached) for new in _NEW for cached in _CACHED if new <= max(chunk, _NEW[1])]
    new, cached = (np.array(axis, dtype=np.float64) for axis in zip(*shapes, strict=True))
    seconds: Floats = np.array([forward.prefill_s(*shape) for shape in shapes])
    columns = np.stack([np.ones_like(new), new, new * (cached + new / 2)], axis=1)
    solved, _ = nnls(columns / seconds[:, None], np.ones_like(seconds))
    error = np.abs(columns @ solved - seconds) / seconds
    return Prefill(float(solved[0]), float(solved[1]), float(solved[2]), float(error.max()))
