"""Writing a trace in the project's own format: the whole file under its name, or nothing."""

from __future__ import annotations

import contextlib
import gzip
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import msgspec
import zstandard

from sglang_dspark.errors import InputError
from simulator.traces.own_format import FORMAT_NAME, FORMAT_VERSION, OwnHeader, OwnRow
from simulator.traces.prefixes import PrefixBlocks
from simulator.traces.source import printable
from simulator.traces.trace import Trace

_encode = msgspec.json.Encoder().encode


def write_trace(path: str | os.PathLike[str], trace: Trace) -> None:
    """Write a trace as the project's own JSONL, packed if the name ends in .gz or .zst; no clock goes in.

    The file is written beside its place and renamed when it is complete and on the disk.

    Raises:
        InputError: if the file cannot be written; nothing is left then, and an older file of that name stays.
    """
    try:
        _write_or_leave(Path(os.path.realpath(path)), trace)  # a link keeps pointing to the file
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise InputError(f"{printable(os.fspath(path))}: the trace cannot be written: {reason}") from error


def _write_or_leave(target: Path, trace: Trace) -> None:
    if target.exists() and not target.is_file():
        raise ValueError("expected a regular file or a new name")
    part = target.with_name(f".{secrets.token_hex(8)}.part")
    try:
        with open(part, "xb") as file:
            with _packed(file, target.suffix) as stream:
                for line in _lines(trace):
                    stream.write(line)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def _packed(file: IO[bytes], suffix: str) -> Iterator[IO[bytes]]:
    if suffix == ".gz":
        with gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as packed:
            yield packed  # type: ignore[misc]
    elif suffix == ".zst":
        with zstandard.ZstdCompressor().stream_writer(file, closefd=False) as packed:
            yield packed
    else:
        yield file


def _lines(trace: Trace) -> Iterator[bytes]:
    header = OwnHeader(
        format=FORMAT_NAME,
        version=FORMAT_VERSION,
        requests=len(trace),
        domains=trace.domains,
        block_tokens=None if trace.prefix_blocks is None else trace.prefix_blocks.block_tokens,
        source=trace.source,
        notes=trace.notes,
    )
    yield _encode(header) + b"\n"
    none = [None] * len(trace)
    columns = zip(
        trace.arrival_s.tolist() if trace.stamped else none,
        trace.input_length.tolist(),
        trace.output_length.tolist(),
        none if trace.domain is None else [trace.domains[index] for index in trace.domain],
        trace.request_id or none,
        none if trace.cached_length is None else trace.cached_length.tolist(),
        none if trace.prefix_blocks is None else _blocks(trace.prefix_blocks),
        none if trace.max_tokens is None else trace.max_tokens.tolist(),
        strict=True,
    )
    for row in columns:
        yield _encode(OwnRow(**dict(zip(OwnRow.__struct_fields__, row, strict=True)))) + b"\n"


def _blocks(blocks: PrefixBlocks) -> Iterator[list[int] | None]:
    """Each request's blocks, None where it has none."""
    return (blocks.of(request).tolist() or None for request in range(len(blocks)))
