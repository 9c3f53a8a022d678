"""Traces of others with one JSON object a line: one reader, told the row type; `own_format` has ours.

The stamps may be missing, from all rows or from none: the requests then have no arrivals.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Generic, TypeVar

import msgspec
import numpy as np

from sglang_dspark.errors import InputError
from simulator.traces.json_lines import (
    BLOCK_IDS_EXPECTED,
    TOKENS_EXPECTED,
    BlockIds,
    Milliseconds,
    Seconds,
    Tokens,
    columns_of,
    json_keys,
    rows_of,
)
from simulator.traces.prefixes import BlocksColumn, most_blocks
from simulator.traces.raw import TIME_UNITS, RawRequests, stamp_range
from simulator.traces.source import Lines

Stamp = TypeVar("Stamp")
_STAMPS = {"s": Seconds, "ms": Milliseconds}

#: Share of a file's requests that may have more blocks than their prompt fills; more than that: blocks of another size.
_MOST_OVERFULL = 0.01


class MooncakeRow(msgspec.Struct, Generic[Stamp], kw_only=True):
    """One request of a Mooncake trace."""

    timestamp: Stamp | msgspec.UnsetType = msgspec.UNSET
    input_length: Tokens
    output_length: Tokens
    hash_ids: BlockIds | None = None


class BailianRow(MooncakeRow[Stamp], Generic[Stamp], kw_only=True):
    """One request of a Qwen-Bailian trace; `parent_chat_id`, `type` and `turn` are not read."""

    chat_id: Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)] | str


@dataclass(frozen=True)
class JsonFormat:
    """A reader of one schema.

    row: its type; time_unit: unit of its stamps; block_tokens: tokens of a block of its `hash_ids`; name: the key that
    names a request.
    """

    about: str
    row: Any
    time_unit: str | None
    block_tokens: int
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
        expected["hash_ids"] = BLOCK_IDS_EXPECTED
        rows: list[tuple[Any, ...]] = []
        blocks, overfull = BlocksColumn(), 0
        for row in rows_of(lines, self.row[_STAMPS[time_unit]], expected):
            if rows and (row.timestamp is msgspec.UNSET) != (rows[0][0] is msgspec.UNSET):
                raise lines.error("timestamp for every request or for none", column="timestamp")
            name = None if self.name is None else str(getattr(row, self.name))
            rows.append((row.timestamp, row.input_length, row.output_length, name))
            most = int(most_blocks(row.input_length, self.block_tokens))
            blocks.add(row.hash_ids and row.hash_ids[:most])
            overfull += row.hash_ids is not None and len(row.hash_ids) > most
        stamps, input_length, output_length, names = columns_of(lines, rows)
        return RawRequests(
            None if stamps[0] is msgspec.UNSET else np.array(stamps, dtype=np.float64),
            np.array(input_length, dtype=np.int64),
            np.array(output_length, dtype=np.int64),
            per_second=TIME_UNITS[time_unit],
            request_id=None if self.name is None else names,
            prefix_blocks=blocks.blocks(self.block_tokens),
            notes=self._overfull(lines, overfull, len(rows)),
        )

    def _overfull(self, lines: Lines, overfull: int, count: int) -> tuple[str, ...]:
        """A note on requests with more blocks than their prompt fills; InputError if they are many."""
        said = f"{overfull:,} of {count:,} requests have more hash_ids than blocks of {self.block_tokens} tokens"
        if overfull > _MOST_OVERFULL * count:
            raise InputError(f"{lines.name}: {said} in their prompt: --block-tokens says another")
        return (f"hash_ids: {said}, those beyond it are not read",) if overfull else ()
