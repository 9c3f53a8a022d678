"""`dspark calibrate`: fit sequential temperature scaling on records, and say what it is worth."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from sglang_dspark.cli.app import app
from sglang_dspark.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

    from sglang_dspark.calibration import Calibration, Samples


@app.command("calibrate")
def calibrate(
    records: Annotated[list[Path], typer.Argument(help="Record files or folders, or SGLang's own STS shards (.pt).")],
    out: Annotated[Path, typer.Option(help="STS file to write; plain SGLang loads it too.")],
    plot: Annotated[Path | None, typer.Option(help="Write the reliability diagrams to this .svg file.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the held-out split.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Fit the temperatures of the confidence head left to right, judged on requests that were held out.

    Only blocks that were verified in full are used. When nothing is gained, the temperatures in use are written again.
    """
    from rich.console import Console

    from sglang_dspark.calibration import StsFile, write_sts
    from sglang_dspark.calibration import calibrate as fit
    from sglang_dspark.calibration.diagram import diagrams, write_svg

    if plot is not None and plot.suffix != ".svg":
        raise InputError(f"--plot {plot}: expected a file ending in .svg")
    samples, notes = _samples(records)
    result = fit(samples, seed)
    before = [position.ece_before for position in result.positions]
    after = [position.ece_after for position in result.positions]
    meta: dict[str, str | float | int | bool] = {"improved": result.improved, "held_out_blocks": result.held_out}
    names = " ".join(path.name for path in records)
    write_sts(out, StsFile(result.temperatures, names, result.blocks, before, after, meta))
    if plot is not None:
        write_svg(plot, result)
    if as_json:
        shown = {key: value for key, value in dataclasses.asdict(result).items() if not key.startswith("reliability")}
        typer.echo(msgspec.json.format(msgspec.json.encode({**shown, "notes": notes}), indent=1).decode())
        return
    console = Console()
    _print_tables(console, result)
    console.print(diagrams(result))
    for note in [*notes, *_warnings(result), _verdict(result, out)]:
        console.print(note, highlight=False, soft_wrap=True)


def _samples(paths: list[Path]) -> tuple[Samples, list[str]]:
    from sglang_dspark.calibration import read_shards, samples_of_blocks, samples_of_shards
    from sglang_dspark.records import RecordSet
    from sglang_dspark.records.blocks import uncensored_blocks

    shards = [path for path in paths if path.suffix == ".pt"]
    if shards:
        if len(shards) != len(paths):
            raise InputError("records and .pt shards cannot be mixed, expected one kind")
        note = "SGLang's shards label drafts by greedy matches: they fit temperature 0 and no other"
        return samples_of_shards(read_shards(shards)), [note]
    records = RecordSet(paths)
    blocks = uncensored_blocks(records)
    notes = [str(problem) for problem in records.summary.problems]
    used = blocks.steps - blocks.censored
    notes.append(
        f"{blocks.seen} full blocks of {used} steps; {blocks.censored} trimmed steps are censored and not used"
    )
    if blocks.by_policy and blocks.censored:
        notes.append(
            f"warning: {blocks.by_policy} of the used steps were verified in full because the policy chose so: their "
            "blocks may not be typical; --speculative-dspark-explore draws them by a coin"
        )
    return samples_of_blocks(blocks), notes


def _print_tables(console: Console, result: Calibration) -> None:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE, title=f"{result.blocks} blocks, {result.held_out} of them held out")
    for name in ("position", "T", "ECE before", "ECE after", "AUC", "predicted", "observed"):
        table.add_column(name, justify="right")
    for number, position in enumerate(result.positions, start=1):
        table.add_row(
            str(number),
            f"{position.temperature:.3f}",
            f"{position.ece_before:.2%}",
            f"{position.ece_after:.2%}",
            f"{position.auc:.3f}",
            f"{position.predicted:.3f}",
            f"{position.observed:.3f}",
        )
    console.print(table)
    table = Table(box=box.SIMPLE, title="mean ECE over positions by sampling temperature")
    for name in ("temperature", "blocks", "before", "after", "own vector"):
        table.add_column(name, justify="right")
    for group in result.groups:
        own = "too few blocks" if math.isnan(group.ece_own) else f"{group.ece_own:.2%}"
        table.add_row(group.name, str(group.blocks), f"{group.ece_before:.2%}", f"{group.ece_after:.2%}", own)
    console.print(table)


def _warnings(result: Calibration) -> list[str]:
    return [
        f"warning: one vector serves temperature {group.name} badly: mean ECE {group.ece_after:.2%}, "
        f"{group.ece_own:.2%} with a vector of its own"
        for group in result.groups
        if group.fits_badly
    ]


def _verdict(result: Calibration, out: Path) -> str:
    interval = f"95 % interval of the gain {100 * result.gain_low:+.2f} to {100 * result.gain_high:+.2f} points"
    if result.improved:
        return f"held-out mean ECE falls by {100 * result.gain:.2f} points ({interval}); wrote {out}"
    return f"no improvement: held-out mean ECE ({interval}); wrote the temperatures that are in use to {out}"
