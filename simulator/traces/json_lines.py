"""One JSON object a line, each checked against a row type, with every failure said in our words."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any

import msgspec

from sglang_dspark.errors import InputError
from simulator.traces.prefixes import MAX_BLOCK_ID
from simulator.traces.raw import TIME_UNITS, stamp_range
from simulator.traces.source import Lines
from simulator.traces.trace import MAX_ARRIVAL_S, MAX_LENGTH

# Floats, because public files hold lengths such as 655.0; 2**31 - 1 is exact in a float64.
Tokens = Annotated[float, msgspec.Meta(ge=0, le=MAX_LENGTH, multiple_of=1)]
SomeTokens = Annotated[float, msgspec.Meta(ge=1, le=MAX_LENGTH, multiple_of=1)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=MAX_ARRIVAL_S)]
Milliseconds = Annotated[float, msgspec.Meta(ge=0, le=MAX_ARRIVAL_S * TIME_UNITS["ms"])]
BlockIds = list[Annotated[int, msgspec.Meta(ge=0, le=MAX_BLOCK_ID)]]

TOKENS_EXPECTED = f"an integer 0 .. {MAX_LENGTH}"
SOME_TOKENS_EXPECTED = f"an integer 1 .. {MAX_LENGTH}"
SECONDS_EXPECTED = stamp_range("s")
BLOCK_IDS_EXPECTED = f"a list of integers 0 .. {MAX_BLOCK_ID}"

# msgspec says "Expected `int`, got `str` - at `$.timestamp`" (`$.hash_ids[1]` in a list), "Number out of range - at
# `$.timestamp`" or "Object missing required field `timestamp`".
_VALUE = re.compile(r"(.*?)(?:, got .*?)? - at `\$\.(.*?)(?:\[[0-9.]+\])?`")
_FIELD = re.compile(r"Object (missing required|contains unknown) field `(.*)`", re.DOTALL)


def json_keys(line: str) -> frozenset[str]:
    """Return the keys of the JSON object on a line; none if there is no object."""
    try:
        return frozenset(msgspec.json.decode(line, type=dict[str, msgspec.Raw]))
    except (msgspec.MsgspecError, RecursionError, UnicodeError):
        return frozenset()


def rows_of(lines: Lines, row_type: type[Any], expected: Mapping[str, str]) -> Iterator[Any]:
    """Yield each line that is not blank as a `row_type`. expected: by key, what its value must be, in words.

    Raises:
        InputError: that names line and key.
    """
    decode = msgspec.json.Decoder(row_type).decode
    for line in lines:
        if not line.isspace():
            yield _decode(lines, line, decode, expected)


def object_of(lines: Lines, line: str, row_type: type[Any]) -> Any:
    """Return one line as a `row_type`. Raises InputError that names line and key."""
    return _decode(lines, line, msgspec.json.Decoder(row_type).decode, {})


def columns_of(lines: Lines, rows: list[Any]) -> list[tuple[Any, ...]]:
    """Return rows as columns; InputError if there are none."""
    if not rows:
        raise lines.error("at least one request: the trace is empty")
    return list(zip(*rows, strict=True))


def _decode(lines: Lines, line: str, decode: Callable[[str], Any], expected: Mapping[str, str]) -> Any:
    try:
        return decode(line)
    except msgspec.ValidationError as error:
        raise _wrong_object(lines, line, str(error), expected) from error
    except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
        raise _no_object(lines, line, error) from error


def _no_object(lines: Lines, line: str, reason: object) -> InputError:
    return lines.error(f"one JSON object ({reason})", line.strip())


def _wrong_object(lines: Lines, line: str, message: str, expected: Mapping[str, str]) -> InputError:
    """Say in the words of `Lines.error` what msgspec found wrong with an object."""
    if match := _FIELD.fullmatch(message):
        problem, column = match.groups()
        return lines.error("this key, got none" if problem == "missing required" else "no such key", column=column)
    match = _VALUE.fullmatch(message)
    try:
        texts = msgspec.json.decode(line, type=dict[str, msgspec.Raw])
    except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:  # no object, or malformed further on
        return _no_object(lines, line, error)
    if match is None or match[2] not in texts:
        return _no_object(lines, line, message)
    words = match[1].removeprefix("Expected ").replace("`", "").replace(" out of range", " within range")
    words = expected.get(match[2], words[0].lower() + words[1:])
    return lines.error(words, bytes(texts[match[2]]).decode(), column=match[2])
