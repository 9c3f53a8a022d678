"""Traces with one JSON object a line: a reader per schema, each checked against its row type."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import msgspec
import numpy as np

from sglang_dspark.errors import InputError
from simulator.traces.raw import RawRequests
from simulator.traces.source import Lines
from simulator.traces.trace import MAX_ARRIVAL_S, MAX_LENGTH

FORMAT_NAME = "sglang-dspark-trace"
FORMAT_VERSION = 1
_MOST_DOMAINS = 2**15 - 1

Tokens = Annotated[int, msgspec.Meta(ge=0, le=MAX_LENGTH)]
SomeTokens = Annotated[int, msgspec.Meta(ge=1, le=MAX_LENGTH)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=MAX_ARRIVAL_S)]
Milliseconds = Annotated[float, msgspec.Meta(ge=0, le=MAX_ARRIVAL_S * 1e3)]

# msgspec says "Expected `int`, got `str` - at `$.timestamp`", "Number out of range - at `$.timestamp`" or
# "Object missing required field `timestamp`".
_VALUE = re.compile(r"(.*?)(?:, got .*?)? - at `\$\.(.*)`")
_FIELD = re.compile(r"Object (missing required|contains unknown) field `(.*)`", re.DOTALL)


class MooncakeRow(msgspec.Struct):
    """One request of a Mooncake trace; `hash_ids`, if there, are not read."""

    timestamp: Milliseconds
    input_length: Tokens
    output_length: Tokens


class BailianRow(msgspec.Struct):
    """One request of a Qwen-Bailian trace; `parent_chat_id`, `type`, `turn` and `hash_ids` are not read."""

    chat_id: Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)] | str
    timestamp: Seconds
    input_length: Tokens
    output_length: Tokens


class OwnHeader(msgspec.Struct, forbid_unknown_fields=True):
    """First line of the project's own format; `requests`, if there, tells a file that was cut off."""

    format: str
    version: int
    requests: int | None = None
    domains: tuple[str, ...] = ()
    source: str = ""
    notes: tuple[str, ...] = ()


