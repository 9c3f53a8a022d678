"""The project's own trace format: a header object, then one object a request, in order of arrival."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
import numpy as np

from simulator.traces.json_lines import (
    BLOCK_IDS_EXPECTED,
    SECONDS_EXPECTED,
    SOME_TOKENS_EXPECTED,
    TOKENS_EXPECTED,
    BlockIds,
    Seconds,
    SomeTokens,
    Tokens,
    columns_of,
    json_keys,
    object_of,
    rows_of,
)
from simulator.traces.prefixes import MAX_BLOCK_TOKENS, BlocksColumn, most_blocks
from simulator.traces.raw import RawRequests
from simulator.traces.source import Lines

FORMAT_NAME = "sglang-dspark-trace"
FORMAT_VERSION = 2
_MOST_DOMAINS = 2**15 - 1
_FOR_ALL = ("arrival_s", "domain", "request_id", "cached_length", "max_tokens")
_EXPECTED = {
    "arrival_s": SECONDS_EXPECTED,
    "input_length": SOME_TOKENS_EXPECTED,
    "output_length": SOME_TOKENS_EXPECTED,
    "cached_length": TOKENS_EXPECTED,
    "hash_ids": BLOCK_IDS_EXPECTED,
    "max_tokens": SOME_TOKENS_EXPECTED,
}


class _Kind(msgspec.Struct):
    """What is looked at first: another version may have other keys beside these."""

    format: str
    version: int


class OwnHeader(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """First line of a file; `requests`, if there, tells a file that was cut off, `block_tokens` what hash_ids mean."""

    format: str
    version: int
    requests: int | None = None
    domains: tuple[str, ...] = ()
    block_tokens: Annotated[int, msgspec.Meta(ge=1, le=MAX_BLOCK_TOKENS)] | None = None
    source: str = ""
    notes: tuple[str, ...] = ()


class OwnRow(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """One request; every key that may be missing is there for all requests or for none, but for `hash_ids`."""

    arrival_s: Seconds | None = None
    input_length: SomeTokens
    output_length: SomeTokens
    domain: str | None = None
    request_id: str | None = None
    cached_length: Tokens | None = None
    hash_ids: BlockIds | None = None
    max_tokens: SomeTokens | None = None


class FirstOwnRow(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """One request of version 1: it has an arrival, nothing that a prefix cache could hold, and no client's limit."""

    arrival_s: Seconds
    input_length: SomeTokens
    output_length: SomeTokens
    domain: str | None = None
    request_id: str | None = None

    @property
    def cached_length(self) -> None:
        """Version 1 does not know it."""

    @property
    def hash_ids(self) -> None:
        """Version 1 does not know them."""

    @property
    def max_tokens(self) -> None:
        """Version 1 does not know it."""


_ROWS: dict[int, type[Any]] = {1: FirstOwnRow, FORMAT_VERSION: OwnRow}


