"""Reading records back: file by file, block by block, in bounded memory; damage is reported and stepped over."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from sglang_dspark.cost import StepCost
from sglang_dspark.errors import InputError
from sglang_dspark.records.codec import HEAD_BYTES, MAGIC, BlockFault, read_head, unpack_block
from sglang_dspark.records.costs import cost_from_plain
from sglang_dspark.records.files import SUFFIX
from sglang_dspark.records.schema import (
    FORMAT,
    FORMAT_VERSION,
    CostRecord,
    Gap,
    Header,
    Record,
    RequestRecord,
    StepRecord,
    fault,
)

_CHUNK = 1 << 20
_NAMED_PROBLEMS = 100

Paths = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]


@dataclass(frozen=True)
class Problem:
    """Damage in a file: byte offset, bytes that were stepped over (0 for a bad record in a good block), and why."""

    file: str
    offset: int
    skipped_bytes: int
    reason: str

    def __str__(self) -> str:
        skipped = f", {self.skipped_bytes} bytes skipped" if self.skipped_bytes else ""
        return f"{self.file}, offset {self.offset}: {self.reason}{skipped}"


@dataclass
class Summary:
    """What a pass over records found. dropped: records that the writer said it dropped.

    bad_records: unusable records in good blocks; `problems` names the first of them and every damaged stretch.
    """

    files: int = 0
    runs: list[str] = field(default_factory=list)
    steps: int = 0
    requests: int = 0
    blocks: int = 0
    dropped: int = 0
    bad_records: int = 0
    problems: list[Problem] = field(default_factory=list)


def record_files(paths: Paths) -> list[Path]:
    """Record files of a file, a folder, or several of them, in order of run and part; InputError if there is none."""
    given = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    found: list[Path] = []
    for item in map(Path, given):
        inside = sorted(item.glob(f"*{SUFFIX}")) if item.is_dir() else [item]
        if not inside:
            raise InputError(f"{item} holds no {SUFFIX} file, expected records")
        found += inside
    if not found:
        raise InputError("no records given, expected files or folders")
    for item in found:
        if not item.is_file():
            raise InputError(f"records {item}: no such file")
    return list(dict.fromkeys(found))


class RecordSet:
    """Records of one or more files or folders; may be read again and again, one block in memory at a time.

    `summary` is that of the last whole or partial pass.
    Errors: InputError if a path is missing, cannot be read, or holds no record at all.
    """

    def __init__(self, paths: Paths) -> None:
        self.paths = record_files(paths)
        self.summary = Summary()

    def __iter__(self) -> Iterator[Record]:
        """All records as they were written, headers and gaps included; a step follows its file's header."""
        for _, record in self._pass():
            yield record

    def steps(self) -> Iterator[tuple[Header, StepRecord]]:
        """Every decode step with the header that it was recorded under."""
        for header, record in self._pass():
            if isinstance(record, StepRecord):
                yield header, record

    def requests(self) -> Iterator[RequestRecord]:
        """Every finished request."""
        for _, request in self.requests_with_headers():
            yield request

    def requests_with_headers(self) -> Iterator[tuple[Header, RequestRecord]]:
        """Every finished request with the header that it was recorded under."""
        for header, record in self._pass():
            if isinstance(record, RequestRecord):
                yield header, record

    def costs(self) -> dict[str, StepCost]:
        """The step-cost models that steps name, by table hash."""
        found: dict[str, StepCost] = {}
        for _, record in self._pass():
            if isinstance(record, Header):
                found.update({table: cost_from_plain(plain) for table, plain in record.costs.items()})
            elif isinstance(record, CostRecord):
                found[record.table] = cost_from_plain(record.cost)
        return found

    def header(self) -> Header:
        """The first header; InputError if no file has a readable one."""
        for header, _ in self._pass():
            return header
        raise InputError(f"{self.paths[0]}: no readable record" + "".join(f"; {p}" for p in self.summary.problems[:1]))

    def scan(self) -> Summary:
        """Read everything once and return the summary."""
        for _ in self._pass():
            pass
        return self.summary

    def _pass(self) -> Iterator[tuple[Header, Record]]:
        summary = self.summary = Summary()
        known: dict[str, Header | None] = {}
        for path in self.paths:
            summary.files += 1
            header: Header | None = None
            for offset, records in _blocks(path, summary.problems):
                for record in records:
                    if isinstance(record, Header):
                        header = known[record.run] = _accept(record, path)
                        if header.run not in summary.runs:
                            summary.runs.append(header.run)
                    elif header is None:  # the first block is damaged: use another header of the run
                        if _run_name(path) not in known:
                            known[_run_name(path)] = self._other_header(path)
                        header = known[_run_name(path)]
                    if self._count(record, header, path, offset):
                        assert header is not None
                        yield header, record

    def _unusable(self, path: Path, offset: int, reason: str) -> bool:
        self.summary.bad_records += 1
        if self.summary.bad_records <= _NAMED_PROBLEMS:
            self.summary.problems.append(Problem(path.name, offset, 0, reason))
        return False

    def _other_header(self, path: Path) -> Header | None:
        """The header of a later file of the same run."""
        for other in self.paths:
            if other != path and _run_name(other) == _run_name(path):
                for _, records in _blocks(other, []):
                    if isinstance(records[0], Header):
                        return _accept(records[0], other)
                    break
        return None

    def _count(self, record: Record, header: Header | None, path: Path, offset: int) -> bool:
        """Enter a record in the summary; False if it cannot be used."""
        summary = self.summary
        if header is None:
            return self._unusable(path, offset, "records without a readable header")
        if isinstance(record, StepRecord):
            wrong = fault(record, header.gamma)
            if wrong is not None:
                return self._unusable(path, offset, f"step {record.step}: {wrong}")
            summary.steps += 1
            summary.blocks += record.num_requests
        elif isinstance(record, RequestRecord):
            summary.requests += 1
        elif isinstance(record, Gap):
            summary.dropped += record.dropped
        return True


