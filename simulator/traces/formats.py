"""The trace formats that are read, and how a file's format is told from its first line.

azure
    Azure LLM inference traces 2023 and 2024 (CSV, CC-BY-4.0): ``TIMESTAMP,ContextTokens,GeneratedTokens``.
    Stamps are UTC wall clock with up to nine decimals (100 ns in 2023), with or without ``+00:00``.
burstgpt
    BurstGPT (CSV, CC-BY-4.0): ``Timestamp,[Session ID,Elapsed time,]Model,Request tokens,Response tokens,
    Total tokens,Log Type``. Stamps in seconds, mostly whole ones; a failed request has 0 response tokens.
vidur
    Vidur and Frontier (CSV): ``arrived_at,num_prefill_tokens,num_decode_tokens``. Stamps in seconds.
mooncake
    Mooncake FAST'25 (JSONL): ``timestamp`` in ms, ``input_length``, ``output_length``, ``hash_ids``.
bailian
    Qwen-Bailian (JSONL): ``chat_id``, ``parent_chat_id``, ``timestamp`` in seconds, ``input_length``,
    ``output_length``, ``type``, ``turn``, ``hash_ids``. The chat id becomes the request id.
own
    The project's own (JSONL). First line: ``{"format": "sglang-dspark-trace", "version": 1}`` and optionally
    ``requests`` (how many follow; fewer or more are an error), ``domains`` (names; their order gives the
    index), ``source`` and ``notes``. Then one object a request, in order of arrival: ``arrival_s``,
    ``input_length``, ``output_length`` (both at least 1) and, for all requests or for none, ``domain`` and
    ``request_id``.

Any of them may be packed with gzip or zstd. Columns and keys that are not read may be there, except in `own`,
where an unknown key is an error. Lengths are integers 0 .. 2**31 - 1, stamps 0 .. 1e10 seconds.

What is done to a foreign trace, each stated in `Trace.notes` where it happens:

- Requests with 0 prompt or 0 generated tokens are skipped: there is nothing to serve.
- Requests that are not in order of arrival are sorted.
- Stamps are shifted so that the first request arrives at 0.
- Where requests share stamps and the stamps lie on a regular grid (3 s in Mooncake's conversation trace,
  1 s in busy parts of BurstGPT), a stamp only says in which bucket a request arrived: each request is moved, by a
  seeded uniform draw, within its bucket. File order is kept.

The `own` format is taken as it is: its clock may begin before the first request; nothing is skipped or moved.
"""

from __future__ import annotations

from typing import Protocol

from sglang_dspark.errors import InputError
from simulator.traces.csv_formats import DATES, SECONDS, CsvFormat, header_names
from simulator.traces.json_formats import BailianFormat, MooncakeFormat, OwnFormat, json_keys
from simulator.traces.raw import RawRequests
from simulator.traces.source import Lines, quoted


class TraceReader(Protocol):
    """Reads one format: tells it from a file's first line, and turns a file's lines into requests."""

    @property
    def about(self) -> str:
        """The schema in a few words, for messages."""

    def recognises(self, first_line: str) -> bool:
        """Whether a file that begins with this line is in this format."""

    def read(self, lines: Lines) -> RawRequests:
        """Read all requests. Raises InputError that names file, line and column."""


TRACE_FORMATS: dict[str, TraceReader] = {
    "azure": CsvFormat(
        "CSV with TIMESTAMP, ContextTokens, GeneratedTokens",
        "TIMESTAMP",
        DATES,
        "ContextTokens",
        "GeneratedTokens",
    ),
    "burstgpt": CsvFormat(
        "CSV with Timestamp, Request tokens, Response tokens",
        "Timestamp",
        SECONDS,
        "Request tokens",
        "Response tokens",
    ),
    "vidur": CsvFormat(
        "CSV with arrived_at, num_prefill_tokens, num_decode_tokens",
        "arrived_at",
        SECONDS,
        "num_prefill_tokens",
        "num_decode_tokens",
    ),
    "mooncake": MooncakeFormat(),
    "bailian": BailianFormat(),
    "own": OwnFormat(),
}


def find_format(name: str) -> TraceReader:
    """Return the reader of a format; InputError that lists the known ones if there is none of that name."""
    if name not in TRACE_FORMATS:
        raise InputError(f"trace format {quoted(name)} is unknown, expected one of {', '.join(TRACE_FORMATS)}")
    return TRACE_FORMATS[name]


def detect_format(lines: Lines) -> str:
    """Return the name of the format of a file, told from its first line, which is not taken."""
    first = lines.first()
    for name, reader in TRACE_FORMATS.items():
        if reader.recognises(first):
            return name
    known = "; ".join(f"{name}: {reader.about}" for name, reader in TRACE_FORMATS.items())
    found = ", ".join(sorted(json_keys(first))) if first.lstrip().startswith("{") else ", ".join(header_names(first))
    got = f"keys or columns {quoted(found, 80)}" if found else quoted(first.strip(), 80)
    raise InputError(f"{lines.name}, line {lines.number}: unknown trace format: got {got}; expected {known}")