class OwnRow(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """One request of the project's own format."""

    arrival_s: Seconds
    input_length: SomeTokens
    output_length: SomeTokens
    domain: str | None = None
    request_id: str | None = None


def json_keys(line: str) -> frozenset[str]:
    """Return the keys of the JSON object on a line; none if there is no object."""
    try:
        return frozenset(msgspec.json.decode(line, type=dict[str, msgspec.Raw]))
    except (msgspec.MsgspecError, RecursionError, UnicodeError):
        return frozenset()


class MooncakeFormat:
    """Mooncake JSONL: stamps in milliseconds."""

    about = "JSON lines with timestamp (ms), input_length, output_length"

    def recognises(self, first_line: str) -> bool:
        """Whether the first line of a file is a request of this format."""
        keys = json_keys(first_line)
        return {"timestamp", "input_length", "output_length"} <= keys and "chat_id" not in keys

    def read(self, lines: Lines) -> RawRequests:
        """Read all rows. Raises InputError that names line and key."""
        rows = [(row.timestamp, row.input_length, row.output_length) for row in _rows(lines, MooncakeRow)]
        stamps, input_length, output_length = _columns(lines, rows)
        return RawRequests(np.array(stamps, dtype=np.float64) / 1e3, _int64(input_length), _int64(output_length))


class BailianFormat:
    """Qwen-Bailian JSONL: stamps in seconds, one chat id a request."""

    about = "JSON lines with chat_id, timestamp (s), input_length, output_length"

    def recognises(self, first_line: str) -> bool:
        """Whether the first line of a file is a request of this format."""
        return {"chat_id", "timestamp", "input_length", "output_length"} <= json_keys(first_line)

    def read(self, lines: Lines) -> RawRequests:
        """Read all rows. Raises InputError that names line and key."""
        rows = [
            (row.timestamp, row.input_length, row.output_length, str(row.chat_id)) for row in _rows(lines, BailianRow)
        ]
        stamps, input_length, output_length, names = _columns(lines, rows)
        return RawRequests(
            np.array(stamps, dtype=np.float64),
            _int64(input_length),
            _int64(output_length),
            request_id=tuple(names),
        )


class OwnFormat:
    """The project's own JSONL: a header object, then one object a request, in order of arrival."""

    about = f'a header line {{"format": "{FORMAT_NAME}", "version": {FORMAT_VERSION}}}, then JSON lines'

    def recognises(self, first_line: str) -> bool:
        """Whether the first line of a file is this format's header."""
        return {"format", "version"} <= json_keys(first_line)

    def read(self, lines: Lines) -> RawRequests:
        """Read header and rows. Raises InputError that names line and key."""
        header = _own_header(lines)
        domains = {name: index for index, name in enumerate(header.domains)}
        rows: list[tuple[float, int, int, int | None, str | None]] = []
        for row in _rows(lines, OwnRow):
            if rows and row.arrival_s < rows[-1][0]:
                raise lines.error(f"arrivals in order, so at least {rows[-1][0]}", row.arrival_s, column="arrival_s")
            for column, index in (("domain", 3), ("request_id", 4)):
                if rows and (getattr(row, column) is None) != (rows[0][index] is None):
                    raise lines.error(f"{column} for every request or for none", column=column)
            domain = None if row.domain is None else _domain_index(lines, header, domains, row.domain)
            rows.append((row.arrival_s, row.input_length, row.output_length, domain, row.request_id))
        if header.requests is not None and header.requests != len(rows):
            raise lines.error(f"{header.requests} requests as the header says", len(rows), column="requests")
        stamps, input_length, output_length, domain_index, names = _columns(lines, rows)
        return RawRequests(
            np.array(stamps, dtype=np.float64),
            _int64(input_length),
            _int64(output_length),
            domain=None if domain_index[0] is None else np.array(domain_index, dtype=np.int16),
            domains=tuple(domains),
            request_id=None if names[0] is None else tuple(names),
            notes=header.notes,
            foreign=False,
            origin=header.source,
        )


def _own_header(lines: Lines) -> OwnHeader:
    lines.first()
    header: OwnHeader = _decode(lines, next(lines), msgspec.json.Decoder(OwnHeader).decode)
    if header.format != FORMAT_NAME:
        raise lines.error(repr(FORMAT_NAME), header.format, column="format")
    if header.version != FORMAT_VERSION:
        raise lines.error(f"version {FORMAT_VERSION}", header.version, column="version")
    if len(set(header.domains)) != len(header.domains):
        raise lines.error("different names", list(header.domains), column="domains")
    if len(header.domains) > _MOST_DOMAINS:
        raise lines.error(f"at most {_MOST_DOMAINS} domains", len(header.domains), column="domains")
    return header


def _domain_index(lines: Lines, header: OwnHeader, domains: dict[str, int], name: str) -> int:
    """Return the index of a domain; one that is new is added if the header does not list them."""
    if name not in domains:
        if header.domains:
            raise lines.error(f"one of {', '.join(header.domains)}", name, column="domain")
        if len(domains) == _MOST_DOMAINS:
            raise lines.error(f"at most {_MOST_DOMAINS} domains", column="domain")
        domains[name] = len(domains)
    return domains[name]


def _rows(lines: Lines, row_type: type[Any]) -> Iterator[Any]:
    decode = msgspec.json.Decoder(row_type).decode
    for line in lines:
        if not line.isspace():
            yield _decode(lines, line, decode)


def _decode(lines: Lines, line: str, decode: Callable[[str], Any]) -> Any:
    try:
        return decode(line)
    except msgspec.ValidationError as error:
        raise _wrong_object(lines, line, str(error)) from error
    except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
        raise _no_object(lines, line, error) from error


def _no_object(lines: Lines, line: str, reason: object) -> InputError:
    return lines.error(f"one JSON object ({reason})", line.strip())


def _wrong_object(lines: Lines, line: str, message: str) -> InputError:
    """Say in the words of `Lines.error` what msgspec found wrong with an object."""
    if match := _FIELD.fullmatch(message):
        problem, column = match.groups()
        expected = "this key, got none" if problem == "missing required" else "no such key"
        return lines.error(expected, column=column)
    match = _VALUE.fullmatch(message)
    try:
        texts = msgspec.json.decode(line, type=dict[str, msgspec.Raw])
    except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:  # no object, or malformed further on
        return _no_object(lines, line, error)
    if match is None or match[2] not in texts:
        return _no_object(lines, line, message)
    expected = match[1].removeprefix("Expected ").replace("`", "").replace(" out of range", " within range")
    return lines.error(expected[0].lower() + expected[1:], bytes(texts[match[2]]).decode(), column=match[2])


def _columns(lines: Lines, rows: list[Any]) -> list[tuple[Any, ...]]:
    if not rows:
        raise lines.error("at least one request: the trace is empty")
    return list(zip(*rows, strict=True))


def _int64(values: tuple[int, ...]) -> np.ndarray:
    return np.array(values, dtype=np.int64)
