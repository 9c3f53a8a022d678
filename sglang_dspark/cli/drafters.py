"""`dspark drafters`: whose acceptance `simulate --drafter` can take, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer
from rich import box
from rich.console import Console
from rich.table import Table

from sglang_dspark.cli.app import app

if TYPE_CHECKING:
    from simulator.blocks.drafters import Drafter


@app.command("drafters")
def drafters(
    drafter: Annotated[
        list[str] | None,
        typer.Argument(help="Drafters by name, or files as for `simulate --acceptance` (default: all)."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """List drafters: model, block size, accepted length by domain, and where the figures come from."""
    found = _found(drafter or [])
    if json:
        document = [_document(each) for each in found]
        typer.echo(msgspec.json.format(msgspec.json.encode(document), indent=1).decode())
        return
    console = Console()
    if not drafter:
        console.print(_table(found))
    for each in found if drafter else ():
        console.print(f"{each.name}: {each.origin.text}", highlight=False, markup=False)
        console.print(_positions(each))
        for said in (*(assumption.text for assumption in each.assumptions), each.ends):
            console.print(said, end="\n" if said else "", highlight=False, markup=False)


def _found(names: list[str]) -> list[Drafter]:
    from simulator.blocks.drafters import DRAFTERS, PUBLISHED, find_drafter
    from simulator.blocks.own import own_drafter

    return [find_drafter(name) if name in DRAFTERS else own_drafter(name) for name in names] or list(PUBLISHED.values())


def _short(drafter: Drafter) -> str:
    """Its short name, if it has one."""
    from simulator.blocks.drafters import ALIASES

    names = [short for short, each in ALIASES.items() if each.name == drafter.name]
    return names[0] if names else ""


def _document(drafter: Drafter) -> dict[str, Any]:
    return {
        "name": drafter.name,
        "short_name": _short(drafter) or None,
        "gamma": drafter.gamma,
        "confidence_head": drafter.has_confidence,
        "draft_scale": drafter.cost_scale,
        "sequential": drafter.method.sequential,
        **drafter.stated(),
        "assumptions": [assumption.as_json() for assumption in drafter.assumptions],
        "ends": drafter.ends or None,
    }


def _table(found: list[Drafter]) -> Table:
    from simulator.blocks.survival import accept_length

    table = Table(box=box.SIMPLE)
    for name in ("name", "model", "gamma", "accepted length (bonus included)", "source"):
        table.add_column(name, overflow="fold", no_wrap=name in ("name", "gamma"))
    for each in found:
        lengths = ", ".join(f"{domain} {accept_length(values):.2f}" for domain, values in each.acceptance.items())
        name = f"{each.name} = {_short(each)}" if _short(each) else each.name
        table.add_row(name, each.origin.model or "not named", str(each.gamma), lengths, each.origin.source)
    table.caption = "`dspark drafters NAME` shows positions; `simulate --acceptance` takes your own"
    return table


def _positions(drafter: Drafter) -> Table:
    table = Table(box=box.SIMPLE)
    table.add_column("conditional acceptance at")
    for position in range(1, drafter.gamma + 1):
        table.add_column(str(position), justify="right")
    for domain, values in drafter.acceptance.items():
        table.add_row(domain, *(f"{value:.3f}" for value in values))
    return table
