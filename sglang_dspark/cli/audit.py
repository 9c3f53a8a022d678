"""`dspark audit exact`: enumerate the joint output law of policies against the target's, in small random worlds."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer
from rich import box
from rich.console import Console
from rich.progress import Progress, TimeElapsedColumn
from rich.table import Table

from sglang_dspark.cli.app import audit_app
from sglang_dspark.cores import available_cores

if TYPE_CHECKING:
    from sglang_dspark.audit.exact import Verdict


@audit_app.command("exact")
def exact(
    policy: Annotated[
        list[str] | None, typer.Option(help="Policy to audit, such as hull:fill=true; repeatable. Default: every one.")
    ] = None,
    requests: Annotated[int, typer.Option(help="Requests in the batch; one more joins when the first ends.")] = 2,
    gamma: Annotated[int, typer.Option(help="Draft block size.")] = 2,
    vocab: Annotated[int, typer.Option(help="Vocabulary size.")] = 2,
    ranks: Annotated[int, typer.Option(help="2: two DP-attention ranks of such a batch, which share a tier.")] = 1,
    steps: Annotated[int, typer.Option(help="Engine steps, at least the policy's lag + 2.")] = 4,
    instances: Annotated[int, typer.Option(help="Random worlds: target, drafter, confidences, costs, lengths.")] = 200,
    seed: Annotated[int, typer.Option(help="Seed of the worlds.")] = 0,
    jobs: Annotated[int | None, typer.Option(help="Worker processes (default: one a core).")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Enumerate the joint output law of policies over several engine steps and compare it with the target's.

    Exit status 1 if a policy that claims to be lossless is off by more than 1e-9 in total variation.
    """
    from sglang_dspark.audit.exact import TOLERANCE, audit_exactly
    from sglang_dspark.audit.variants import default_policies
    from sglang_dspark.audit.world import Shape
    from sglang_dspark.policies import make_policy

    shape = Shape(requests, gamma, vocab, steps)
    policies = [make_policy(text) for text in policy] if policy else default_policies(requests, gamma)
    columns = (*Progress.get_default_columns(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("enumerating", total=None)
        verdicts = audit_exactly(
            policies,
            shape,
            instances=instances,
            seed=seed,
            ranks=ranks,
            jobs=jobs if jobs is not None else available_cores(),
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    if json:
        settings = {"requests": requests, "gamma": gamma, "vocab": vocab, "steps": steps, "ranks": ranks, "seed": seed}
        document = {**settings, "tolerance": TOLERANCE, "policies": [verdict.as_json() for verdict in verdicts]}
        typer.echo(msgspec.json.format(msgspec.json.encode(document), indent=1).decode())
    else:
        Console().print(_table(verdicts))
        for verdict in verdicts:
            if verdict.not_enumerated:
                typer.echo(f"{verdict.policy} is not enumerated: it {verdict.not_enumerated}")
    failed = [verdict for verdict in verdicts if verdict.fails]
    for verdict in failed:
        where = f"seed {seed}, instance {verdict.worst_instance}"
        typer.echo(f"{verdict.policy} claims to be lossless; worst total variation at {where}", err=True)
    if failed:
        raise typer.Exit(1)


def _table(verdicts: Sequence["Verdict"]) -> Table:
    """One row a policy: `holds` and `FAILS` for those that claim to be lossless, `lossy` for those that do not."""
    table = Table(title="Joint output law against the target's (TV: total variation)", box=box.SIMPLE_HEAD)
    table.add_column("policy", overflow="fold", min_width=24)
    for heading in ("worst TV", "biased", "instances", "time (s)"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for verdict in verdicts:
        if not verdict.not_enumerated:
            numbers = (f"{verdict.worst_tv:.1e}", str(verdict.biased), str(verdict.instances), f"{verdict.seconds:.1f}")
            table.add_row(verdict.policy, *numbers, _verdict(verdict))
    return table


def _verdict(verdict: "Verdict") -> str:
    if verdict.fails:
        return "[red]FAILS[/red]"
    if verdict.claims_lossless:
        return "[green]holds[/green]"
    return "lossy" if verdict.biased else "no bias"
