"""How far estimates were off, as `benchmarks/estimate_errors.py` measured it (accuracy.json is what it wrote)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from importlib.resources import files
from typing import Any, NamedTuple

import msgspec

from sglang_dspark.cost.assumptions import Assumption
from sglang_dspark.errors import InputError


class Errors(msgspec.Struct, frozen=True):
    """Relative errors of predictions against `count` measured values: mean of their size, largest, mean with sign."""

    count: int
    mean: float
    largest: float
    bias: float


class Gains(msgspec.Struct, frozen=True):
    """Errors of policies' gains in points (0.01 = one point), against those on a measured profile."""

    count: int
    mean: float
    largest: float


class Accuracy(msgspec.Struct, frozen=True):
    """steps: published decode steps. staircase: a published verify staircase. serving: served TPOT. gains: of policies.

    versions: of the library and its tables.
    """

    versions: str
    steps: Errors
    staircase: Errors
    serving: Errors
    gains: Gains


class Band(NamedTuple):
    """One sentence, and the error of steps in it."""

    text: str
    error: float


@lru_cache(maxsize=1)
def accuracy() -> Accuracy:
    """What was measured when the package was made."""
    data = files("sglang_dspark.cost.estimate").joinpath("accuracy.json").read_bytes()
    return msgspec.json.decode(data, type=Accuracy)


def error_band() -> Band:
    """How far off such estimates were."""
    known = accuracy()
    text = (
        f"estimate, not measured: such step times were off by {known.steps.mean:.0%} on {known.steps.count} published "
        f"decode steps (at most {known.steps.largest:.0%}), {known.serving.mean:.0%} on {known.serving.count} served "
        f"loads and {known.staircase.mean:.0%} on vLLM's {known.staircase.count} verify steps of 4 x B300; gains of "
        f"policies by {100 * known.gains.mean:.1f} points there (at most {100 * known.gains.largest:.1f})"
    )
    return Band(text, known.steps.mean)


def stated_of_estimate(meta: Mapping[str, Any], name: str) -> tuple[Assumption, ...]:
    """What every result made with an estimate states: how far off such estimates were, and what this one assumes.

    meta: the profile's provenance. Errors: InputError where its `assumed` is no list of assumptions.
    """
    try:
        own = [Assumption.from_plain(plain) for plain in meta.get("assumed") or []]
    except TypeError as error:
        raise InputError(
            f"profile {name}: meta.assumed is refused, expected a list of assumptions ({error})"
        ) from error
    band = error_band()
    said = Assumption("estimate_error", band.error, "of a step", "benchmarks/estimate_errors.py", band.text)
    return (said, *own)
