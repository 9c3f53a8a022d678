"""`dspark compare`: replay recorded decisions, and predict recorded figures from other loads."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from sglang_dspark.cli.app import app
from sglang_dspark.errors import InputError

if TYPE_CHECKING:
    from simulator.results.prediction import Prediction


@app.command("compare")
def compare(
    records: Annotated[list[Path], typer.Argument(help="Record files or folders of the load to compare.")],
    fit: Annotated[
        list[Path] | None,
        typer.Option(help="Records that give the step costs; compared requests are left out."),
    ] = None,
    acceptance: Annotated[
        list[Path] | None, typer.Option(help="Records that give the acceptance. Default: those compared.")
    ] = None,
    concurrency: Annotated[
        int | None, typer.Option(help="Compare only the stretches of load with so many requests in flight.")
    ] = None,
    under: Annotated[str | None, typer.Option(help="Compare only the stretches that ran under this policy.")] = None,
    policy: Annotated[str | None, typer.Option(help="Simulate this policy instead of the recorded one.")] = None,
    complete: Annotated[
        bool, typer.Option("--complete", help="Draw what trimmed blocks hide from their confidences (calibrated ones).")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Decisions: every recorded step is decided again and must come out equal (exit status 1 if not).

    Figures (with --fit): the load is simulated with costs of other loads, and set against what was measured.
    """
    from sglang_dspark.policies import make_policy
    from sglang_dspark.records import RecordSet
    from sglang_dspark.records.replay import replay

    if not fit:
        idle = {"acceptance": acceptance, "concurrency": concurrency, "under": under, "policy": policy}
        _refuse_idle(**idle, complete=complete or None)
    chosen, recorded = (None if text is None else make_policy(text) for text in (policy, under))
    measured = RecordSet(records)
    decisions = replay(measured)
    problems = [str(problem) for problem in measured.summary.problems]
    if not measured.summary.runs and problems:
        raise InputError(f"{measured.paths[0]}: no readable record; {problems[0]}")
    prediction = None
    if fit:
        from simulator.results.prediction import predict

        other = RecordSet(acceptance) if acceptance else None
        prediction = predict(
            measured,
            RecordSet(fit),
            acceptance=other,
            concurrency=concurrency,
            under=recorded,
            policy=chosen,
            complete=complete,
        )
    if as_json:
        document: dict[str, Any] = {"decisions": decisions.as_json(), "problems": problems}
        document |= {} if prediction is None else prediction.as_json()
        typer.echo(msgspec.json.format(msgspec.json.encode(document), indent=1).decode())
    else:
        for line in [*problems, *_decision_lines(decisions.as_json())]:
            typer.echo(line)
        if prediction is not None:
            _print(prediction)
        else:
            typer.echo("figures are predicted with --fit RECORDS of other loads, which give the step costs")
    if decisions.different:
        raise typer.Exit(1)


def _refuse_idle(**flags: Any) -> None:
    """A flag that would do nothing is an error."""
    for name, value in flags.items():
        if value is not None:
            raise InputError(f"--{name} does nothing without --fit RECORDS, which predicts figures")


def _decision_lines(decisions: dict[str, Any]) -> list[str]:
    lines = [
        f"decisions: {decisions['equal']} equal, {decisions['different']} different; "
        f"{decisions['verified_all']} steps verified all without a decision"
    ]
    lines += [f"  {count} steps not replayed: {reason}" for reason, count in decisions["skipped"].items()]
    return [*lines, *(f"  {text}" for text in decisions["first"])]


def _print(prediction: Prediction) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from simulator.results.prediction import BOUNDS

    table = Table(box=box.SIMPLE)
    for name in ("figure", "predicted", "measured", "error", "spread", "bound"):
        table.add_column(name, justify="left" if name == "figure" else "right")
    for name, figure in prediction.figures.items():
        bound = BOUNDS.get(name)
        verdict = "" if bound is None else "kept" if figure.within(bound) else "missed"
        spread = "" if math.isnan(figure.spread) else f"{figure.spread:.1%}"
        table.add_row(
            name, f"{figure.predicted:.4g}", f"{figure.measured:.4g}", f"{figure.error:+.1%}", spread, verdict
        )
    console = Console()
    console.print(table)
    fitted = prediction.fitted
    lines = [
        *prediction.notes,
        f"at least {prediction.least_share_drawn:.0%} of the blocks stand at unrecorded anchors and were drawn",
        f"costs from {fitted.steps} steps of other loads ({fitted.left_out} hiccups left out, {fitted.error:.1%} off)",
        *(assumption.text for assumption in fitted.cost.assumptions),
    ]
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)
