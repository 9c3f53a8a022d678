"""Policies as text: `hull:fill=true` on a command line, a JSON object in a file. Nothing is evaluated."""

from __future__ import annotations

import dataclasses
import typing
from pathlib import Path
from typing import Any

import msgspec

from sglang_dspark.errors import InputError
from sglang_dspark.policies.base import Policy
from sglang_dspark.policies.format import ONLINE
from sglang_dspark.policies.parameters import expected, field_types
from sglang_dspark.policies.registry import find_policy

_MAX_DEPTH = 4  # nested policies
META = "meta"
"""What a policy file says beside its policy, as an object: the server that `dspark tune` found it for."""


def make_policy(text: str) -> Policy:
    """A policy from its string form, or from a JSON file when `text` ends in .json.

    Errors: InputError names the policy, the parameter and the accepted range.
    """
    return load_policy_file(Path(text)) if text.endswith(".json") else policy_from_string(text)


def policy_from_string(text: str, depth: int = 0) -> Policy:
    """`NAME` or `NAME:key=value,key=value`; a nested policy stands in parentheses, a list uses /."""
    if depth > _MAX_DEPTH:
        raise InputError(f"policy text nests deeper than {_MAX_DEPTH} policies")
    name, colon, rest = text.strip().partition(":")
    policy_class = find_policy(name.strip())
    values: dict[str, Any] = {}
    for item in _split(rest, text) if colon else ():
        key, equals, value = item.partition("=")
        key = key.strip()
        if not equals:
            raise InputError(f"policy '{name}': '{item}' is refused, expected key=value")
        if key in values:
            raise InputError(f"policy '{name}': parameter '{key}' is given twice")
        if key in ONLINE:
            values[key] = value.strip()
            continue
        field = _field(policy_class, key)
        values[key] = _parse(value.strip(), field, policy_class, depth)
    return _made(policy_class, values)


def policy_from_json(data: Any, depth: int = 0) -> Policy:
    """An object {"policy": NAME, parameter: value, ...}; a nested policy is an object or a string form."""
    if isinstance(data, str):
        return policy_from_string(data, depth)
    if depth > _MAX_DEPTH:
        raise InputError(f"policy file nests deeper than {_MAX_DEPTH} policies")
    if not isinstance(data, dict) or not isinstance(data.get("policy"), str):
        raise InputError(
            'a policy file must hold an object with a "policy" name, such as {"policy": "hull", "fill": true}'
        )
    policy_class = find_policy(data["policy"])
    values: dict[str, Any] = {}
    for key, value in data.items():
        if key in ("policy", *ONLINE) or (key == META and depth == 0):
            continue
        kind = field_types(policy_class)[_field(policy_class, key).name]
        if isinstance(kind, type) and issubclass(kind, Policy):
            value = policy_from_json(value, depth + 1)
        elif typing.get_origin(kind) is tuple and isinstance(value, list):
            value = tuple(value)
        values[key] = value
    values |= {name: data[name] for name in ONLINE if name in data}
    return _made(policy_class, values)


def _made(policy_class: type[Policy], values: dict[str, Any]) -> Policy:
    """The policy of these parameters, and around it what it is to learn online."""
    learned = {name: values.pop(name, "none") for name in ONLINE}
    for name, value in learned.items():
        if value not in ("none", "online"):
            raise InputError(f"policy '{policy_class.name}': {name}={value} is refused, expected one of none, online")
    policy = policy_class(**values)
    for name, value in learned.items():
        policy = ONLINE[name](policy) if value == "online" else policy
    return policy


def load_policy_file(path: Path) -> Policy:
    """A policy from a JSON file (InputError names the file)."""
    return policy_from_json(_read(path))


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
    return policy_from_string(inside, depth + 1)
