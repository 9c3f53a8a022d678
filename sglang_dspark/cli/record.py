"""`dspark record`: drain the step records of an unmodified SGLang server into our files."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from sglang_dspark.cli.app import AdminApiKey, ApiKey, app
from sglang_dspark.keys import Keys


@app.command("record")
def record(
    out: Annotated[Path, typer.Option(help="Folder for the records.")],
    url: Annotated[str, typer.Option(help="The server, started with SGLANG_DSPARK_DEBUG_DUMP=all.")],
    duration: Annotated[float, typer.Option(min=0.0, help="Seconds to go on; 0 drains once. Ctrl-C ends too.")] = 0.0,
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between two drains.")] = 5.0,
    clear: Annotated[
        bool, typer.Option(help="Have the server forget what was read, at the end and whenever it holds much.")
    ] = True,
    api_key: ApiKey = None,
    admin_api_key: AdminApiKey = None,
) -> None:
    """Drain an unmodified server's step records (rounded, not exactly replayable) into files that every command reads.

    Steps that the server forgot unread are counted. A server that starts anew meanwhile begins a new run.
    A server of ours records by itself, exactly: --speculative-dspark-record DIR.
    """
    from sglang_dspark.live.client import Server
    from sglang_dspark.live.drain import Drain

    drain = Drain(Server(url, Keys.given(api_key, admin_api_key)), out, clear=clear)
    end = time.monotonic() + duration
    try:
        drain.once()
        while time.monotonic() < end:
            time.sleep(min(interval, max(end - time.monotonic(), 0.0)))
            drain.once()
    except KeyboardInterrupt:
        pass
    finally:
        drain.close()
        if drain.replicas:
            typer.echo(drain.said())
    if clear and not drain.away:
        drain.forget()
