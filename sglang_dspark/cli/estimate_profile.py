"""`dspark profile --estimate`: step costs out of kernel times, for a GPU and model that nobody has measured yet."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.text import Text

from sglang_dspark.errors import InputError

if TYPE_CHECKING:
    from sglang_dspark.cost import StepCost
    from sglang_dspark.cost.estimate.asked import Asked

_SHOWN = (1, 8, 32, 64, 128, 256)
_CONTEXT = 1024


def write_estimate(asked: Asked, out: Path) -> None:
    """Write the profile, and print what was priced and what is assumed. Errors: InputError."""
    from sglang_dspark.cost import model_from_table, write_table
    from sglang_dspark.cost.estimate.table import estimate_table

    if out.is_dir() or not out.parent.is_dir():
        raise InputError(f"cannot write {out}: {'is a directory' if out.is_dir() else f'{out.parent} is no directory'}")
    table = estimate_table(asked)
    model = model_from_table(table, out.name.removesuffix(".json"))
    write_table(out, table)
    console = Console(width=160)
    for line in _lines(model, asked):
        console.print(Text(line))
    typer.echo(f"wrote {out}: an estimate; `simulate --profile {out}`, or in one go `simulate --profile {asked.text}`")


def list_known(gpu: str | None) -> None:
    """GPUs, models and precisions with kernel times; of one GPU its precisions alone."""
    from sglang_dspark.cost.estimate import library, models

    for name in [gpu] if gpu else library.gpu_names():
        known = library.gpu_of(name)
        typer.echo(f"{name}: {known.memory_gib:.0f} GiB, tp 1..{known.per_node}")
        for part in ("gemm", "moe", "kv"):
            typer.echo(f"  {part}: {', '.join(library.precisions_of(name, part)) or 'none'}")
    if gpu is None:
        typer.echo(
            "models, by name with or without the owner (or a folder with a config.json of such an architecture):"
        )
        for name in models.known_models():
            typer.echo(f"  {name}")


def _lines(model: StepCost, asked: Asked) -> list[str]:
    meta = model.meta
    precisions = ", ".join(f"{part} {name}" for part, name in meta["precisions"].items())
    fit = meta["fit_error"]
    shown = [count for count in _SHOWN if count <= model.draft.span[1]]
    gamma = int(meta["gamma"])
    steps = []
    for requests in shown:
        draft, context = 1e3 * model.draft_s(requests), requests * _CONTEXT
        one, whole = (1e3 * float(model.verify_s(requests, requests * q, context)) for q in (1, 1 + gamma))
        steps.append(f"  {requests:4d} | {draft:8.2f} | {one:10.2f} | {whole:10.2f}")
    return [
        f"{meta['model']} on {meta['hardware']}: {precisions}; {meta['software']}",
        f"draft: {meta['draft']}",
        f"ms by requests ({_CONTEXT} context tokens each) | draft | verify 1 | verify {1 + gamma} a request",
        *steps,
        f"KV {model.terms['kv_tokens']:,.0f} tokens, of which a draft takes {model.terms['draft_kv_share']:.0%}; the "
        f"terms fit the kernel times within {fit['verify_mean']:.1%} (at most {fit['verify_largest']:.1%})",
        *(f"assumed: {one.text}" for one in model.assumptions),
    ]
