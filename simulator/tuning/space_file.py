"""The space of a search out of a YAML file, which may restrict the default one, or widen it up to the declared ranges.

policies:
  fixed: {k: {low: 1, high: 5}}     # a range
  hull: {fill: [true, false]}       # choices
  argmax: {lag: 2}                  # one value; parameters that are not named keep their default range
gamma: [5, 7]
max_running_requests: [48, 64]
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from sglang_dspark.errors import InputError
from sglang_dspark.policies import POLICIES
from simulator.engine.run import Setting
from simulator.tuning.space import LENGTHS, Between, Choice, Range, Space, default_space


def read_space(path: Path, setting: Setting, running: int) -> Space:
    """The space of a YAML file; InputError names the file, the parameter and what is accepted."""
    try:
        import yaml
    except ImportError:
        raise InputError("--space needs PyYAML, which is not installed: pip install 'sglang-dspark[tune]'") from None
    try:
        data = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"space {path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    except yaml.YAMLError as error:
        raise InputError(f"space {path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(data, dict) or not set(data) <= {"policies", "gamma", "max_running_requests"}:
        raise InputError(f"space {path}: expected a mapping with policies, gamma, max_running_requests")
    return _restricted(default_space(setting, running), data, path)


def _restricted(whole: Space, data: dict[str, Any], path: Path) -> Space:
    asked = data.get("policies")
    asked = dict.fromkeys(asked) if isinstance(asked, list) else whole.policies if asked is None else asked
    if not isinstance(asked, dict) or not asked:
        raise InputError(f"space {path}: policies is refused, expected a list of names, or ranges by name")
    policies = {}
    for name, ranges in asked.items():
        if name not in whole.policies:
            why = next((each for each in whole.left_out if each.startswith(f"{name} ")), "")
            known = ", ".join(whole.policies)
            tail = f" ({why})" if why else ""
            raise InputError(f"space {path}: policy '{name}' is refused, expected one of {known}{tail}")
        policies[name] = dict(whole.policies[name])
        if asked is whole.policies:
            continue
        for key, value in (ranges or {}).items():
            policies[name][key] = _asked(value, _declared(name, key, whole, path), f"space {path}: {name}.{key}")
    gamma = whole.gamma
    if "gamma" in data:
        limits = Between(1, whole.own_gamma, whole=True)
        gamma = _asked(data["gamma"], limits, f"space {path}: gamma")
        if whole.gamma is None and not gamma.holds(whole.own_gamma):
            raise InputError(f"space {path}: gamma does nothing here, expected it left out (it is {whole.own_gamma})")
    running = whole.running
    if "max_running_requests" in data:
        limits = Between(1, 1 << 16, whole=True)
        found = _asked(data["max_running_requests"], limits, f"space {path}: max_running_requests")
        values = found.values if isinstance(found, Choice) else tuple(range(int(found.low), int(found.high) + 1))
        running = Choice(values)
    return dataclasses.replace(whole, policies=policies, gamma=gamma, running=running)


def _declared(name: str, key: str, whole: Space, path: Path) -> Range:
    """The widest range that a file may ask for: what the policy declares, lengths within gamma."""
    if key not in whole.policies[name]:
        known = ", ".join(whole.policies[name]) or "none"
        raise InputError(f"space {path}: policy '{name}' has no parameter '{key}' to search, expected one of {known}")
    where = whole.policies[name][key]
    field_name = key.partition("[")[0]
    field = next(each for each in dataclasses.fields(POLICIES[name]) if each.name == field_name)
    if isinstance(where, Choice) or field.metadata.get("low") is None:
        return where
    high = whole.own_gamma if field_name in LENGTHS else field.metadata["high"]
    return Between(field.metadata["low"], high, where.whole, where.log)


def _asked(value: Any, limits: Range, what: str) -> Range:
    """A range or choices out of a file, within limits."""
    if isinstance(value, dict):
        if set(value) != {"low", "high"} or isinstance(limits, Choice):
            raise InputError(f"{what} is refused, expected {_words(limits)}")
        low, high = value["low"], value["high"]
        kinds = (int,) if limits.whole else (int, float)
        good = all(isinstance(each, kinds) and limits.holds(each) for each in (low, high)) and low <= high
        if not good:
            raise InputError(f"{what} = {low}..{high} is refused, expected a range within {_words(limits)}")
        return Between(low, high, limits.whole, limits.log and low >= 1)
    values = tuple(value) if isinstance(value, list) else (value,)
    whole = isinstance(limits, Between) and limits.whole
    for each in values:
        if not limits.holds(each) or (whole and not isinstance(each, int)):
            raise InputError(f"{what} = {each} is refused, expected {_words(limits)}")
    if not values:
        raise InputError(f"{what} is empty, expected {_words(limits)}")
    return Choice(values)


def _words(limits: Range) -> str:
    if isinstance(limits, Choice):
        return "one of " + ", ".join(
            str(value).lower() if isinstance(value, bool) else str(value) for value in limits.values
        )
    return f"{limits.low:g}..{limits.high:g}"
