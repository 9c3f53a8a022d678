"""Hypothesis strategies: any registered policy with any parameters that it accepts."""

from __future__ import annotations

import dataclasses
import typing

from hypothesis import strategies as st

from sglang_dspark.errors import InputError
from sglang_dspark.policies import POLICIES, Policy, Unrestricted, make_policy, needs_prices
from sglang_dspark.policies.parameters import field_types

SMALL = 7
"""Integer parameters are drawn up to this, so that floors, caps and lengths fit a block of 7."""


@st.composite
def policies(draw: st.DrawFn, names: tuple[str, ...] = tuple(POLICIES), depth: int = 0) -> Policy:
    """A policy from the registry; nested ones are lossless and draft, as `guard` wants them."""
    policy_class = POLICIES[draw(st.sampled_from(names))]
    values = {}
    for field in dataclasses.fields(policy_class):
        kind = field_types(policy_class)[field.name]
        nested = isinstance(kind, type) and issubclass(kind, Policy)
        value = _nested(depth, policy_class.name) if nested else _value(field, kind)
        options = [st.just(field.default), value] if field.default is not None else [st.none(), value]
        values[field.name] = draw(st.one_of(options))
    if policy_class.name == "schedule":
        upto = draw(st.lists(st.integers(1, 40), min_size=1, max_size=4, unique=True).map(sorted))
        values["upto"] = tuple(upto)
        values["k"] = tuple(draw(st.lists(st.integers(0, SMALL), min_size=len(upto) + 1, max_size=len(upto) + 1)))
    if values.get("cap") is not None and values.get("floor", 0) > values["cap"]:
        values["floor"] = values["cap"]
    try:
        return policy_class(**values)
    except InputError as error:
        raise AssertionError(f"a value inside the declared range was refused: {error}") from error


def _nested(depth: int, within: str) -> st.SearchStrategy[Policy]:
    outside = {"none", "guard"}
    if within == "calibrated":
        outside |= {"fixed", "calibrated", "repriced", "self-tuning"}
    if within == "repriced":
        outside |= {"calibrated", "repriced", "self-tuning"}
        outside |= {name for name in POLICIES if name not in outside and not needs_prices(make_policy(name))}
    names = [name for name, rule in POLICIES.items() if not issubclass(rule, Unrestricted) and name not in outside]
    plain = within not in ("calibrated", "repriced")
    return policies((*names, *(("guard",) if depth < 2 and plain else ())), depth + 1)


def _value(field: dataclasses.Field, kind: type) -> st.SearchStrategy:
    low, high = field.metadata["low"], field.metadata["high"]
    if isinstance(low, tuple):
        return st.sampled_from(low)
    if kind is bool:
        return st.booleans()
    if kind is int:
        return st.integers(low, min(high, SMALL))
    if kind is float:
        return st.floats(low, high)
    assert typing.get_origin(kind) is tuple
    return st.lists(st.integers(low, min(high, SMALL)), min_size=1, max_size=4).map(tuple)
