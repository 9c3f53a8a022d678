"""`dspark eval`: accepted length, acceptance by position and confidence quality of a running server on prompt files."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from sglang_dspark.cli.app import AdminApiKey, ApiKey, app
from sglang_dspark.keys import Keys

if TYPE_CHECKING:
    from rich.table import Table

    from sglang_dspark.live.evaluate import Evaluation


@app.command("eval")
def evaluate(
    prompts: Annotated[
        list[Path], typer.Option(help="Prompt file ({'turns': [...]} lines), one data set; repeatable.")
    ],
    url: Annotated[str, typer.Option(help="The server.")] = "http://localhost:30000",
    records: Annotated[
        Path | None, typer.Option(help="The folder that the server records into, for positions and confidences.")
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, max=4096, help="Requests in flight.")] = 8,
    max_new_tokens: Annotated[int, typer.Option(min=2, help="Most tokens of an answer.")] = 256,
    temperature: Annotated[float, typer.Option(min=0.0, help="Sampling temperature.")] = 1.0,
    limit: Annotated[int | None, typer.Option(min=1, help="Prompts of each file (default: all).")] = None,
    out: Annotated[Path | None, typer.Option(help="Write everything as JSON to this file.")] = None,
    api_key: ApiKey = None,
    admin_api_key: AdminApiKey = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Send prompt files and print, per data set, what the paper prints: Table 1 and Figures 2, 5 and 6.

    The server verifies every block in full meanwhile, and gets its policy back afterwards.
    """
    from rich.console import Console
    from rich.progress import Progress

    from sglang_dspark.cost import write_atomically
    from sglang_dspark.live.client import Server
    from sglang_dspark.live.evaluate import EvalSettings
    from sglang_dspark.live.evaluate import evaluate as run

    server = Server(url, Keys.given(api_key, admin_api_key))
    settings = EvalSettings(concurrency, max_new_tokens, temperature, limit=limit)
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("answers", total=None)
        results = run(server, prompts, settings, records, lambda answer: bar.advance(task))
    data = msgspec.json.format(msgspec.json.encode([dataclasses.asdict(result) for result in results]), indent=1)
    if out is not None:
        write_atomically(out, data)
    if as_json:
        typer.echo(data.decode())
        return
    console = Console()
    console.print(_lengths(results))
    if any(result.quality is None for result in results):
        console.print(
            "positions and confidences: give --records DIR (the server's --speculative-dspark-record folder)",
            highlight=False,
        )
    for result in results:
        if result.quality is not None:
            console.print(_positions(result))
            if result.quality.sweep:
                console.print(_sweep(result))


def _table(title: str, columns: tuple[str, ...]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE, title=title)
    for name in columns:
        table.add_column(name, justify="right")
    return table


def _lengths(results: list[Evaluation]) -> Table:
    table = _table("accepted length, bonus included", ("data set", "answers", "tokens", "accepted", "seconds"))
    for result in results:
        length = "-" if math.isnan(result.accept_length) else f"{result.accept_length:.3f}"
        table.add_row(result.name, str(result.requests), str(result.output_tokens), length, f"{result.seconds:.0f}")
    return table


def _positions(result: Evaluation) -> Table:
    found = result.quality
    assert found is not None
    names = ("position", "conditional", "survival", "predicted", "ECE", "AUC")
    table = _table(f"{result.name}: {found.blocks} full blocks", names)
    for index, (conditional, survival) in enumerate(zip(found.conditional, found.survival, strict=True)):
        more = ("-", "-", "-")
        if found.predicted:
            more = (f"{found.predicted[index]:.3f}", f"{found.ece[index]:.2%}", f"{found.auc[index]:.3f}")
        table.add_row(str(index + 1), f"{conditional:.3f}", f"{survival:.3f}", *more)
    return table


def _sweep(result: Evaluation) -> Table:
    assert result.quality is not None
    table = _table(f"{result.name}: verify until a confidence below", ("threshold", "accepted", "rejected", "rate"))
    for point in result.quality.sweep[::2]:
        table.add_row(
            f"{point.threshold:.2f}",
            f"{point.accept_length:.3f}",
            f"{point.rejected:.3f}",
            f"{point.acceptance_rate:.3f}",
        )
    return table
