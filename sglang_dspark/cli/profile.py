"""`dspark profile`: measure the step costs of a running server into a table that plain SGLang loads too."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from sglang_dspark.cli.app import URL, Json, app
from sglang_dspark.errors import InputError

if TYPE_CHECKING:
    from sglang_dspark.live.client import Server
    from sglang_dspark.live.profiling import Cell


@app.command("profile")
def profile(
    out: Annotated[Path, typer.Option(help="Profile file to write (JSON).")],
    url: Annotated[str, typer.Option(help="The server, running our policies, without other traffic.")] = URL,
    batches: Annotated[str, typer.Option(help="Batch sizes, separated by /.")] = "1/2/4/8/16/32",
    contexts: Annotated[str, typer.Option(help="Prompt lengths in tokens, separated by /.")] = "64/512",
    windows: Annotated[int, typer.Option(min=1, help="Windows per cell; their median counts.")] = 3,
    window: Annotated[float, typer.Option(min=0.1, help="Seconds of a window.")] = 1.0,
    max_new_tokens: Annotated[int, typer.Option(min=16, help="Tokens that a profiling request generates.")] = 2048,
    hardware: Annotated[
        str | None, typer.Option(help="Name of the hardware for the file, as in 'NVIDIA H100'.")
    ] = None,
    api_key: Annotated[str | None, typer.Option(help="Admin key (default: SGLANG_ADMIN_API_KEY).")] = None,
    as_json: Json = False,
) -> None:
    """Measure seconds of a decode step by requests, verified tokens and context, by forcing budgets.

    Takes (batch sizes x 5 budgets x context lengths x windows) windows, and sends its own requests.
    """
    from rich.console import Console

    from sglang_dspark.cost import write_table
    from sglang_dspark.live.client import Server
    from sglang_dspark.live.profiling import ProfilePlan, measure, table_of

    server = Server(url, api_key) if api_key else Server(url)
    plan = ProfilePlan(
        batches=_integers("--batches", batches),
        contexts=_integers("--contexts", contexts),
        windows=windows,
        window_s=window,
        max_new_tokens=max_new_tokens,
    )
    console = Console(stderr=True)

    def report(cell: Cell) -> None:
        line = (
            f"{cell.requests} requests, {cell.tokens} tokens, context {cell.context:.0f}: "
            f"{1e3 * cell.seconds:.2f} ms (spread {cell.spread:.0%}, {cell.steps} steps)"
        )
        console.print(line, highlight=False)

    begun = time.monotonic()
    meta = _provenance(server, hardware)
    cells = measure(
        server, plan, report, lambda number, rounds: console.print(f"round {number} of {rounds}", highlight=False)
    )
    table = table_of(cells, meta)
    write_table(out, table)
    assert table.meta is not None
    if as_json:
        found = {"out": str(out), "cells": [dataclasses.asdict(cell) for cell in cells], "meta": table.meta}
        typer.echo(msgspec.json.format(msgspec.json.encode(found), indent=1).decode())
        return
    typer.echo(
        f"wrote {out}: {len(cells)} cells in {time.monotonic() - begun:.0f} s, median spread "
        f"{table.meta['spread']:.1%}, fit off by {table.meta['fit_error']:.1%}"
    )


def _integers(flag: str, text: str) -> tuple[int, ...]:
    try:
        values = tuple(int(item) for item in text.split("/"))
    except ValueError:
        values = ()
    if not values or min(values) < 1 or list(values) != sorted(set(values)):
        raise InputError(f"{flag} {text} is refused, expected increasing integers from 1, such as 1/2/4")
    return values


def _provenance(server: Server, hardware: str | None) -> dict[str, Any]:
    from sglang_dspark import __version__
    from sglang_dspark.live.profiling import machine_of

    info = server.get("/server_info")
    keys = ("tp_size", "dtype", "attention_backend", "max_running_requests", "disable_overlap_schedule", "device")
    meta = {key: info[key] for key in keys if info.get(key) is not None}
    state = server.dspark()[0]
    return {
        "hardware": hardware or _local_hardware(str(info.get("device", ""))),
        "model": Path(str(info.get("model_path", ""))).name,
        "software": f"sglang {info.get('version', 'unknown')}, sglang-dspark {__version__}",
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "schedule": state.get("schedule"),
        "mode": state.get("mode"),
        **machine_of(state),
        **meta,
    }


def _local_hardware(device: str) -> str:
    """The name that the server's own check expects, where it can be known from here."""
    if device == "cpu":
        import platform

        return f"cpu ({platform.machine()})"
    raise InputError("give the server's accelerator with --hardware, such as --hardware 'NVIDIA H100'")
