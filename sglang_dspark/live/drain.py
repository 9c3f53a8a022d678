"""Drains the step records of an unmodified SGLang server into our files, and says what the server forgot before.

A reading leaves the server's ring as it is, so that the next one overlaps and nothing is lost. A long ring makes every
reading slow, on the server too: it is cleared once it holds `MOST_ROWS` requests, right behind a reading, and steps
that run in between are lost and counted.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from sglang_dspark.errors import InputError
from sglang_dspark.live.client import Server, Unreachable
from sglang_dspark.records import Gap, RecordWriter
from sglang_dspark.records.upstream import Cursor, UpstreamInfo, rows_of, upstream_header, upstream_infos

MOST_ROWS = 1 << 14
"""About a tenth of a second of the server's scheduler for one reading."""

_KEPT = (
    "model_path",
    "speculative_draft_model_path",
    "tp_size",
    "dp_size",
    "max_running_requests",
    "chunked_prefill_size",
    "device",
    "dtype",
    "attention_backend",
    "disable_overlap_schedule",
    "version",
)


class Drain:
    """Reads again and again; every step is written once, and every life of the server is a run of its own.

    steps: written. lost: the most decode steps that the server forgot unread. restarts: lives after the first one.
    dropped: records that the disk had no room for. away: whether the last reading found no server.
    """

    def __init__(self, server: Server, out: Path, *, clear: bool = True) -> None:
        self.server, self.out, self.clear = server, out, clear
        self.steps = self.lost = self.restarts = self.dropped = self.replicas = 0
        self.away = False
        self._writer: RecordWriter | None = None
        self._cursors: list[Cursor] = []
        self._rows = self._gamma = 0

    def once(self) -> None:
        """Take over what is new.

        Errors: InputError if the server keeps no records that can be used, or does not answer the first time.
        """
        full = self.clear and self._rows >= MOST_ROWS
        try:
            answer = self.server.get_bytes("/server_info")
            if full:
                self.forget()  # before the answer is looked at: the less time passes, the less is lost
        except Unreachable:
            if self._writer is None:
                raise
            self.away = True
            return
        self.away = False
        info = self.server.decode("/server_info", answer)
        found = upstream_infos(info)
        self._rows = 0 if full else rows_of(found)
        if self._writer is not None and self._began_anew(found):
            self.restarts += 1
            self._end_run()
        writer = self._writer or self._begin_run(found, info)
        for cursor, state in zip(self._cursors, found, strict=True):
            self._take(cursor, state, writer)

    def forget(self) -> None:
        """Have the server forget its records."""
        self.server.post("/set_internal_state", {"server_args": {"dspark_clear_info_records": 1}})

    def close(self) -> None:
        """Write what is queued."""
        self._end_run()

    def said(self) -> str:
        """What came of it, in one line."""
        out = f"{self.steps} decode steps of {self.replicas} replica(s) in {self.out}; "
        out += f"up to {self.lost} lost, forgotten by the server before they were read" if self.lost else "none lost"
        out += f"; {self.dropped} dropped by the disk"
        if self.restarts:
            out += f"; the server began anew {self.restarts} time(s): a run each, steps unread before that are missing"
        return out + ("; the server did not answer at the end" if self.away else "")

    def _take(self, cursor: Cursor, state: UpstreamInfo, writer: RecordWriter) -> None:
        steps, lost = cursor.take(state)
        if lost:
            reason = "the server forgot them before they were read, prefills may be among them"
            writer.put(Gap(dropped=lost, reason=reason, time_s=time.time()))
        for step in steps:
            writer.put(step)
        self.lost += lost
        self.steps += len(steps)

    def _began_anew(self, found: list[UpstreamInfo]) -> bool:
        if len(found) != len(self._cursors) or found[0].gamma != self._gamma:
            return True
        return any(cursor.began_anew(state) for cursor, state in zip(self._cursors, found, strict=True))

    def _begin_run(self, found: list[UpstreamInfo], info: dict[str, Any]) -> RecordWriter:
        gammas = {state.gamma for state in found}
        if len(gammas) > 1:
            raise InputError(f"the replicas draft {sorted(gammas)} tokens, expected one gamma")
        engine = {name: info[name] for name in _KEPT if info.get(name) is not None}
        writer = self._writer = RecordWriter(self.out, upstream_header(found[0], engine))
        self._cursors = [Cursor(rank) for rank in range(len(found))]
        self._gamma, self.replicas = found[0].gamma, len(found)
        return writer

    def _end_run(self) -> None:
        if self._writer is not None:
            self.dropped += self._writer.close().dropped
        self._writer, self._cursors = None, []
