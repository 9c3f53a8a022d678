"""`dspark profile`: the step costs of a running server, measured, or of any GPU and model, estimated.

Both write a table that plain SGLang loads too.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from sglang_dspark.cli.app import URL, AdminApiKey, ApiKey, Json, app
from sglang_dspark.errors import InputError
from sglang_dspark.keys import Keys

if TYPE_CHECKING:
    from sglang_dspark.live.client import Server
    from sglang_dspark.live.profiling import Cell


@app.command("profile")
def profile(
    out: Annotated[Path | None, typer.Option(help="Profile file to write (JSON).")] = None,
    url: Annotated[str | None, typer.Option(help=f"The server, without other traffic ({URL}).")] = None,
    batches: Annotated[str | None, typer.Option(help="Batch sizes, separated by / (default: what it decodes).")] = None,
    contexts: Annotated[str | None, typer.Option(help="Prompt lengths in tokens (default: what it holds).")] = None,
    windows: Annotated[int | None, typer.Option(min=1, help="Windows per cell; their median counts (3).")] = None,
    window: Annotated[float | None, typer.Option(min=0.1, help="Seconds of a window (1).")] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=16, help="Tokens that a profiling request generates (4096).")
    ] = None,
    hardware: Annotated[
        str | None, typer.Option(help="Name of the hardware for the file, as in 'NVIDIA H100'.")
    ] = None,
    api_key: ApiKey = None,
    admin_api_key: AdminApiKey = None,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Measure nothing: add up kernel times (extra `estimate`, no network).")
    ] = False,
    known: Annotated[bool, typer.Option("--list", help="With --estimate: GPUs, models and precisions.")] = False,
    gpu: Annotated[str | None, typer.Option(help="GPU of the estimate, such as h100_sxm.")] = None,
    model: Annotated[str | None, typer.Option(help="Its model: a name, or a folder with a config.json.")] = None,
    draft: Annotated[str | None, typer.Option(help="Its draft, likewise (default: an assumed one).")] = None,
    gamma: Annotated[int | None, typer.Option(help="Draft block size (default: the draft's, else 7).")] = None,
    tp: Annotated[int | None, typer.Option(help="Tensor-parallel size (1).")] = None,
    ep: Annotated[int | None, typer.Option(help="Expert-parallel size (1).")] = None,
    gemm: Annotated[str | None, typer.Option(help="Precision of GEMMs (default: the checkpoint's).")] = None,
    moe: Annotated[str | None, typer.Option(help="Precision of experts (default: the checkpoint's).")] = None,
    kv: Annotated[str | None, typer.Option(help="Precision of the KV cache (default: bfloat16; V4: fp8).")] = None,
    data: Annotated[str | None, typer.Option(help="silicon (measured kernels only) or hybrid.")] = None,
    anchor: Annotated[
        list[str] | None, typer.Option(help="Scale to a measured step without speculation, REQUESTS:MS; repeat.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure seconds of a decode step by requests, verified tokens and context, by forcing budgets; or estimate them.

    Takes (batch sizes x budgets x context lengths x windows) windows, and sends its own requests. Budgets end on the
    graph tiers of the server, each of which is measured; without graphs there are 5 a batch size.
    """
    measuring = {
        "url": url,
        "batches": batches,
        "contexts": contexts,
        "windows": windows,
        "window": window,
        "max-new-tokens": max_new_tokens,
        "hardware": hardware,
        "api-key": api_key,
        "admin-api-key": admin_api_key,
    }
    parts = {"draft": draft, "gamma": gamma, "tp": tp, "ep": ep, "gemm": gemm, "moe": moe, "kv": kv, "data": data}
    estimating: dict[str, object] = {"gpu": gpu, "model": model, **parts, "anchor": anchor or None}
    if not estimate:
        _refuse_idle({**estimating, "list": known or None}, "without --estimate")
        if out is None:
            raise InputError("--out is needed: the profile file to write")
        given = {key: value for key, value in (("windows", windows), ("max_new_tokens", max_new_tokens)) if value}
        plan = {**given, **({"window_s": window} if window else {})}
        keys = Keys.given(api_key, admin_api_key)
        _measure(out, url or URL, batches, contexts, plan, hardware, keys, as_json=as_json)
        return
    _refuse_idle({**measuring, "json": as_json or None}, "with --estimate, which measures nothing")
    if known:
        from sglang_dspark.cli.estimate_profile import list_known

        _refuse_idle({**{key: estimating[key] for key in estimating if key != "gpu"}, "out": out}, "with --list")
        list_known(gpu)
        return
    if gpu is None or model is None or out is None:
        raise InputError("--gpu, --model and --out are needed with --estimate (see --list)")
    from sglang_dspark.cli.estimate_profile import write_estimate
    from sglang_dspark.cost.estimate.asked import Anchor, Asked

    chosen = {key: value for key, value in parts.items() if value is not None}
    anchors = tuple(Anchor.of(text) for text in anchor or ())
    write_estimate(Asked(gpu, model, anchors=anchors, **chosen), out)  # type: ignore[arg-type]


def _refuse_idle(flags: Mapping[str, object], why: str) -> None:
    for flag, value in flags.items():
        if value is not None:
            raise InputError(f"--{flag} does nothing {why}")


def _measure(
    out: Path,
    url: str,
    batches: str | None,
    contexts: str | None,
    given: dict[str, Any],
    hardware: str | None,
    keys: Keys,
    *,
    as_json: bool,
) -> None:
    from rich.console import Console

    from sglang_dspark.cost import write_table
    from sglang_dspark.live.cells import Graphs
    from sglang_dspark.live.client import Server
    from sglang_dspark.live.profiling import ProfilePlan, measure, table_of

    server = Server(url, keys)
    plan = ProfilePlan(_integers("--batches", batches), contexts=_integers("--contexts", contexts), **given)
    console = Console(stderr=True)

    def report(cell: Cell) -> None:
        line = (
            f"{cell.requests} requests, {cell.tokens} tokens{_as_executed(cell)}, context {cell.context:.0f}: "
            f"{1e3 * cell.seconds:.2f} ms (spread {cell.spread:.0%}, {cell.steps} steps)"
        )
        console.print(line, highlight=False)

    begun = time.monotonic()
    meta = _provenance(server, hardware)
    cells = measure(
        server, plan, report, lambda number, rounds: console.print(f"round {number} of {rounds}", highlight=False)
    )
    table = table_of(cells, meta, Graphs.of(server.dspark()[0]))
    write_table(out, table)
    assert table.meta is not None
    if as_json:
        found = {"out": str(out), "cells": [dataclasses.asdict(cell) for cell in cells], "meta": table.meta}
        typer.echo(msgspec.json.format(msgspec.json.encode(found), indent=1).decode())
        return
    typer.echo(
        f"wrote {out}: {len(cells)} cells in {time.monotonic() - begun:.0f} s, median spread "
        f"{table.meta['spread']:.1%}, fit off by {table.meta['fit_error']:.1%}, at most "
        f"{table.meta['largest_fit_error']:.1%}"
    )


def _as_executed(cell: Cell) -> str:
    return "" if cell.executed == cell.tokens else f" ({cell.executed} executed)"


def _integers(flag: str, text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
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
