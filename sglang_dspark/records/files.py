"""The files of one run: rotated by size, every one started with the header, a failed write taken back."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import msgspec
import zstandard

from sglang_dspark.records.codec import encode_record, pack_block
from sglang_dspark.records.schema import Header

SUFFIX = ".dspark"

_LEVEL = 3
_log = logging.getLogger(__name__)


class RotatingFiles:
    """Appends blocks of encoded records to the newest file `RUN-PART.dspark`.

    header: written at the top of every file; may be replaced, later files carry the new one. file_bytes: a file is
    rotated once it is this long. total_bytes: the folder's oldest record files, of whatever run, are removed beyond it
    (None: never). The folder is made again when somebody deletes it. Files are the owner's alone to read.
    """

    def __init__(self, folder: Path, header: Header, file_bytes: int, total_bytes: int | None) -> None:
        self.header = header
        self.started = 0
        self._folder = folder
        self._file_bytes = file_bytes
        self._total_bytes = total_bytes
        self._descriptor: int | None = None
        self._size = 0
        self._path = folder
        self._compressor = zstandard.ZstdCompressor(level=_LEVEL)

    def append(self, records: list[bytes]) -> int:
        """Write all records as one block or nothing of it; bytes written. OSError is the caller's."""
        written = 0
        if self._descriptor is None or self._size >= self._file_bytes or os.fstat(self._descriptor).st_nlink == 0:
            written += self._start()
        return written + self._write(pack_block(records, self._compressor))

    def close(self) -> None:
        """Close the newest file."""
        if self._descriptor is None:
            return
        descriptor, self._descriptor = self._descriptor, None
        try:
            os.close(descriptor)
        except OSError as error:
            _log.warning("closing a record file: %s", error.strerror)

    def _start(self) -> int:
        self.close()
        make_folder(self._folder)
        self._remove_oldest()
        header = msgspec.structs.replace(self.header, part=self.started)
        self._path = self._folder / f"{header.run}-{self.started:05d}{SUFFIX}"
        self._descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        self._size = 0
        try:
            size = self._write(pack_block([encode_record(header)], self._compressor))
        except OSError:
            os.close(self._descriptor)
            self._descriptor = None
            self._path.unlink(missing_ok=True)
            raise
        self.started += 1
        return size

    def _write(self, data: bytes) -> int:
        assert self._descriptor is not None
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
        except OSError:
            self._take_back()
            raise
        self._size += len(data)
        return len(data)

    def _take_back(self) -> None:
        assert self._descriptor is not None
        try:
            os.ftruncate(self._descriptor, self._size)
        except OSError:
            _log.warning("a cut block stays in the record file %s; readers skip it", self._path.name)

    def _remove_oldest(self) -> None:
        if self._total_bytes is None:
            return
        found = [(path, path.stat()) for path in self._folder.glob(f"*{SUFFIX}")]
        found.sort(key=lambda each: (each[1].st_mtime_ns, each[0].name))
        kept = sum(each.st_size for _, each in found)
        for path, each in found:
            if kept + self._file_bytes <= self._total_bytes:
                return
            path.unlink(missing_ok=True)
            kept -= each.st_size


def make_folder(folder: Path) -> None:
    """Make a folder that only its owner can look into; one that is there stays as it is."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
