"""Measured curves and the three ways to read between their probes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sglang_dspark.errors import InputError

Floats = NDArray[np.float64]
Seconds = Sequence[float | list[float]]

_LARGEST_PROBE = 2**31
_LARGEST = 1e9  # seconds, or steps a second


@dataclass(frozen=True)
class Curve:
    """Seconds at probes; `floor` reads the probe below (SGLang's 1-D table), else linear; both clamp at the ends.

    probes: [P] strictly increasing. seconds: [P], or [C, P] when measured at `contexts` [C] tokens per request.
    measured_to: where measurement ends, if before the last probe (a straight line goes on to that one).
    """

    probes: Floats
    seconds: Floats
    contexts: Floats | None = None
    floor: bool = False
    measured_to: int | None = None

    def at(self, points: Floats | int, context: float = 0.0) -> Floats:
        """Seconds at `points` for a mean context of `context` tokens per request (clamped to the measured ones)."""
        seconds = self._for_context(context)
        if self.floor:
            index = np.searchsorted(self.probes, points, side="right") - 1
            return seconds[np.clip(index, 0, seconds.size - 1)]
        return np.asarray(np.interp(points, self.probes, seconds))

    @property
    def span(self) -> tuple[int, int]:
        """(least, most) that was measured; outside, `at` clamps or goes on with a line."""
        return int(self.probes[0]), int(self.probes[-1]) if self.measured_to is None else self.measured_to

    @property
    def knows_context(self) -> bool:
        """Whether the curve was measured at more than one context length."""
        return self.contexts is not None and self.contexts.size > 1

    def _for_context(self, context: float) -> Floats:
        if self.contexts is None:
            return self.seconds
        if self.contexts.size == 1:
            return self.seconds[0]
        high = int(np.clip(np.searchsorted(self.contexts, context), 1, self.contexts.size - 1))
        low = high - 1
        weight = (context - self.contexts[low]) / (self.contexts[high] - self.contexts[low])
        weight = min(max(weight, 0.0), 1.0)
        return (1.0 - weight) * self.seconds[low] + weight * self.seconds[high]


def make_curve(
    name: str,
    probes: list[int],
    seconds: Seconds,
    contexts: list[int] | None = None,
    *,
    floor: bool = False,
    least_probes: int = 1,
    relative: bool = False,
) -> Curve:
    """A checked curve; InputError says what is wrong with `name`.

    relative: the seconds are added to a bias, as SGLang's profiler fits them: they may be 0 or below, and the first
    probe may be 0 (it bins token counts by rounding).
    """
    points = np.asarray(probes, dtype=np.float64)
    values = np.asarray(_rectangular(name, seconds), dtype=np.float64)
    if points.size < least_probes:
        raise InputError(f"{name}: {points.size} probe(s) cannot inform a decision, expected at least {least_probes}")
    if values.shape[-1] != points.size:
        raise InputError(f"{name}: {points.size} probes but {values.shape[-1]} values, expected as many")
    if not np.all(np.isfinite(values)) or not np.all(np.isfinite(points)):
        raise InputError(f"{name}: holds a NaN or infinite value, expected finite numbers")
    least = 0 if relative else 1
    if np.any(points < least) or np.any(np.diff(points) <= 0):
        expected = f"expected strictly increasing integers from {least}"
        raise InputError(f"{name}: probes {_short(probes)} are refused, {expected}")
    if not relative and np.any(values <= 0):
        raise InputError(f"{name}: holds {values.min()}, expected positive numbers")
    size = np.abs(values[values != 0])
    if np.any(points > _LARGEST_PROBE) or np.any(size > _LARGEST) or (not relative and np.any(size < 1 / _LARGEST)):
        expected = f"expected probes up to {_LARGEST_PROBE} and values between {1 / _LARGEST:g} and {_LARGEST:g}"
        raise InputError(f"{name}: holds values of no use, {expected}")
    if (contexts is not None) != (values.ndim == 2) or (contexts is not None and len(contexts) != len(values)):
        raise InputError(f"{name}: expected one row of values for every context length")
    grid = None if contexts is None else np.asarray(contexts, dtype=np.float64)
    if grid is not None and (np.any(grid < 0) or np.any(np.diff(grid) <= 0)):
        raise InputError(
            f"{name}: context lengths {_short(contexts)} are refused, expected strictly increasing integers"
        )
    return Curve(points, values, grid, floor)


def _rectangular(name: str, seconds: Seconds) -> Seconds:
    kinds = {len(row) if isinstance(row, list) else None for row in seconds}
    if len(kinds) > 1:
        raise InputError(f"{name}: rows of different lengths, expected numbers, or rows of one length")
    return seconds


def _short(values: list[int] | None) -> str:
    shown = [str(value) for value in (values or [])[:6]]
    return "[" + ", ".join(shown) + (", ...]" if len(values or []) > 6 else "]")
