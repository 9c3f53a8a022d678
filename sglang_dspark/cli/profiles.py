"""`dspark profiles`: the step-cost profiles that can be named, their provenance and what is assumed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer
from rich import box
from rich.console import Console
from rich.table import Table

from sglang_dspark.cli.app import app

if TYPE_CHECKING:
    from sglang_dspark.cost import StepCost
    from sglang_dspark.cost.curves import Curve


@app.command("profiles")
def profiles(
    profile: Annotated[
        list[str] | None, typer.Argument(help="Profiles by name or file, in full (default: a line each that ships).")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """List step-cost profiles, measured and estimated; of named ones provenance, sizes and assumptions."""
    from sglang_dspark.cost import load_profile, profile_names

    models = {name: load_profile(name) for name in profile or profile_names()}
    if json:
        document = [_document(name, model) for name, model in models.items()]
        typer.echo(msgspec.json.format(msgspec.json.encode(document), indent=1).decode())
        return
    console = Console()
    if not profile:
        console.print(_overview(models))
        return
    for name, model in models.items():
        console.print(_table(name, model))


def _overview(models: dict[str, StepCost]) -> Table:
    """A line each: whether it was measured, on what; and how far off the estimates may be."""
    from sglang_dspark.cost.estimate.accuracy import error_band

    table = Table("", "name", "hardware", box=box.SIMPLE)
    for column in table.columns:
        column.no_wrap = True
    for name, model in models.items():
        kind, style = ("estimate", "dim") if model.is_estimate else ("MEASURED", "bold")
        table.add_row(kind, name, str(model.meta.get("hardware", "")), style=style)
    if any(model.is_estimate for model in models.values()):
        table.caption, table.caption_justify = error_band().text, "left"
    return table


def _document(name: str, model: StepCost) -> dict[str, Any]:
    """One profile in plain values."""
    return {
        "name": name,
        "estimate": model.is_estimate,
        "form": model.form,
        "provenance": model.meta,
        "verify_probes": _span(model.verify),
        "draft_probes": _span(model.draft) if model.splits_draft else None,
        "captured_tokens": None if model.captured is None else model.captured.tolist(),
        "captured_requests": model.captured_requests,
        "eager_cliff": model.eager is not None,
        "diagonal": model.diagonal,
        "diagonal_gamma": model.diagonal_gamma,
        "terms": model.terms,
        "assumptions": [assumption.as_json() for assumption in model.assumptions],
    }


def _span(curve: Curve) -> dict[str, int]:
    """What was measured; a probe beyond is where a straight line leads."""
    first, last = curve.span
    return {"count": int((curve.probes <= last).sum()), "first": first, "last": last}


def _table(name: str, model: StepCost) -> Table:
    """Two columns: what, and its value."""
    from sglang_dspark.cost import keys_of

    table = Table(title=name, title_justify="left", box=box.SIMPLE, show_header=False)
    table.add_column("what", style="bold", no_wrap=True)
    table.add_column("value", overflow="fold")
    for key, value in model.meta.items():
        if key == "assumed":
            continue  # below, with all other assumptions
        table.add_row(key.replace("_", " "), str(value))
    if not model.meta:
        table.add_row("provenance", "none in the file")
    for what, value in _sizes(model).items():
        table.add_row(what, value)
    stated = keys_of(model.assumptions)
    measured = [f"{term} = {value:.3g}" for term, value in model.terms.items() if term not in stated]
    if measured:
        table.add_row("terms", "\n".join(measured))
    table.add_row("assumptions", "\n".join(assumption.text for assumption in model.assumptions) or "none")
    return table


def _sizes(model: StepCost) -> dict[str, str]:
    """What was measured, in words."""
    verify = _span(model.verify)
    found = {"form": model.form, "verify": f"{verify['count']} probes, {verify['first']}..{verify['last']} tokens"}
    if model.splits_draft:
        draft = _span(model.draft)
        found["draft"] = f"{draft['count']} probes, {draft['first']}..{draft['last']} requests"
    else:
        found["draft"] = "not measured apart from verify"
    if model.captured is None:
        found["graph sizes"] = "not in the file"
    else:
        found["graph sizes"] = f"{model.captured.size}, up to {int(model.captured[-1])} tokens"
    if model.captured_requests is not None:
        found["graph sizes"] += f" and {model.captured_requests} requests"
    found["eager tail"] = "measured" if model.eager is not None else "not measured"
    if model.diagonal:
        gamma = "unknown" if model.diagonal_gamma is None else model.diagonal_gamma
        found["diagonal"] = f"measured only at B = R (1 + gamma), gamma {gamma}: refused for other B unless forced"
    return found
