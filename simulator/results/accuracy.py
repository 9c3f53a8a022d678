"""How far predictions on measured step costs were off, as `benchmarks/validate.py` found (validation.json is its)."""

from __future__ import annotations

from functools import lru_cache
from importlib.resources import files

import msgspec

from simulator.engine.run import Setting


class Known(msgspec.Struct, frozen=True):
    """Errors over `count` published figures, in points or per cent: mean size and largest."""

    count: int
    mean: float
    largest: float


class Accuracy(msgspec.Struct, frozen=True):
    """figure8: throughput, in-sample, per cent. frontier: gains of arms at loads that no parameter saw, points.
    captured: gains of policies on estimated costs, points. production: gains of DSpark over MTP-1 at matched
    throughput on step times of other hardware, points.
    """

    figure8: Known
    frontier: Known
    captured: Known
    production: Known


@lru_cache(maxsize=1)
def accuracy() -> Accuracy:
    """What was found when the package was made."""
    data = files("simulator.results").joinpath("validation.json").read_bytes()
    return msgspec.json.decode(data, type=Accuracy)


def accuracy_of(setting: Setting) -> str:
    """One sentence for a result on measured step costs; empty on an estimate, whose errors are said as a warning."""
    if setting.cost.is_estimate:
        return ""
    return f"held against what others measured (docs/validation.md), {error_words()}"


def error_words() -> str:
    """By how much predictions were off, by source."""
    known = accuracy()
    return (
        f"gains were off by {_said(known.frontier, ' points')} on vLLM's loads, {_said(known.captured)} on SGLang's "
        f"with estimated costs, {_said(known.production)} over MTP-1 on other hardware; throughput, in-sample, by "
        f"{_said(known.figure8, ' %')}"
    )


def _said(known: Known, unit: str = "") -> str:
    return f"{known.mean:.1f}{unit} (at most {known.largest:.1f})"