def read_records(paths: Paths) -> Iterator[Record]:
    """All records of a file, a folder or several; see `RecordSet` for headers, problems and counts."""
    return iter(RecordSet(paths))


def _accept(header: Header, path: Path) -> Header:
    if header.format != FORMAT or header.version > FORMAT_VERSION:
        raise InputError(
            f"records {path}: format {header.format} {header.version}, expected {FORMAT} up to {FORMAT_VERSION}"
        )
    if not 1 <= header.gamma <= 64:
        raise InputError(f"records {path}: gamma={header.gamma}, expected 1..64")
    return header


def _run_name(path: Path) -> str:
    return path.name.removesuffix(SUFFIX).rpartition("-")[0]


def _blocks(path: Path, problems: list[Problem]) -> Iterator[tuple[int, list[Record]]]:
    """(offset, records) of every good block; what lies between two good blocks becomes one problem."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size == 0:
                problems.append(Problem(path.name, 0, 0, "the file is empty"))
            offset = 0
            while offset < size:
                try:
                    records, end = _block_at(file, offset)
                    yield offset, records
                except BlockFault as error:
                    end = _find_block(file, offset + 1, size)
                    _add_problem(problems, Problem(path.name, offset, end - offset, str(error)))
                offset = end
    except OSError as error:
        raise InputError(f"records {path}: {error.strerror}") from error


def _block_at(file: BinaryIO, offset: int) -> tuple[list[Record], int]:
    """The records of the block at `offset`, and where it ends."""
    file.seek(offset)
    packed_bytes, plain_bytes, crc = read_head(file.read(HEAD_BYTES))
    packed = file.read(packed_bytes)
    if len(packed) < packed_bytes:
        raise BlockFault("the file ends inside a block")
    return unpack_block(packed, plain_bytes, crc), offset + HEAD_BYTES + packed_bytes


def _find_block(file: BinaryIO, offset: int, size: int) -> int:
    """Where the next block's marker stands at or after `offset`, or `size`."""
    while offset < size:
        file.seek(offset)
        chunk = file.read(_CHUNK + len(MAGIC) - 1)
        found = chunk.find(MAGIC)
        if found >= 0:
            return offset + found
        offset += _CHUNK
    return size


def _add_problem(problems: list[Problem], new: Problem) -> None:
    """Add a damaged stretch; one that follows another without a good block between belongs to it."""
    last = problems[-1] if problems else None
    joined = last is not None and last.file == new.file and last.skipped_bytes > 0
    if last is not None and joined and last.offset + last.skipped_bytes == new.offset:
        problems[-1] = Problem(last.file, last.offset, last.skipped_bytes + new.skipped_bytes, last.reason)
    else:
        problems.append(new)
