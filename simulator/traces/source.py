"""Reading a trace file line by line, whatever it is packed in, with every failure said in one sentence."""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import zstandard

from sglang_dspark.errors import InputError

_GZIP_MAGIC = b"\x1f\x8b"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_CHUNK = 1 << 12  # small, because a few bytes of zstd can hold a megabyte

#: Longest line that is read, in bytes; a million-token prompt in 16-token blocks takes half a MiB.
MAX_LINE = 1 << 24

#: Cuts what a message says was expected, where that quotes names out of the file.
_LONGEST_EXPECTED = 300


class Lines:
    """The text lines of a trace file, each with its end of line; counts them and names them in errors.

    Iterating yields str and raises InputError where the file cannot be read, unpacked or decoded.
    """

    def __init__(self, name: str, stream: IO[bytes]) -> None:
        self.name = name
        self.number = 0
        self._stream = stream
        self._pushed: str | None = None

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if self._pushed is not None:
            line, self._pushed = self._pushed, None
            return line
        line = self._read()
        if not line:
            raise StopIteration
        self.number += 1
        return line

    def first(self) -> str:
        """Return the first line that is not blank, without taking it; InputError if there is none."""
        for line in self:
            if line.strip():
                self._pushed = line
                return line
        raise InputError(f"{self.name} is empty: expected a trace")

    def error(self, expected: str, got: object = None, *, column: str = "", line: int = 0) -> InputError:
        """Return the error for one place in the file; `got`, if given, is quoted and cut."""
        place = f"{self.name}, line {line or self.number}" + (f", column {printable(column)}" if column else "")
        expected = "".join(sign if sign.isprintable() else " " for sign in expected[:_LONGEST_EXPECTED])
        return InputError(f"{place}: expected {expected}" + ("" if got is None else f", got {quoted(got)}"))

    def _read(self) -> str:
        place = f"{self.name}, line {self.number + 1}"
        try:
            data = self._stream.readline(MAX_LINE + 1)
        except EOFError as error:
            raise InputError(f"{place}: the compressed file ends too early: it is cut off") from error
        except (gzip.BadGzipFile, zlib.error, zstandard.ZstdError) as error:
            raise InputError(f"{place}: the compressed file is damaged: {_one_line(error)}") from error
        except OSError as error:
            raise InputError(f"{place}: cannot be read: {error.strerror or _one_line(error)}") from error
        if len(data) > MAX_LINE:
            raise InputError(f"{place}: expected a line of at most {MAX_LINE} bytes: this is no text trace")
        try:
            return data.decode("utf-8-sig" if self.number == 0 else "utf-8")
        except UnicodeDecodeError as error:
            byte = data[error.start]
            raise InputError(f"{place}, byte {error.start + 1}: expected UTF-8 text, got byte 0x{byte:02x}") from error


@contextlib.contextmanager
def open_lines(path: str | os.PathLike[str]) -> Iterator[Lines]:
    """Open a trace file, plain, gzip or zstd (told by its first bytes, not its name), for reading by lines.

    Raises:
        InputError: if it is missing, a directory, or cannot be opened; while it is read, as `Lines` says.
    """
    name = printable(os.fspath(path))
    try:
        file = open(path, "rb")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or _one_line(error)
        raise InputError(f"{name}: the trace cannot be opened: {reason}") from error
    with file:
        try:
            magic = file.peek(4)[:4]
        except OSError as error:
            raise InputError(f"{name}: the trace cannot be read: {error.strerror}") from error
        if magic.startswith(_GZIP_MAGIC):
            yield Lines(name, io.BufferedReader(gzip.GzipFile(fileobj=file)))
        elif magic.startswith(_ZSTD_MAGIC):
            yield Lines(name, io.BufferedReader(_ZstdReader(file)))
        else:
            yield Lines(name, file)


def printable(name: str | bytes) -> str:
    """Return a path or a column's name as it can stand in a one-line message."""
    text = os.fsdecode(name)
    return text if text and text.isprintable() else repr(text)


def short_name(path: str | os.PathLike[str]) -> str:
    """Return the file name alone, for a trace's `source`."""
    return printable(Path(os.fsdecode(os.fspath(path))).name)


def quoted(value: object, limit: int = 40) -> str:
    """Return repr(value) on one line, cut to about `limit` characters."""
    text = repr(value)
    return text if len(text) <= limit else text[:limit] + "..."


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


class _ZstdReader(io.RawIOBase):
    """Unpacks zstd frames and says so when the last one is cut off, which zstandard's own reader does not."""

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__()
        self._file = file
        self._unpacked = memoryview(b"")
        self._frame: zstandard.ZstdDecompressionObj | None = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:  # type: ignore[no-untyped-def]
        while not self._unpacked:
            if not self._fill():
                return 0
        part = self._unpacked[: len(buffer)]
        self._unpacked = self._unpacked[len(part) :]
        buffer[: len(part)] = part
        return len(part)

    def _fill(self) -> bool:
        packed = self._file.read(_CHUNK)
        if not packed:
            if self._frame is not None:
                raise EOFError
            return False
        parts = []
        while packed:
            frame = self._frame or zstandard.ZstdDecompressor().decompressobj()
            parts.append(frame.decompress(packed))
            packed = frame.unused_data
            self._frame = None if frame.eof else frame
        self._unpacked = memoryview(b"".join(parts))
        return True
