"""What stamps can mean: a unit that gives a likely rate, a clock so coarse that requests share its ticks, or bursts."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from sglang_dspark.errors import InputError
from simulator.blocks.random import stream
from simulator.traces.facts import short
from simulator.traces.trace import Trace

#: Requests per second outside which the unit of a trace's numeric stamps is doubted. Public traces offer 0.1 .. 10;
#: read a thousand times too fast or too slow they all fall outside, read rightly they lie a factor of 10 inside.
PLAUSIBLE_RATE = (0.01, 100.0)

#: Fewer gaps between stamps than this say nothing about a grid.
_MIN_GAPS = 4

#: How far a gap between stamps may be from whole steps of the grid, in steps; what share of the gaps must be so.
_GRID_TOLERANCE = 0.1
_GRID_SHARE = 0.9

#: Longest tick of a clock, in seconds, within the tolerance: loggers round to a second, none to more.
_LONGEST_TICK_S = 1.0 + _GRID_TOLERANCE


def doubt_rate(trace: Trace, time_unit: str) -> Trace:
    """Return the trace with a warning among its notes if stamps that were taken for `time_unit` give an odd rate."""
    low, high = PLAUSIBLE_RATE
    rate = trace.offered_rate
    if rate is None or trace.span_s == 0 or low <= rate <= high:
        return trace
    note = (
        f"warning: {short(rate)} requests/s is implausible, expected {low:g} .. {high:g}: the stamps were read as "
        f"{time_unit}; if that is right, --time-unit {time_unit} says so, else --time-unit "
        f"{'s' if time_unit == 'ms' else 'ms'}"
    )
    return replace(trace, notes=(*trace.notes, note))


def settle_clock(trace: Trace, jitter: bool | None, seed: int, *, foreign: bool) -> Trace:
    """Return the trace with the stamps of a coarse clock spread within its ticks, or a note that bursts are kept.

    jitter: True spreads every regular grid, False none, None a foreign trace's grid of at most about a second.

    Raises:
        InputError: if `jitter` changes nothing of what None does.
    """
    grid = _grid_of(trace.arrival_s) if trace.stamped else None
    rule = foreign and grid is not None and grid.width_s <= _LONGEST_TICK_S
    if jitter is not None and (grid is None or jitter == rule):
        raise InputError(
            f"--{'jitter' if jitter else 'no-jitter'} does nothing with {trace.source}: {_why(trace, grid, rule)}"
        )
    if grid is None:
        return trace
    if rule if jitter is None else jitter:
        note = f"jitter: arrivals come in buckets of {grid.said}; each moved uniformly within its bucket, seed {seed}"
        note += "; --no-jitter keeps them" if rule else ""
        return replace(trace, arrival_s=_spread(trace.arrival_s, grid, seed), notes=(*trace.notes, note))
    note = f"bursts: the stamps come in bursts every {grid.said}; kept as they are" + (
        "" if rule else ", --jitter spreads them"
    )
    return replace(trace, notes=(*trace.notes, note))


@dataclass(frozen=True)
class _Grid:
    """starts: the different stamps [S]; bucket: index of each request's stamp [N]; width_s: one step of the grid."""

    starts: np.ndarray
    bucket: np.ndarray
    width_s: float

    @property
    def said(self) -> str:
        most = np.bincount(self.bucket).max()
        return f"{self.width_s:.3f} s ({len(self.starts)} stamps for {len(self.bucket)} requests, up to {most} each)"


def _why(trace: Trace, grid: _Grid | None, rule: bool) -> str:
    if not trace.stamped:
        return "it has no stamps"
    if grid is None:
        return "its stamps lie on no regular grid that requests share"
    return f"stamps every {grid.said} are {'spread' if rule else 'kept'} without it"


def _grid_of(arrival_s: np.ndarray) -> _Grid | None:
    """Return the regular grid on which stamps that requests share lie, if any."""
    starts, bucket = np.unique(arrival_s, return_inverse=True)
    gaps = np.diff(starts)
    if len(gaps) < _MIN_GAPS or 2 * len(starts) > len(arrival_s):
        return None
    unit = float(np.quantile(gaps, 0.05, method="lower"))
    with np.errstate(over="ignore", invalid="ignore"):  # gaps of many sizes: no grid
        steps = gaps / unit
        if np.mean(np.abs(steps - np.round(steps)) <= _GRID_TOLERANCE) < _GRID_SHARE:
            return None
    return _Grid(starts, bucket, float(np.median(gaps[np.round(steps) == 1])))


def _spread(arrival_s: np.ndarray, grid: _Grid, seed: int) -> np.ndarray:
    """Move each stamp uniformly within its bucket, in file order."""
    room = np.append(np.minimum(np.diff(grid.starts), grid.width_s), grid.width_s)
    draws = stream(seed, "jitter").random(len(arrival_s))
    draws = draws[np.lexsort((draws, grid.bucket))]  # increasing within each bucket
    next_start = np.append(grid.starts[1:], np.inf)
    return np.minimum(grid.starts[grid.bucket] + draws * room[grid.bucket], next_start[grid.bucket])
