"""What is searched: policies, their parameters within their declared ranges, gamma, the limit of running requests.

The ranges are those that policies declare (`parameter`), narrowed to what can matter at the load at hand; a file may
say otherwise (`space_file`).
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sglang_dspark.errors import InputError
from sglang_dspark.policies import POLICIES, Fixed, Policy, Repriced, make_policy, policy_to_string
from sglang_dspark.policies.parameters import field_types
from simulator.engine.run import Setting
from simulator.tuning.candidate import Candidate

LENGTHS = ("k", "floor", "cap")
"""Parameters that count draft positions: never more than gamma."""

_LOG_FROM = 100
_DIGITS = 3

Value = int | float | bool | str | None


@dataclass(frozen=True)
class Choice:
    """One of some values."""

    values: tuple[Value, ...]

    def holds(self, value: Any) -> bool:
        return any(value == each and type(value) is type(each) for each in self.values)


@dataclass(frozen=True)
class Between:
    """low..high; whole: integers; log: tried evenly on a logarithmic scale."""

    low: float
    high: float
    whole: bool
    log: bool = False

    def holds(self, value: Any) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool) and self.low <= value <= self.high


Range = Choice | Between
Parameters = dict[str, Range]


@dataclass(frozen=True)
class Space:
    """policies: ranges of parameters by policy; element i of a tuple parameter is `name[i]`. gamma: None where it is
    not searched. running: limits of running requests, None in it is the setting's own. left_out: why a policy of the
    registry is not there.
    """

    policies: dict[str, Parameters]
    gamma: Range | None
    running: Choice
    own_gamma: int
    left_out: tuple[str, ...] = ()

    def draw(self, trial: Any) -> Candidate:
        """The candidate that a trial (of Optuna) suggests."""
        name = trial.suggest_categorical("policy", list(self.policies))
        gamma = None
        if self.gamma is not None and POLICIES[name] is not POLICIES["none"]:
            gamma = _suggest(trial, "gamma", self.gamma)
        limit = _suggest(trial, "max_running_requests", self.running)
        values = {key: _suggest(trial, f"{name}.{key}", where) for key, where in self.policies[name].items()}
        return self.candidate(name, values, gamma, None if limit in (None, "own") else int(limit))

    def candidate(self, name: str, values: Mapping[str, Value], gamma: Any, limit: int | None) -> Candidate:
        """A policy of parameters [by key of `policies`]; lengths beyond gamma are cut to it."""
        block = self.own_gamma if gamma is None else int(gamma)
        kinds, found = field_types(POLICIES[name]), dict[str, Any]()
        for key, value in values.items():
            field, _, element = key.partition("[")
            if field in LENGTHS and value is not None:
                value = min(int(value), block)
            if field == "cap" and value == block:
                value = None
            if element:
                found[field] = (*found.get(field, ()), value)
            elif isinstance(value, str) and isinstance(kinds[field], type) and issubclass(kinds[field], Policy):
                found[field] = _cut(make_policy(value), block)
            else:
                found[field] = round(value, _DIGITS) if isinstance(value, float) else value
        if isinstance(found.get("cap"), int) and isinstance(found.get("floor"), int):
            found["floor"] = min(found["floor"], found["cap"])
        policy = POLICIES[name](**found)
        return Candidate(policy, None if block == self.own_gamma else block, limit)

    def params(self, candidate: Candidate) -> dict[str, Any] | None:
        """What a trial has to suggest for this candidate; None where the space does not hold it."""
        name = candidate.policy.name
        if name not in self.policies:
            return None
        out: dict[str, Any] = {"policy": name}
        if self.gamma is not None and candidate.policy.drafts:
            gamma = candidate.gamma or self.own_gamma
            if not self.gamma.holds(gamma):
                return None
            out["gamma"] = gamma
        limit = "own" if candidate.max_running_requests is None else candidate.max_running_requests
        if not self.running.holds(limit):
            return None
        out["max_running_requests"] = limit
        for key, where in self.policies[name].items():
            value = self._value(candidate, key)
            if not where.holds(value):
                return None
            out[f"{name}.{key}"] = float(value) if isinstance(where, Between) and not where.whole else value
        return out

    def _value(self, candidate: Candidate, key: str) -> Any:
        field, _, element = key.partition("[")
        value = getattr(candidate.policy, field)
        if element:
            at = int(element.rstrip("]"))
            return value[at] if at < len(value) else None
        if isinstance(value, Policy):
            return policy_to_string(value)
        return (candidate.gamma or self.own_gamma) if field == "cap" and value is None else value

    def seeds(self) -> list[Candidate]:
        """What every search begins with: no speculation, every fixed length, SGLang's rule, every policy as it is."""
        own = self.own_gamma
        texts = ["none", *(f"fixed:k={k}" for k in range(1, own + 1)), "argmax:lag=2,pricing=floor", *self.policies]
        found: dict[str, Candidate] = {}
        for text in texts:
            try:
                candidate = Candidate(make_policy(text))
                candidate.policy.check(own)
            except InputError:
                continue  # a default that is too long for this block
            if self.params(candidate) is not None:
                found.setdefault(candidate.text, candidate)
        return list(found.values())

    def stated(self) -> dict[str, Any]:
        """Plain values, for the study file and for reports."""
        plain = {name: {key: _plain(where) for key, where in each.items()} for name, each in self.policies.items()}
        gamma = None if self.gamma is None else _plain(self.gamma)
        return {"policies": plain, "gamma": gamma, "max_running_requests": _plain(self.running)}


