"""Policies as text: `hull:fill=true` on a command line, a JSON object in a file. Nothing is evaluated."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from sglang_dspark.errors import InputError
from sglang_dspark.policies.base import Policy
from sglang_dspark.policies.parameters import expected, field_types

_MAX_DEPTH = 4  # nested policies
META = "meta"
"""What a policy file says beside its policy, as an object: the server that `dspark tune` found it for."""


def policy_from_string(text: str, registry: Mapping[str, type[Policy]], depth: int = 0) -> Policy:
    """`NAME` or `NAME:key=value,key=value`; a nested policy stands in parentheses, a list uses /."""
    if depth > _MAX_DEPTH:
        raise InputError(f"policy text nests deeper than {_MAX_DEPTH} policies")
    name, colon, rest = text.strip().partition(":")
    policy_class = _find(name.strip(), registry)
    values: dict[str, Any] = {}
    for item in _split(rest, text) if colon else ():
        key, equals, value = item.partition("=")
        key = key.strip()
        if not equals:
            raise InputError(f"policy '{name}': '{item}' is refused, expected key=value")
        if key in values:
            raise InputError(f"policy '{name}': parameter '{key}' is given twice")
        field = _field(policy_class, key)
        values[key] = _parse(value.strip(), field, policy_class, registry, depth)
    return policy_class(**values)


def policy_from_json(data: Any, registry: Mapping[str, type[Policy]], depth: int = 0) -> Policy:
    """An object {"policy": NAME, parameter: value, ...}; a nested policy is an object or a string form."""
    if isinstance(data, str):
        return policy_from_string(data, registry, depth)
    if depth > _MAX_DEPTH:
        raise InputError(f"policy file nests deeper than {_MAX_DEPTH} policies")
    if not isinstance(data, dict) or not isinstance(data.get("policy"), str):
        raise InputError(
            'a policy file must hold an object with a "policy" name, such as {"policy": "hull", "fill": true}'
        )
    policy_class = _find(data["policy"], registry)
    values: dict[str, Any] = {}
    for key, value in data.items():
        if key == "policy" or key == META and depth == 0:
            continue
        kind = field_types(policy_class)[_field(policy_class, key).name]
        if isinstance(kind, type) and issubclass(kind, Policy):
            value = policy_from_json(value, registry, depth + 1)
        elif typing.get_origin(kind) is tuple and isinstance(value, list):
            value = tuple(value)
        values[key] = value
    return policy_class(**values)


def load_policy_file(path: Path, registry: Mapping[str, type[Policy]]) -> Policy:
    """A policy from a JSON file (InputError names the file)."""
    return policy_from_json(_read(path), registry)


def load_policy_meta(path: Path) -> dict[str, Any]:
    """The `meta` of a policy file, empty where it has none (InputError names the file)."""
    data = _read(path)
    meta = data.get(META, {}) if isinstance(data, dict) else {}
    if not isinstance(meta, dict):
        raise InputError(f"policy file {path}: meta is refused, expected an object")
    return meta


def _read(path: Path) -> Any:
    try:
        return msgspec.json.decode(path.read_bytes())
    except OSError as error:
        raise InputError(f"policy file {path}: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"policy file {path}: not JSON: {error}") from error


def policy_to_string(policy: Policy) -> str:
    """The shortest string form; `policy_from_string` gives an equal policy back."""
    items = [f"{name}={_format(value)}" for name, value in _changed(policy).items()]
    return policy.name + (":" + ",".join(items) if items else "")


def policy_to_json(policy: Policy) -> dict[str, Any]:
    """The JSON form with every parameter written out."""
    out: dict[str, Any] = {"policy": policy.name}
    for field in dataclasses.fields(policy):
        value = getattr(policy, field.name)
        out[field.name] = policy_to_json(value) if isinstance(value, Policy) else value
    return out


def _find(name: str, registry: Mapping[str, type[Policy]]) -> type[Policy]:
    if name not in registry:
        raise InputError(f"unknown policy '{name}', expected one of {', '.join(sorted(registry))}")
    return registry[name]


def _field(policy_class: type[Policy], key: str) -> dataclasses.Field[Any]:
    fields = {field.name: field for field in dataclasses.fields(policy_class)}
    if key not in fields:
        known = ", ".join(fields) if fields else "none"
        raise InputError(f"policy '{policy_class.name}' has no parameter '{key}', expected one of: {known}")
    return fields[key]


def _split(text: str, whole: str) -> list[str]:
    """Split at commas outside parentheses."""
    items, level, begin = [], 0, 0
    for index, char in enumerate(text):
        level += (char == "(") - (char == ")")
        if level < 0:
            break
        if char == "," and level == 0:
            items.append(text[begin:index])
            begin = index + 1
    if level != 0:
        raise InputError(f"policy '{whole}': parentheses do not match")
    return [*items, text[begin:]]


def _parse(
    text: str,
    field: dataclasses.Field[Any],
    policy_class: type[Policy],
    registry: Mapping[str, type[Policy]],
    depth: int,
) -> Any:
    kind = field_types(policy_class)[field.name]
    try:
        if text == "none" and field.default is None:
            return None
        if kind is bool:
            return {"true": True, "false": False}[text]
        if kind is int:
            return int(text)
        if kind is float:
            return float(text)
        if kind is str:
            return text
        if typing.get_origin(kind) is tuple:
            return tuple(int(item) for item in text.split("/"))
    except (ValueError, KeyError) as error:
        message = f"policy '{policy_class.name}': {field.name}={text} is refused, expected {expected(field, kind)}"
        raise InputError(message) from error
    inside = text[1:-1] if text.startswith("(") and text.endswith(")") else text
    return policy_from_string(inside, registry, depth + 1)


def _changed(policy: Policy) -> dict[str, Any]:
    values = {field: getattr(policy, field.name) for field in dataclasses.fields(policy)}
    return {f.name: value for f, value in values.items() if value != f.default or f.metadata.get("shown")}


def _format(value: Any) -> str:
    if isinstance(value, Policy):
        return f"({policy_to_string(value)})"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return "/".join(map(str, value))
    return repr(value) if isinstance(value, float) else str(value) if value is not None else "none"
