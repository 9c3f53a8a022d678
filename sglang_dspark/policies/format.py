"""Policies as text: the shortest string form, and the JSON form with every parameter."""

from __future__ import annotations

import dataclasses
from typing import Any

from sglang_dspark.policies.base import Policy
from sglang_dspark.policies.rules.calibrated import Calibrated
from sglang_dspark.policies.rules.repriced import Repriced
from sglang_dspark.policies.rules.wrapped import Wrapped

ONLINE: dict[str, type[Wrapped]] = {"calibrate": Calibrated, "costs": Repriced}
"""The parameters that put something learned online around any rule that can have it, from the inside out."""


def policy_to_string(policy: Policy) -> str:
    """The shortest string form; `make_policy` gives an equal policy back."""
    if isinstance(policy, Wrapped):
        inner = policy_to_string(policy.inner)
        return f"{inner}{',' if ':' in inner else ':'}{_parameter(policy)}=online"
    items = [f"{name}={written(value)}" for name, value in _changed(policy).items()]
    return policy.name + (":" + ",".join(items) if items else "")


def policy_to_json(policy: Policy) -> dict[str, Any]:
    """The JSON form with every parameter written out."""
    if isinstance(policy, Wrapped):
        return {**policy_to_json(policy.inner), _parameter(policy): "online"}
    out: dict[str, Any] = {"policy": policy.name}
    for field in dataclasses.fields(policy):
        value = getattr(policy, field.name)
        out[field.name] = policy_to_json(value) if isinstance(value, Policy) else value
    return out


def _parameter(policy: Wrapped) -> str:
    return next(name for name, kind in ONLINE.items() if isinstance(policy, kind))


def _changed(policy: Policy) -> dict[str, Any]:
    values = {field: getattr(policy, field.name) for field in dataclasses.fields(policy)}
    return {f.name: value for f, value in values.items() if value != f.default or f.metadata.get("shown")}


def written(value: Any) -> str:
    """A parameter's value as the string form has it."""
    if isinstance(value, Policy):
        return f"({policy_to_string(value)})"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return "/".join(map(str, value))
    return repr(value) if isinstance(value, float) else str(value) if value is not None else "none"