def default_space(setting: Setting, running: int) -> Space:
    """All lossless policies that this setting can run, with all their parameters.

    Without `Repriced` by itself: a trial believes the true step costs, where it decides as the rule inside it does.
    running: requests that run at once, by which token capacities are narrowed.
    """
    gamma, policies, left_out = setting.drafter.gamma, dict[str, Parameters](), list[str]()
    for name, policy_class in POLICIES.items():
        if policy_class is Repriced:
            continue
        if gamma == 0 and name != "none":
            left_out.append(f"{name} is left out: there is no drafter")
            continue
        try:
            ranges = _ranges(policy_class, gamma, running)
            example = Space({name: ranges}, None, Choice((None,)), gamma).candidate(name, _first(ranges), None, None)
            if not example.policy.lossless:
                continue
            setting.check(example.policy)
        except InputError as error:
            left_out.append(f"{name} is left out: {error}")
            continue
        policies[name] = ranges
    own = setting.recorded is not None or setting.drafter.name == "none" or setting.cost.diagonal
    blocks = None if own or gamma <= 1 else Between(max(1, (gamma + 1) // 2), gamma, whole=True)
    return Space(policies, blocks, _limits(setting, running), gamma, tuple(left_out))


def _limits(setting: Setting, running: int) -> Choice:
    """The setting's own limit, and others: fewer in a closed loop (more than are in flight change nothing)."""
    if setting.engine.max_running_requests is not None:
        return Choice(("own",))
    if setting.concurrency is not None:
        others = {-(-3 * running // 4), -(-running // 2)} - {running}
        return Choice(("own", *sorted(limit for limit in others if limit >= 1)))
    return Choice(("own", 2 * running, 4 * running))


def _ranges(policy_class: type[Policy], gamma: int, running: int) -> Parameters:
    """Ranges of the parameters of a policy as declared, narrowed to what can matter."""
    kinds, out = field_types(policy_class), Parameters()
    for field in dataclasses.fields(policy_class):
        kind, default = kinds[field.name], field.default
        low: Any = field.metadata.get("low")
        high: Any = field.metadata.get("high")
        if kind is bool:
            out[field.name] = Choice((True, False))
        elif isinstance(low, tuple):
            out[field.name] = Choice(low)
        elif isinstance(kind, type) and issubclass(kind, Policy):
            out[field.name] = Choice(_nested(default, gamma))
        elif typing.get_origin(kind) is tuple:
            if field.name in LENGTHS:
                for at in range(len(default)):  # type: ignore[arg-type]
                    out[f"{field.name}[{at}]"] = _narrowed(field.name, low, high, gamma, running, whole=True)
        elif kind in (int, float) and low is not None:
            out[field.name] = _narrowed(field.name, low, high, gamma, running, whole=kind is int)
    return out


def _narrowed(name: str, low: float, high: float, gamma: int, running: int, *, whole: bool) -> Between:
    useful: dict[str, tuple[float, float]] = {
        "k": (1, gamma),
        "floor": (0, gamma),
        "cap": (1, gamma),
        "capacity": (running, running * (gamma + 1)),
        "lag": (1, 4),
        "min_gain": (0.0, 0.2),
        "window": (8, 1024),
    }
    least, most = useful.get(name, (low, high))
    least, most = max(low, least), min(high, most)
    return Between(least, max(least, most), whole, log=whole and least >= 1 and most / least >= _LOG_FROM)


def _nested(default: Any, gamma: int) -> tuple[str, ...]:
    """Policies inside a policy: adaptive ones where the default is, lengths where it is one."""
    if getattr(default, "adaptive", True):
        return ("argmax:lag=2", "hull")
    return tuple(f"fixed:k={k}" for k in range(gamma, 0, -1))


def _cut(policy: Policy, gamma: int) -> Policy:
    """A nested policy with lengths of at most gamma."""
    return Fixed(min(policy.k, gamma)) if isinstance(policy, Fixed) else policy


def _first(ranges: Parameters) -> dict[str, Value]:
    return {
        key: where.values[0] if isinstance(where, Choice) else int(where.low) if where.whole else where.low
        for key, where in ranges.items()
    }


def _suggest(trial: Any, name: str, where: Range) -> Any:
    if isinstance(where, Choice):
        return trial.suggest_categorical(name, list(where.values))
    if where.whole:
        return trial.suggest_int(name, int(where.low), int(where.high), log=where.log)
    return trial.suggest_float(name, where.low, where.high)


def _plain(where: Range) -> Any:
    return list(where.values) if isinstance(where, Choice) else {"low": where.low, "high": where.high}
