"""Anyone's own acceptance: numbers, a JSON file by domain, vLLM's acceptance histograms, or `dspark eval`'s output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from sglang_dspark.cost import Assumption
from sglang_dspark.errors import InputError
from simulator.blocks.drafter import METHODS, Acceptance, Drafter, Method, Origin
from simulator.blocks.histogram import histogram_acceptance, histograms_of
from simulator.blocks.survival import checked_conditionals

Given = str | Path | Sequence[float] | Mapping[str, Sequence[float]]
VERSION = 1
ALL = "all"
"""The domain of an acceptance that knows no others."""

_EXPECTED = (
    "0.82,0.67,0.55 (conditional by position), prefix:0.82,0.55,0.30 (survivals), or a file: "
    '{"version": 1, "math": [..]}, vLLM\'s speculative_decoding metrics, or the output of dspark eval'
)
_WORDS = ("model", "draft", "data", "temperature", "source")
_KEYS = ("version", "kind", "method", "draft_scale", "confidence_head", *_WORDS)


def own_drafter(given: Given, method: Method | None = None) -> Drafter:
    """A drafter with the acceptance that was given.

    given: numbers, numbers by domain, or text: `_EXPECTED` says what. method: what the block costs to draft and whether
    there is a confidence head; None: as the file says, else DSpark's. Errors: InputError names the file or the value.
    """
    if isinstance(given, str) and _is_numbers(given):
        return _made("own", {ALL: _from_text(given)}, method, data=given)
    if isinstance(given, str | Path):
        return _from_file(Path(given), method)
    if isinstance(given, Mapping):
        return _made("own", _by_domain(dict(given), "conditional", "acceptance"), method)
    return _made("own", {ALL: checked_conditionals(list(given), "conditional", "acceptance")}, method)


def _made(name: str, acceptance: Acceptance, method: Method | None, *stated: Assumption, **origin: str) -> Drafter:
    kind = method or METHODS["dspark"]
    known = {"source": "given by the user", **origin}
    assumed: tuple[Assumption, ...] = ()
    if method is None:
        said = "the acceptance given is a DSpark draft's: its draft time, and a confidence head"
        assumed = (Assumption("method", kind.name, "", "give --drafter dflash, eagle3 or mtp1 for another", said),)
    drafter = Drafter.of(name, kind, acceptance, origin=Origin(**known), assumptions=(*assumed, *stated))
    return replace(drafter, ends=f"the acceptance given has {drafter.gamma} positions")


def _is_numbers(text: str) -> bool:
    return text.startswith("prefix:") or "," in text or _number(text) is not None


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _from_text(text: str) -> tuple[float, ...]:
    kind = "prefix" if text.startswith("prefix:") else "conditional"
    values: list[float] = []
    for item in text.removeprefix("prefix:").split(","):
        value = _number(item)
        if value is None:
            raise InputError(f"acceptance: '{item.strip()}' is no number, expected {_EXPECTED}")
        values.append(value)
    return checked_conditionals(values, kind, f"acceptance {text}")


def _from_file(path: Path, method: Method | None) -> Drafter:
    where = f"acceptance {path.name}"
    parts = _parts(path)
    source = f"given by the user, {path.name}"
    found = [one for part in parts for one in histograms_of(part, where)]
    if found:
        conditional, stated = histogram_acceptance(found, where)
        return _made(path.stem, {ALL: conditional}, method, *stated, source=source)
    if len(parts) == 1 and isinstance(parts[0], dict) and "version" in parts[0]:
        return _from_domains(parts[0], path, method)
    sets = parts[0] if len(parts) == 1 and isinstance(parts[0], list) else parts
    if sets and all(isinstance(each, dict) and "quality" in each for each in sets):
        acceptance, stated = _of_evaluation(sets, where)
        return _made(path.stem, acceptance, method, *stated, source=source)
    raise InputError(f"{where} is no acceptance, expected {_EXPECTED}")


def _parts(path: Path) -> list[Any]:
    """A JSON value, or one a line."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"acceptance '{path}': {error.strerror}, expected {_EXPECTED}") from error
    for decode in (lambda: [msgspec.json.decode(data)], lambda: msgspec.json.Decoder().decode_lines(data)):
        try:
            return list(decode())
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue
    raise InputError(f"acceptance {path.name} is no JSON, expected {_EXPECTED}")


