"""Traces of others with one JSON object a line: one reader, told the row type; `own_format` has ours.

The stamps may be missing, from all rows or from none: the requests then have no arrivals.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Generic, TypeVar

import msgspec
import numpy as np

from simulator.traces.json_lines import (
    TOKENS_EXPECTED,
    Milliseconds,
    Seconds,
    Tokens,
    columns_of,
    json_keys,
    rows_of,
)
from simulator.traces.raw import TIME_UNITS, RawRequests, stamp_range
from simulator.traces.source import Lines

Stamp = TypeVar("Stamp")
_STAMPS = {"s": Seconds, "ms": Milliseconds}


class MooncakeRow(msgspec.Struct, Generic[Stamp], kw_only=True):
    """One request of a Mooncake trace; `hash_ids`, if there, are not read."""

    timestamp: Stamp | msgspec.UnsetType = msgspec.UNSET
    input_length: Tokens
    output_length: Tokens


class BailianRow(MooncakeRow[Stamp], Generic[Stamp], kw_only=True):
    """One request of a Qwen-Bailian trace; `parent_chat_id`, `type`, `turn` and `hash_ids` are not read."""

    chat_id: Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)] | str


@dataclass(frozen=True)
class JsonFormat:
    """A reader of one schema. row: its type; time_unit: unit of its stamps; name: the key that names a request."""

    about: str
    row: Any
    time_unit: str | None
    name: str | None = None

    def recognises(self, first_line: str) -> bool:
        """Whether the first line of a file is a request of this format."""
        keys = json_keys(first_line)
        if "arrival_s" in keys:  # our own, whose header is missing: the stamps must not be overlooked
            return False
        return {"input_length", "output_length"} <= keys and (self.name is None or self.name in keys)

    def read(self, lines: Lines, time_unit: str | None) -> RawRequests:
        """Read all rows, with stamps in `time_unit`. Raises InputError that names line and key."""
        assert time_unit is not None
        expected = {"timestamp": stamp_range(time_unit)} | dict.fromkeys(
            ("input_length", "output_length"), TOKENS_EXPECTED
        )
        rows: list[tuple[Any, ...]] = []
        for row in rows_of(lines, self.row[_STAMPS[time_unit]], expected):
            if rows and (row.timestamp is msgspec.UNSET) != (rows[0][0] is msgspec.UNSET):
                raise lines.error("timestamp for every request or for none", column="timestamp")
            name = None if self.name is None else str(getattr(row, self.name))
            rows.append((row.timestamp, row.input_length, row.output_length, name))
        stamps, input_length, output_length, names = columns_of(lines, rows)
        return RawRequests(
            None if stamps[0] is msgspec.UNSET else np.array(stamps, dtype=np.float64),
            np.array(input_length, dtype=np.int64),
            np.array(output_length, dtype=np.int64),
            per_second=TIME_UNITS[time_unit],
            request_id=None if self.name is None else names,
        )
