"""Parameters of policies: declared with their range, checked when a policy is made."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from functools import cache
from typing import Any

import numpy as np

from sglang_dspark.errors import InputError

_SMALL = 4  # the largest step above the least value of an integer that `some_values` draws
FLOOR = (0, 64, "positions that every request verifies before the walk")
CAP = (0, 64, "the last position that the walk may admit (default: the whole block)")


def parameter(default: Any, low: Any, high: Any = None, doc: str = "", *, shown: bool = False) -> Any:
    """A dataclass field with an accepted range low..high, or, when `low` is a tuple of strings, a choice.

    shown: written out in the string form even at its default.
    """
    return dataclasses.field(default=default, metadata={"low": low, "high": high, "doc": doc, "shown": shown})


@cache
def field_types(policy_class: type[Any]) -> dict[str, Any]:
    """Declared type of every parameter, `X | None` reduced to X."""
    hints = typing.get_type_hints(policy_class)
    found = {}
    for field in dataclasses.fields(policy_class):
        hint = hints[field.name]
        if isinstance(hint, types.UnionType):
            hint = next(kind for kind in typing.get_args(hint) if kind is not type(None))
        found[field.name] = hint
    return found


def expected(field: dataclasses.Field[Any], kind: Any) -> str:
    """The accepted values of a parameter, in words."""
    low, high = field.metadata.get("low"), field.metadata.get("high")
    if isinstance(low, tuple):
        return "one of " + ", ".join(low)
    if kind is bool:
        return "true or false"
    within = "" if low is None else f" in {low}..{high}"
    if kind is int:
        return f"an integer{within}"
    if kind is float:
        return f"a number{within}"
    if kind is str:
        return "text"
    if typing.get_origin(kind) is tuple:
        return f"integers{within} separated by /"
    return "a policy in parentheses, such as (hull:fill=true)"


def check_parameters(policy: Any) -> None:
    """Refuse a parameter of the wrong type or out of range, naming policy, parameter, value and range."""
    types_ = field_types(policy.__class__)
    for field in dataclasses.fields(policy):
        value, kind = getattr(policy, field.name), types_[field.name]
        if value is None and field.default is None:
            continue
        if not _accepts(value, kind, field.metadata.get("low"), field.metadata.get("high")):
            raise InputError(
                f"policy '{policy.name}': {field.name}={value!r} is refused, expected {expected(field, kind)}"
            )


def _accepts(value: Any, kind: Any, low: Any, high: Any) -> bool:
    if isinstance(low, tuple):
        return isinstance(value, str) and value in low
    if kind is bool:
        return isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool) and (low is None or low <= value <= high)
    if kind is float:
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        return number and (low is None or low <= value <= high)
    if typing.get_origin(kind) is tuple:
        return isinstance(value, tuple) and bool(value) and all(_accepts(item, int, low, high) for item in value)
    return isinstance(value, kind)


def some_values(policy_class: type[Any], rng: np.random.Generator) -> dict[str, Any]:
    """Values of a few parameters, drawn from what they accept; small integers, so that they fit small blocks."""
    drawn, kinds = {}, field_types(policy_class.__mro__[0])
    for field in dataclasses.fields(policy_class):
        value = _some_value(field, kinds[field.name], rng)
        if value is not None and rng.random() < 0.5:
            drawn[field.name] = value
    return drawn


def _some_value(field: dataclasses.Field[Any], kind: Any, rng: np.random.Generator) -> Any:
    low, high = field.metadata.get("low"), field.metadata.get("high")
    if isinstance(low, tuple):
        return str(rng.choice(low))
    if kind is bool:
        return bool(rng.integers(0, 2))
    if low is None or high is None:
        return None
    if kind is int:
        return int(rng.integers(low, min(high, low + _SMALL) + 1))
    return float(rng.uniform(low, high)) if kind is float else None