def _from_domains(content: dict[str, Any], path: Path, method: Method | None) -> Drafter:
    """Our own format: a version, words on the origin, and a list of numbers for every domain."""
    where = f"acceptance {path.name}"
    if content["version"] != VERSION or isinstance(content["version"], bool):
        raise InputError(f"{where}: version {content['version']!r} is not known, expected {VERSION}")
    lists = {key: value for key, value in content.items() if key not in _KEYS}
    acceptance = _by_domain(lists, content.get("kind", "conditional"), where)
    words = {key: str(content[key]) for key in _WORDS if content.get(key)}
    if content.get("method") is not None:
        named = METHODS.get(str(content["method"]))
        if named is None:
            raise InputError(f"{where}: method {content['method']!r} is unknown, expected one of {', '.join(METHODS)}")
        if method is not None and method is not named:
            raise InputError(f"{where} is of method {named.name}, and --drafter says {method.name}: give one of them")
        method = named
    drafter = _made(path.stem, acceptance, method, **{"source": f"given by the user, {path.name}", **words})
    return _with_draft(drafter, content, where)


def _with_draft(drafter: Drafter, content: dict[str, Any], where: str) -> Drafter:
    """What the file says of draft time and head, over what its method has."""
    scale = content.get("draft_scale", drafter.cost_scale)
    head = content.get("confidence_head", drafter.has_confidence)
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 <= scale <= 100:
        raise InputError(f"{where}: draft_scale {scale!r} is refused, expected 0..100 blocks of the profile")
    if not isinstance(head, bool):
        raise InputError(f"{where}: confidence_head {head!r} is refused, expected true or false")
    return replace(drafter, cost_scale=float(scale), has_confidence=head)


def _by_domain(lists: dict[str, Any], kind: Any, where: str) -> Acceptance:
    found: Acceptance = {}
    for domain, values in lists.items():
        if not isinstance(values, list | tuple):
            raise InputError(f"{where}: {domain} is {values!r}, expected a list of numbers for every domain")
        found[domain] = checked_conditionals(values, str(kind), f"{where}, {domain}")
    sizes = {domain: len(values) for domain, values in found.items()}
    if not found:
        raise InputError(f"{where} has no domain, expected a list of numbers for each, such as 'all'")
    if len(set(sizes.values())) > 1:
        said = ", ".join(f"{domain} {size}" for domain, size in sizes.items())
        raise InputError(f"{where}: domains have different numbers of positions ({said}), expected the same")
    return found


def _of_evaluation(sets: list[dict[str, Any]], where: str) -> tuple[Acceptance, tuple[Assumption, ...]]:
    """Positions of every data set of `dspark eval --out`, to the depth that all of them reached."""
    reached: dict[str, list[Any]] = {}
    for each in sets:
        name, found = str(each.get("name")), each["quality"]
        if not isinstance(found, dict) or not isinstance(found.get("conditional"), list):
            raise InputError(f"{where}: data set {name} has no positions, expected those of dspark eval --records")
        values = found["conditional"]
        reached[name] = values[: values.index(None)] if None in values else values
    depth, full = (pick(len(values) for values in reached.values()) for pick in (min, max))
    acceptance = _by_domain({name: values[:depth] for name, values in reached.items()}, "conditional", where)
    if depth == full:
        return acceptance, ()
    said = f"positions beyond {depth} are left out: not every data set reached them"
    return acceptance, (Assumption("acceptance", depth, "positions", "dspark eval", said),)
