"""Every leak that has been found, as a function of the module that its class says it comes from.

A user's module: the seal refuses the class. The package's own: the contract or the exact audit finds it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from sglang_dspark.policies import (
    SCALE,
    BudgetRule,
    Combined,
    Decision,
    EarlyStop,
    Fixed,
    LengthRule,
    LiveBlock,
    Past,
    Policy,
    StoppingRule,
    Unrestricted,
    allocate,
)
from sglang_dspark.policies.classes import best_budget

Leak = Callable[[str], type[Policy]]


def true_depth(module: str) -> type[Policy]:
    """A length rule that returns how many tokens will be accepted."""

    @dataclass(frozen=True)
    class TrueDepth(LengthRule):
        __module__ = module
        name: ClassVar[str] = "true-depth"
        reads_confidence: ClassVar[bool] = False

        def admits(self, past: Past, position: int, confidence: np.ndarray) -> bool:
            return True

        def lengths(self, past: Past, tables: Any, live: LiveBlock) -> np.ndarray:
            return live.depth  # type: ignore[attr-defined,no-any-return]

    return TrueDepth


def large_batches_only(module: str) -> type[Policy]:
    """Argmax on live survivals in the array form, and only for batches larger than small checks try."""

    @dataclass(frozen=True)
    class LargeOnly(StoppingRule):
        __module__ = module
        name: ClassVar[str] = "large-batches-only"

        def admits(self, past: Past, admitted: int, tau: int, survival: int) -> bool:
            inverse = past.prices.inverse
            return bool((tau + survival) * inverse[admitted + 1] > tau * inverse[admitted])

        def walk(self, past: Past, tables: Any, admitted: int, tau: int, survivals: np.ndarray) -> int:
            if past.num_requests <= 20:
                return super().walk(past, tables, admitted, tau, survivals)
            taus = tau + np.concatenate([[0], np.cumsum(survivals)])
            return admitted + int((taus * past.prices.inverse[admitted : admitted + taus.size]).argmax())

    return LargeOnly


def direct(module: str) -> type[Policy]:
    """Argmax on live survivals in a class of its own that calls itself lossless."""

    @dataclass(frozen=True)
    class Direct(Policy):
        __module__ = module
        name: ClassVar[str] = "direct"
        kind: ClassVar[str] = "mine"
        lossless = True

        def decide(self, past: Past, live: LiveBlock) -> Decision:
            budget = best_budget(past, live.units, past.prices.inverse, 0, past.gamma)
            return Decision(allocate(live.units, budget), budget)

    return Direct


def claimed(module: str) -> type[Policy]:
    """A rule of research that calls itself lossless."""

    @dataclass(frozen=True)
    class Claimed(Unrestricted):
        __module__ = module
        name: ClassVar[str] = "claimed"
        lossless = True

        def choose(self, past: Past, live: LiveBlock) -> np.ndarray:
            return allocate(live.units, best_budget(past, live.units, past.prices.inverse, 0, past.gamma))

    return Claimed


def live_saturation(module: str) -> type[Policy]:
    """A guard that asks whether live survivals saturate."""

    @dataclass(frozen=True)
    class Saturation(Combined):
        __module__ = module
        name: ClassVar[str] = "live-saturation"

        @property
        def parts(self) -> tuple[Policy, ...]:
            return EarlyStop(), Fixed(k=1)

        def start(self, gamma: int) -> tuple[None, None]:
            return None, None

        def choose(self, past: Past) -> int:
            return 0

        def decide(self, past: Past, live: LiveBlock) -> Decision:
            saturated = bool((live.units[:, -1] == SCALE).any())
            return (Fixed(k=past.gamma) if saturated else Fixed(k=0)).decide(past, live)

    return Saturation


def live_uncertainty(module: str) -> type[Policy]:
    """A budget rule that explores, verifies everything, where live confidence is uncertain."""

    @dataclass(frozen=True)
    class Uncertainty(BudgetRule):
        __module__ = module
        name: ClassVar[str] = "live-uncertainty"

        def budget(self, past: Past) -> int:
            return 0

        def decide(self, past: Past, live: LiveBlock) -> Decision:
            uncertain = bool((np.abs(live.units - SCALE // 2) < SCALE // 4).any())
            return Fixed(k=past.gamma if uncertain else 0).decide(past, live)

    return Uncertainty


def batch_mean(module: str) -> type[Policy]:
    """A threshold on confidences that is the live batch's mean."""

    @dataclass(frozen=True)
    class BatchMean(LengthRule):
        __module__ = module
        name: ClassVar[str] = "batch-mean"

        def admits(self, past: Past, position: int, confidence: np.ndarray) -> bool:
            return bool(confidence[-1] > 0.5)

        def lengths(self, past: Past, tables: Any, live: LiveBlock) -> np.ndarray:
            assert live.confidence is not None
            passes = live.confidence > live.confidence.mean() if live.confidence.size else live.confidence > 0
            return np.logical_and.accumulate(passes, axis=1).sum(axis=1)

    return BatchMean


def fallback_on_later(module: str) -> type[Policy]:
    """A stopping rule that verifies everything when any rank, a later one too, makes it raise."""

    @dataclass(frozen=True)
    class OnLater(StoppingRule):
        __module__ = module
        name: ClassVar[str] = "fallback-on-later"

        def admits(self, past: Past, admitted: int, tau: int, survival: int) -> bool:
            return admitted < 1

        def decide(self, past: Past, live: LiveBlock) -> Decision:
            if (live.units < SCALE // 2).any():
                return Fixed(k=past.gamma).decide(past, live)
            return super().decide(past, live)

    return OnLater