class OwnFormat:
    """The project's own JSONL."""

    about = f'a header line {{"format": "{FORMAT_NAME}", "version": {FORMAT_VERSION}}}, then JSON lines'
    time_unit = None

    def recognises(self, first_line: str) -> bool:
        """Whether the first line of a file is this format's header."""
        return {"format", "version"} <= json_keys(first_line)

    def read(self, lines: Lines, time_unit: str | None) -> RawRequests:
        """Read header and rows; the unit is always seconds. Raises InputError that names line and key."""
        header = _own_header(lines)
        domains = {name: index for index, name in enumerate(header.domains)}
        rows: list[tuple[Any, ...]] = []
        first: Any = None
        last_s = 0.0
        blocks = BlocksColumn()
        for row in rows_of(lines, _ROWS[header.version], _EXPECTED):
            first = first or row
            for column in _FOR_ALL:
                if (getattr(row, column) is None) != (getattr(first, column) is None):
                    raise lines.error(f"{column} for every request or for none", column=column)
            if row.arrival_s is not None and row.arrival_s < last_s:
                raise lines.error(f"arrivals in order, so at least {last_s}", row.arrival_s, column="arrival_s")
            if row.cached_length is not None and row.cached_length >= row.input_length:
                expected = f"fewer than the {row.input_length:.0f} prompt tokens"
                raise lines.error(expected, row.cached_length, column="cached_length")
            if row.max_tokens is not None and row.max_tokens < row.output_length:
                expected = f"at least the {row.output_length:.0f} generated tokens"
                raise lines.error(expected, row.max_tokens, column="max_tokens")
            if row.hash_ids is not None:
                _check_blocks(lines, header, row)
            blocks.add(row.hash_ids)
            last_s = row.arrival_s or last_s
            domain = None if row.domain is None else _domain_index(lines, header, domains, row.domain)
            lengths = row.input_length, row.output_length, row.cached_length, row.max_tokens
            rows.append((row.arrival_s, domain, row.request_id, *lengths))
        if header.requests is not None and header.requests != len(rows):
            raise lines.error(f"{header.requests} requests as the header says", len(rows), column="requests")
        columns = columns_of(lines, rows)
        arrival_s, domain_index, names, input_length, output_length, cached_length, max_tokens = columns
        return RawRequests(
            _column(arrival_s, np.float64),
            np.array(input_length, dtype=np.int64),
            np.array(output_length, dtype=np.int64),
            domain=_column(domain_index, np.int16),
            domains=tuple(domains),
            request_id=None if names[0] is None else names,
            cached_length=_column(cached_length, np.int64),
            max_tokens=_column(max_tokens, np.int64),
            prefix_blocks=blocks.blocks(header.block_tokens or 1),
            notes=header.notes,
            foreign=False,
            origin=header.source,
        )


def _own_header(lines: Lines) -> OwnHeader:
    line = lines.first()
    next(lines)
    kind: _Kind = object_of(lines, line, _Kind)
    if kind.format != FORMAT_NAME:
        raise lines.error(repr(FORMAT_NAME), kind.format, column="format")
    if kind.version not in _ROWS:
        known = " or ".join(map(str, _ROWS))
        raise lines.error(
            f"version {known} (for a newer one update sglang-dspark, or write the trace with this release)",
            kind.version,
            column="version",
        )
    header: OwnHeader = object_of(lines, line, OwnHeader)
    if len(set(header.domains)) != len(header.domains):
        raise lines.error("different names", list(header.domains), column="domains")
    if len(header.domains) > _MOST_DOMAINS:
        raise lines.error(f"at most {_MOST_DOMAINS} domains", len(header.domains), column="domains")
    return header


def _check_blocks(lines: Lines, header: OwnHeader, row: OwnRow) -> None:
    if header.block_tokens is None:
        raise lines.error("block_tokens in the header, which says how long a block is", column="hash_ids")
    if row.cached_length is not None:
        raise lines.error("hash_ids or cached_length, not both", column="hash_ids")
    most = int(most_blocks(row.input_length, header.block_tokens))
    assert row.hash_ids is not None
    if len(row.hash_ids) > most:
        expected = f"at most {most} blocks of {header.block_tokens} tokens for {row.input_length:.0f} prompt tokens"
        raise lines.error(expected, len(row.hash_ids), column="hash_ids")


def _domain_index(lines: Lines, header: OwnHeader, domains: dict[str, int], name: str) -> int:
    """Return the index of a domain; one that is new is added if the header does not list them."""
    if name not in domains:
        if header.domains:
            raise lines.error(f"one of {', '.join(header.domains)}", name, column="domain")
        if len(domains) == _MOST_DOMAINS:
            raise lines.error(f"at most {_MOST_DOMAINS} domains", column="domain")
        domains[name] = len(domains)
    return domains[name]


def _column(values: tuple[Any, ...], dtype: type[np.generic]) -> np.ndarray | None:
    """Return a column that is there for all requests, or for none."""
    return None if values[0] is None else np.array(values, dtype=dtype)
