"""Writing records beside a running engine: the caller only encodes and appends to a queue.

Compression and disk work happen in a thread that holds the interpreter lock for moments. A full or slow disk drops
records, which is counted, logged and written into the file as a `Gap` once there is room again; it never raises into
the caller and never makes it wait.
"""

from __future__ import annotations

import atexit
import logging
import os
import secrets
import threading
import time
from collections import deque
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from sglang_dspark.errors import InputError
from sglang_dspark.records.codec import MAX_BLOCK, encode_record
from sglang_dspark.records.files import RotatingFiles, make_folder
from sglang_dspark.records.schema import CostRecord, Gap, Header, Record

_log = logging.getLogger(__name__)
_WARN_EVERY_S = 60.0


@dataclass(frozen=True)
class WriterLimits:
    """flush_s: what a kill loses at most. block_bytes: encoded bytes that are written without waiting for it.

    file_bytes: a file is rotated once it is this long. total_bytes: the folder's oldest files are removed beyond it.
    queue_bytes: what waits for the disk at most; beyond, records are dropped. poll_s: how often the thread looks.
    """

    flush_s: float = 1.0
    block_bytes: int = 1 << 18
    file_bytes: int = 1 << 26
    total_bytes: int | None = None
    queue_bytes: int = 1 << 25
    poll_s: float = 0.05


@dataclass(frozen=True)
class WriterStats:
    """written, dropped: records. packed_bytes: on disk. problem: the disk's present one, empty when there is none."""

    written: int = 0
    dropped: int = 0
    packed_bytes: int = 0
    problem: str = ""


class RecordWriter:
    """Streams records of one run into rotating files under `folder`, named by time, process and part.

    Errors: InputError if the folder cannot be made or written when the writer is made; nothing is raised later.
    """

    def __init__(self, folder: str | os.PathLike[str], header: Header, limits: WriterLimits | None = None) -> None:
        self.folder = Path(folder)
        self.limits = limits or WriterLimits()
        _make_folder(self.folder)
        now = time.time()
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime(now))
        header = msgspec.structs.replace(
            header,
            run=header.run or f"{stamp}-{os.getpid()}-{secrets.token_hex(3)}",
            created_time_s=header.created_time_s or now,
        )
        self._files = RotatingFiles(self.folder, header, self.limits.file_bytes, self.limits.total_bytes)
        self._queue: deque[bytes] = deque()
        self._queued_bytes = 0
        self._busy = False
        self._lock = threading.Lock()  # guards the queue's size and the counts; held for moments
        self._stats = WriterStats()
        self._unsaid = Gap(dropped=0, reason="")
        self._warned = -_WARN_EVERY_S
        self._stop = threading.Event()
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name="dspark-records", daemon=True)
        self._thread.start()
        atexit.register(self.close)

    def put(self, record: Record) -> bool:
        """Queue one record; False if it was dropped. Costs microseconds, never raises, never waits for the disk.

        The record is encoded here, so that its arrays may be reused at once.
        """
        try:
            data = encode_record(record)
        except Exception as error:  # a record that cannot be encoded must not stop an engine
            self._drop(1, f"a {type(record).__name__} cannot be encoded: {error}")
            return False
        if len(data) + self.limits.block_bytes > MAX_BLOCK:
            self._drop(1, f"a {type(record).__name__} of {len(data)} bytes is more than a reader takes")
            return False
        with self._lock:
            closed = self._stop.is_set()
            fits = not closed and self._queued_bytes + len(data) <= self.limits.queue_bytes
            if fits:
                self._queue.append(data)
                self._queued_bytes += len(data)
        if not fits:
            slow = self._stats.problem or "the disk is slower than the records"
            self._drop(1, "the writer is closed" if closed else slow)
        return fits

    def add_cost(self, table: str, cost: dict[str, Any]) -> None:
        """Say that steps may name another step-cost model from now on; later files carry it in their header."""
        header = self._files.header
        self._files.header = msgspec.structs.replace(header, costs={**header.costs, table: cost})
        self.put(CostRecord(table=table, cost=cost))

    @property
    def stats(self) -> WriterStats:
        """Counts so far."""
        return self._stats

    def flush(self, timeout_s: float = 5.0) -> bool:
        """Have the queue written now and wait; False if it was not done in time."""
        deadline = time.monotonic() + timeout_s
        while self._queue or self._busy:
            if time.monotonic() > deadline or not self._thread.is_alive():
                return False
            self._wake.set()
            time.sleep(0.002)
        return True

    def close(self, timeout_s: float = 5.0) -> WriterStats:
        """Write what is queued, close the file, and return the final counts; a second call changes nothing."""
        self._stop.set()
        self._wake.set()
        self._thread.join(timeout_s)
        atexit.unregister(self.close)
        return self._stats

    def _run(self) -> None:
        due = time.monotonic() + self.limits.flush_s
        while not self._stop.is_set():
            asked = self._wake.wait(self.limits.poll_s)
            if asked or self._queued_bytes >= self.limits.block_bytes or time.monotonic() >= due:
                self._wake.clear()
                self._write_queue()
                due = time.monotonic() + self.limits.flush_s
        self._write_queue()
        if self._queue:
            self._drop(len(self._queue), self._stats.problem)
            self._queue.clear()
        self._files.close()

    def _write_queue(self) -> None:
        """Write the queue in blocks. What the disk refuses stays queued and is tried again next time."""
        self._busy = True
        try:
            while self._queue:
                records = self._take()
                if not self._write(records):
                    break
        finally:
            self._busy = False

    def _write(self, records: list[bytes]) -> bool:
        gap = self._unsaid
        said = [encode_record(msgspec.structs.replace(gap, time_s=time.time()))] if gap.dropped else []
        try:
            size = self._files.append(said + records)
        except OSError as error:
            self._give_back(records)
            self._problem(error.strerror or str(error))
            return False
        except Exception as error:  # trying again would fail again, and the thread must outlive anything
            self._drop(len(records), str(error))
            return False
        with self._lock:
            self._unsaid = Gap(dropped=self._unsaid.dropped - gap.dropped, reason=self._unsaid.reason)
            written, packed = self._stats.written + len(records), self._stats.packed_bytes + size
            self._stats = replace(self._stats, written=written, packed_bytes=packed, problem="")
        return True

    def _take(self) -> list[bytes]:
        records, size = [], 0
        with self._lock:
            while self._queue and size < self.limits.block_bytes:
                records.append(self._queue.popleft())
                size += len(records[-1])
            self._queued_bytes -= size
        return records

    def _give_back(self, records: list[bytes]) -> None:
        with self._lock:
            self._queue.extendleft(reversed(records))
            self._queued_bytes += sum(map(len, records))

    def _drop(self, count: int, reason: str) -> None:
        with self._lock:
            self._unsaid = Gap(dropped=self._unsaid.dropped + count, reason=reason)
            self._stats = replace(self._stats, dropped=self._stats.dropped + count)
        self._warn(f"records dropped: {self._stats.dropped} so far ({reason}); serving goes on")

    def _problem(self, reason: str) -> None:
        with self._lock:
            self._stats = replace(self._stats, problem=reason)
        self._warn(f"records cannot be written ({reason}); they wait, and are dropped when too many wait")

    def _warn(self, text: str) -> None:
        now = time.monotonic()
        if now - self._warned >= _WARN_EVERY_S:
            self._warned = now
            _log.warning("%s", text)


def _make_folder(folder: Path) -> None:
    try:
        make_folder(folder)
    except OSError as error:
        raise InputError(f"cannot record into {folder}: {error.strerror}") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"cannot record into {folder}: no permission to write there")
