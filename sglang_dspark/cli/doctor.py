"""`dspark doctor --url URL`: what is on, what it gains, what is wrong and what to do."""

from __future__ import annotations

import msgspec
import typer

from sglang_dspark.cli.app import URL, AdminApiKey, ApiKey, Json, Url, app
from sglang_dspark.keys import Keys

_MARKS = {"problem": "PROBLEM", "warning": "WARNING", "note": "note", "good": "ok"}


@app.command("doctor")
def doctor(url: Url = URL, api_key: ApiKey = None, admin_api_key: AdminApiKey = None, as_json: Json = False) -> None:
    """Read a running server: what decides, what it gains, what is wrong with it and what to do. Changes nothing.

    Exit status 1 where something is a problem or worth a warning.
    """
    from sglang_dspark.live.client import Server
    from sglang_dspark.live.doctor import examine

    found = examine(Server(url, Keys.given(api_key, admin_api_key)))
    if as_json:
        shown = {"url": url, "healthy": all(one.healthy for one in found), "replicas": [one.as_json() for one in found]}
        typer.echo(msgspec.json.format(msgspec.json.encode(shown), indent=1).decode())
    else:
        for one in found:
            where = f"replica {one.replica}: " if len(found) > 1 else ""
            typer.echo(f"{where}{one.on}")
            for finding in one.findings:
                typer.echo(f"  {_MARKS[finding.level]:<8} {finding.says}")
                if finding.do:
                    typer.echo(f"  {'':<8} -> {finding.do}")
    if not all(one.healthy for one in found):
        raise typer.Exit(1)
