"""The trace formats that are read, and how a file's format is told from its first line.

azure
    Azure LLM inference traces 2023 and 2024 (CSV, CC-BY-4.0): ``TIMESTAMP,ContextTokens,GeneratedTokens``.
    Stamps are UTC wall clock with up to nine decimals (100 ns in 2023), with or without ``+00:00`` or ``Z``, a blank
    or a ``T`` before the hour.
burstgpt
    BurstGPT (CSV, CC-BY-4.0): ``Timestamp,[Session ID,Elapsed time,]Model,Request tokens,Response tokens,
    Total tokens,Log Type``. Stamps in seconds, mostly whole ones; a failed request has 0 response tokens.
vidur
    Vidur and Frontier (CSV): ``arrived_at,num_prefill_tokens,num_decode_tokens``. Stamps in seconds.
mooncake
    Mooncake FAST'25 (JSONL): ``timestamp`` in ms, ``input_length``, ``output_length``, ``hash_ids`` (blocks of 512
    tokens); also the many files that have these lengths and no stamps.
bailian
    Qwen-Bailian (JSONL): ``chat_id``, ``parent_chat_id``, ``timestamp`` in seconds, ``input_length``,
    ``output_length``, ``type``, ``turn``, ``hash_ids`` (blocks of 16 tokens). The chat id becomes the request id.
sglang-log, bench-serving
    The user's own traffic without our plug-in: SGLang's JSON request log, bench_serving's output; see `server_files`.
own
    The project's own (JSONL). First line: ``{"format": "sglang-dspark-trace", "version": 2}`` and optionally
    ``requests`` (how many follow; fewer or more are an error), ``domains`` (names; their order gives the
    index), ``block_tokens``, ``source`` and ``notes``. Then one object a request, in order of arrival:
    ``input_length``, ``output_length`` (both at least 1) and, for all requests or for none, ``arrival_s``, ``domain``,
    ``request_id`` and ``cached_length`` (prompt tokens in the prefix cache, fewer than ``input_length``); instead of
    the last, for any request, ``hash_ids`` (blocks of the header's ``block_tokens`` that the prompt begins with); and
    ``max_tokens`` (what the client asks for at most, at least ``output_length``), for all requests or for none.
    Version 1 is read as well: it always has ``arrival_s``, and none of ``cached_length``, ``hash_ids``, ``max_tokens``.

Any of them may be packed with gzip or zstd. Columns and keys that are not read may be there, except in `own`,
where an unknown key is an error. Lengths are integers 0 .. 2**31 - 1, also written 655.0; stamps 0 .. 1e10 seconds.

The stamps' column or key may be missing altogether: such a trace (`Trace.stamped` is false) has lengths and an
order only, enough for a closed loop or for Poisson arrivals.

Equal leading ``hash_ids`` are equal tokens, a last block that is not full only if it is equally long. A request whose
``hash_ids`` are null, empty or missing shares no prefix; of a Mooncake or Bailian file with blocks of another size
`block_tokens` says which.

Numeric stamps of others count in the unit above unless `time_unit` says another; where it says nothing and the rate
comes out below 0.01 or above 100 requests per second (`clock.PLAUSIBLE_RATE`), a note warns of it.

What is done to a foreign trace, each stated in `Trace.notes` where it happens:

- Requests with 0 prompt or 0 generated tokens are skipped: there is nothing to serve.
- Requests that are not in order of arrival are sorted.
- Stamps are shifted so that the first request arrives at 0.
- Then the window is taken, then the limit: what follows looks at the chosen requests alone.
- Where requests share stamps that lie on a regular grid of at most about a second (busy parts of BurstGPT), the
  stamp is a coarse clock and says only in which tick a request arrived: each request is moved, by a seeded uniform
  draw, within its tick. File order is kept.
- A coarser grid (3 s in Mooncake's conversation trace) stays: no logger rounds to that, so the bursts are data.
  `jitter=True` spreads any regular grid, `jitter=False` none.

The `own` format is taken as it is: its clock may begin before the first request; nothing is skipped, and moved only
if `jitter=True` asks for it.
"""

from __future__ import annotations

from typing import Protocol

from sglang_dspark.errors import InputError
from simulator.traces.csv_formats import CsvFormat, header_names
from simulator.traces.json_formats import BailianRow, JsonFormat, MooncakeRow
from simulator.traces.json_lines import json_keys
from simulator.traces.own_format import OwnFormat
from simulator.traces.raw import RawRequests
from simulator.traces.server_files import BenchServing, SglangLog
from simulator.traces.source import Lines, quoted

_GIT_LFS = "version https://git-lfs.github.com/"


class TraceReader(Protocol):
    """Reads one format: tells it from a file's first line, and turns a file's lines into requests."""

    @property
    def about(self) -> str:
        """The schema in a few words, for messages."""

    @property
    def time_unit(self) -> str | None:
        """Unit of its stamps if they are numbers whose unit the file does not say, else None."""

    def recognises(self, first_line: str) -> bool:
        """Whether a file that begins with this line is in this format."""

    def read(self, lines: Lines, time_unit: str | None) -> RawRequests:
        """Read all requests. time_unit: None only where the format has none. InputError names file, line and column."""


TRACE_FORMATS: dict[str, TraceReader] = {
    "azure": CsvFormat(
        "CSV with TIMESTAMP, ContextTokens, GeneratedTokens",
        "TIMESTAMP",
        None,
        "ContextTokens",
        "GeneratedTokens",
    ),
    "burstgpt": CsvFormat(
        "CSV with Timestamp, Request tokens, Response tokens",
        "Timestamp",
        "s",
        "Request tokens",
        "Response tokens",
    ),
    "vidur": CsvFormat(
        "CSV with arrived_at, num_prefill_tokens, num_decode_tokens",
        "arrived_at",
        "s",
        "num_prefill_tokens",
        "num_decode_tokens",
    ),
    "bailian": JsonFormat(
        "JSON lines with chat_id, timestamp (s), input_length, output_length", BailianRow, "s", 16, name="chat_id"
    ),
    "mooncake": JsonFormat("JSON lines with timestamp (ms), input_length, output_length", MooncakeRow, "ms", 512),
    "sglang-log": SglangLog(),
    "bench-serving": BenchServing(),
    "own": OwnFormat(),
}
"""Asked in this order; the first that recognises a file reads it."""


def format_of(lines: Lines, name: str | None) -> str:
    """Return the name of a file's format, as given or told from its first line, which is not taken.

    Raises:
        InputError: if no format has that name, if none fits, or if the file is only Git LFS's pointer to a trace.
    """
    if name is not None and name not in TRACE_FORMATS:
        raise InputError(f"trace format {quoted(name)} is unknown, expected one of {', '.join(TRACE_FORMATS)}")
    first = lines.first()
    if first.startswith(_GIT_LFS):
        raise InputError(
            f"{lines.name} is a Git LFS pointer, not the trace itself: expected the file that `git lfs pull` fetches"
        )
    return name or _detected(lines, first)


def _detected(lines: Lines, first: str) -> str:
    for name, reader in TRACE_FORMATS.items():
        if reader.recognises(first):
            return name
    known = "; ".join(f"{name}: {reader.about}" for name, reader in TRACE_FORMATS.items())
    found = ", ".join(sorted(json_keys(first))) if first.lstrip().startswith("{") else ", ".join(header_names(first))
    got = f"keys or columns {quoted(found, 80)}" if found else quoted(first.strip(), 80)
    raise InputError(f"{lines.name}, line {lines.number}: unknown trace format: got {got}; expected {known}")
