"""Traces in comma-separated columns with a header line: one reader, told which columns to take.

The stamp's column may be missing: the requests then have no arrivals.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np

from simulator.traces.raw import TIME_UNITS, RawRequests, stamp_range
from simulator.traces.source import Lines
from simulator.traces.trace import MAX_ARRIVAL_S, MAX_LENGTH

#: Rows converted at a time: large enough for NumPy, small enough that no long trace is held as text.
_ROWS_AT_ONCE = 1 << 16

# A whole column is checked in one match, joined by newlines: float() and int() alone take "1_000" and "nan".
_INTEGERS = re.compile(r"(?:[ \t]*+[0-9]{1,10}(?:\.0*+)?[ \t]*+\n)*+")
_NUMBERS = re.compile(r"(?:[ \t]*+[0-9]{1,20}(?:\.[0-9]{0,20})?(?:[eE][+-]?[0-9]{1,2})?[ \t]*+\n)*+")
_DATES = re.compile(
    r"(?:[ \t]*+(?:19|20)[0-9]{2}-[0-9]{2}-[0-9]{2}[ T][0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,9})?"
    r"(?:Z|\+00:00)?[ \t]*+\n)*+"
)
_ZONE = re.compile(r"(?:Z|\+00:00)?[ \t]*$")
_EPOCH = np.datetime64("2000-01-01T00:00:00", "ns")


class Kind(NamedTuple):
    """A type of column: what is expected, in words, and how text becomes numbers; else ValueError."""

    expected: str
    parse: Callable[[Sequence[str]], np.ndarray]


def _parse_integers(texts: Sequence[str]) -> np.ndarray:
    values = _matched(_INTEGERS, texts).astype(np.float64).astype(np.int64)
    if (values > MAX_LENGTH).any():
        raise ValueError("too many tokens")
    return values


def _parse_numbers(texts: Sequence[str], latest: float) -> np.ndarray:
    values = _matched(_NUMBERS, texts).astype(np.float64)
    if not (values <= latest).all():
        raise ValueError("too late")
    return values


def _parse_dates(texts: Sequence[str]) -> np.ndarray:
    _matched(_DATES, texts)
    dates = np.array([_ZONE.sub("", text.lstrip()) for text in texts], dtype="datetime64[ns]")
    # int64 nanoseconds: float64 seconds since 2000 would lose digits before the clock's zero is taken off.
    return (dates - _EPOCH).astype(np.int64)


def _matched(pattern: re.Pattern[str], texts: Sequence[str]) -> np.ndarray:
    joined = "\n".join(texts) + "\n"
    if joined.count("\n") != len(texts) or not pattern.fullmatch(joined):
        raise ValueError("not a number")
    return np.array(texts)


TOKENS = Kind(f"an integer 0 .. {MAX_LENGTH}", _parse_integers)
DATES = Kind("a UTC time YYYY-MM-DD HH:MM:SS.fffffff", _parse_dates)
NUMBERS = {
    unit: Kind(stamp_range(unit), partial(_parse_numbers, latest=MAX_ARRIVAL_S * per_second))
    for unit, per_second in TIME_UNITS.items()
}


@dataclass(frozen=True)
class CsvFormat:
    """A reader of one CSV schema; columns that are not named here may be there and are not read.

    time_unit: unit of the stamps, None if they are dates.
    """

    about: str
    stamp: str
    time_unit: str | None
    input_length: str
    output_length: str

    def recognises(self, first_line: str) -> bool:
        """Whether the first line of a file is this format's header, with the stamp's column or without."""
        return {self.input_length, self.output_length} <= set(header_names(first_line))

    def read(self, lines: Lines, time_unit: str | None) -> RawRequests:
        """Read all rows; numeric stamps are in `time_unit`. Raises InputError that names line and column."""
        first = lines.first()
        names = header_names(first)
        if not self.recognises(first):
            expected = f"a header with the columns {self.stamp}, {self.input_length}, {self.output_length}"
            raise lines.error(expected, first.strip())
        next(lines)
        columns = {self.input_length: TOKENS, self.output_length: TOKENS}
        if self.stamp in names:
            columns[self.stamp] = DATES if time_unit is None else NUMBERS[time_unit]
        parts: dict[str, list[np.ndarray]] = {name: [] for name in columns}
        for block in _blocks(lines, len(names), [names.index(name) for name in columns]):
            for (name, kind), texts in zip(columns.items(), block.columns, strict=True):
                parts[name].append(_converted(lines, name, kind, texts, block.numbers))
        if not parts[self.input_length]:
            raise lines.error("at least one request below the header: the trace is empty")
        found = {name: np.concatenate(part) for name, part in parts.items()}
        return RawRequests(
            found.get(self.stamp),
            found[self.input_length],
            found[self.output_length],
            per_second=1e9 if time_unit is None else TIME_UNITS[time_unit],
        )


def header_names(line: str) -> list[str]:
    """Return the column names of a header line; none if it is no CSV."""
    try:
        return [name.strip() for name in next(csv.reader([line], strict=True), [])]
    except csv.Error:
        return []


class _Block(NamedTuple):
    columns: list[list[str]]
    numbers: list[int]  # the file's line of each row


def _blocks(lines: Lines, width: int, where: Sequence[int]) -> Iterator[_Block]:
    block = _Block([[] for _ in where], [])
    reader = csv.reader(lines, strict=True)
    try:
        for row in reader:
            if len(row) != width:
                if not "".join(row).strip():
                    continue
                raise lines.error(f"{width} columns", len(row))
            for texts, index in zip(block.columns, where, strict=True):
                texts.append(row[index])
            block.numbers.append(lines.number)
            if len(block.numbers) == _ROWS_AT_ONCE:
                yield block
                block = _Block([[] for _ in where], [])
    except csv.Error as error:
        raise lines.error(f"comma-separated values: {error}") from error
    if block.numbers:
        yield block


def _converted(lines: Lines, name: str, kind: Kind, texts: list[str], numbers: list[int]) -> np.ndarray:
    try:
        return kind.parse(texts)
    except ValueError as error:
        for text, number in zip(texts, numbers, strict=True):
            try:
                kind.parse([text])
            except ValueError:
                raise lines.error(kind.expected, text, column=name, line=number) from error
        raise
