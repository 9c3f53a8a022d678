"""`dspark record`: drain the step records of an unmodified SGLang server into our files."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sglang_dspark.cli.app import app
from sglang_dspark.errors import InputError

if TYPE_CHECKING:
    from sglang_dspark.live.client import Server
    from sglang_dspark.records import RecordWriter

_KEPT = (
    "model_path", "speculative_draft_model_path", "tp_size", "dp_size", "max_running_requests", "chunked_prefill_size",
    "device", "dtype", "attention_backend", "disable_overlap_schedule", "version",
)  # fmt: skip


@app.command("record")
def record(
    out: Annotated[Path, typer.Option(help="Folder for the records.")],
    url: Annotated[str, typer.Option(help="The server, started with SGLANG_DSPARK_DEBUG_DUMP=all.")],
    duration: Annotated[float, typer.Option(min=0.0, help="Seconds to go on; 0 drains once. Ctrl-C ends too.")] = 0.0,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between two drains.")] = 5.0,
    clear: Annotated[bool, typer.Option(help="Have the server forget what was drained.")] = True,
    api_key: Annotated[str | None, typer.Option(help="Admin key (default: SGLANG_ADMIN_API_KEY).")] = None,
) -> None:
    """Drain an unmodified server's step records (rounded, not exactly replayable) into files that every command reads.

    A server of ours records by itself, exactly: --speculative-dspark-record DIR.
    """
    from sglang_dspark.live.client import Server

    drain = _Drain(Server(url, api_key) if api_key else Server(url), out, clear)
    end = time.monotonic() + duration
    try:
        drain.once()
        while time.monotonic() < end:
            time.sleep(min(interval, max(end - time.monotonic(), 0.0)))
            drain.once()
    except KeyboardInterrupt:
        pass
    finally:
        stats = drain.close()
    typer.echo(f"{drain.steps} decode steps of {len(drain.seen)} replica(s) in {out}, {stats.dropped} dropped")


class _Drain:
    """Asks the server again and again; every step is written once."""

    def __init__(self, server: Server, out: Path, clear: bool) -> None:
        self.server, self.out, self.clear = server, out, clear
        self.writer: RecordWriter | None = None
        self.seen: dict[int, int] = {}
        self.steps = 0

    def once(self) -> None:
        """Take over what is new."""
        from sglang_dspark.records import RecordWriter
        from sglang_dspark.records.upstream import upstream_header, upstream_infos, upstream_steps

        info = self.server.get("/server_info")
        found = upstream_infos(info)
        if self.clear:
            self.server.post("/set_internal_state", {"server_args": {"dspark_clear_info_records": 1}})
        if self.writer is None:
            engine: dict[str, Any] = {name: info[name] for name in _KEPT if info.get(name) is not None}
            self.writer = RecordWriter(self.out, upstream_header(found[0], engine))
        for rank, state in enumerate(found):
            if state.gamma != found[0].gamma:
                raise InputError(f"replica {rank} drafts {state.gamma} tokens, expected {found[0].gamma} as replica 0")
            for step in upstream_steps(state, rank, self.seen.setdefault(rank, -1)):
                self.writer.put(step)
                self.seen[rank] = step.step
                self.steps += 1

    def close(self) -> Any:
        """Write what is queued."""
        from sglang_dspark.records import WriterStats

        return WriterStats() if self.writer is None else self.writer.close()
