"""`dspark tune`: from a trace to a policy, judged on what the search never met."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from typing import Annotated

import typer

from sglang_dspark.cli.app import app
from sglang_dspark.command import gathered
from sglang_dspark.errors import InputError
from simulator.flags.acceptance import AcceptanceFlags
from simulator.flags.cluster import ClusterFlags
from simulator.flags.engine import EngineFlags
from simulator.flags.load import LoadFlags

PANEL = "Search"


@app.command("tune", no_args_is_help=True)
@gathered
def tune(
    load: LoadFlags,
    engine: EngineFlags,
    acceptance: AcceptanceFlags,
    cluster: ClusterFlags,
    objective: Annotated[
        list[str] | None,
        typer.Option(
            help="figure to search for: output_throughput, goodput, mean_tpot_ms, p99_ttft_ms, ... (default: "
            "throughput in a closed loop, goodput with --goodput, else mean_e2e_latency_ms); several give a frontier, "
            "the first decides",
            rich_help_panel=PANEL,
        ),
    ] = None,
    space: Annotated[
        Path | None,
        typer.Option(
            help="YAML file of policies, ranges of their parameters, gamma, max_running_requests (default: all "
            "lossless policies)",
            rich_help_panel=PANEL,
        ),
    ] = None,
    trials: Annotated[int, typer.Option(help="candidates to simulate", rich_help_panel=PANEL)] = 200,
    requests: Annotated[
        int, typer.Option(help="requests of a trial; as many after them are held out", rich_help_panel=PANEL)
    ] = 2000,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            "--jobs",
            help="processes; change nothing but the time (default: one a core)",
            rich_help_panel=PANEL,
        ),
    ] = None,
    generation: Annotated[
        int,
        typer.Option(
            help="candidates that are asked for together: the most that are simulated at once; another number is "
            "another search",
            rich_help_panel=PANEL,
        ),
    ] = 20,
    seed: Annotated[int, typer.Option(help="of every draw, and of the search", rich_help_panel=PANEL)] = 0,
    out: Annotated[Path, typer.Option(help="policy file to write", rich_help_panel="Output")] = Path("policy.json"),
    study: Annotated[
        Path | None,
        typer.Option(
            help="SQLite study: kept, and gone on with by the same command (default: beside the policy file)",
            rich_help_panel="Output",
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(
            help="one self-contained HTML page: answer, charts, explorer (extra `report`)", rich_help_panel="Output"
        ),
    ] = None,
    no_robustness: Annotated[
        bool,
        typer.Option("--no-robustness", help="skip the runs under wrong assumptions", rich_help_panel="Output"),
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="every change of the assumptions by itself", rich_help_panel="Output")
    ] = False,
    json: Annotated[
        bool, typer.Option("--json", help="everything as JSON on stdout, all trials included", rich_help_panel="Output")
    ] = False,
) -> None:
    """Search the policy, its parameters, gamma and max-running-requests for a load; needs the extra `tune`.

    \b
      dspark tune --trace requests.csv --profile vllm-b300-dsv4-flash \\
          --concurrency 64
      dspark tune --trace requests.csv --profile mine.json --request-rate 4 \\
          --objective goodput --goodput ttft:500 --goodput tpot:50

    The winner is simulated again on requests and draws that the search never met, against no speculation, the best
    fixed length, every token verified, and SGLang's own rule; if it is not better beyond the noise, the best of those
    is what the policy file holds. Interrupt it anywhere: the same command goes on.
    """
    from rich.console import Console

    from simulator.inputs import prepare
    from simulator.progress import progress
    from simulator.reporting import write_report
    from simulator.tuning.page import story_of_search
    from simulator.tuning.policy_file import write_policy
    from simulator.tuning.report import print_tuned, tuned_json
    from simulator.tuning.tune import tune as search

    study = study or out.with_suffix(".study.db")
    _check(load, out, study, report)
    cluster.check("--workers", workers)
    found = load.requests(seed, acceptance.gamma)
    serving = engine.engine(found)
    drafts, mix = acceptance.read(found, load.domains)
    settings = [prepare(each, serving, drafts, seed=seed) for each in load.loads(found, mix)]
    with _saying_how_to_go_on(study), cluster.hire() as hire, progress("trials", "trials") as told:

        def on_progress(what: str) -> Callable[[int, int], None]:
            told.unit = what.partition(" ")[0]
            told.says(what)
            return told

        tuned = search(
            settings,
            objective=objective or (),
            space=space,
            trials=trials,
            requests=requests,
            workers=workers,
            hire=hire,
            generation=generation,
            study=study,
            robust=not no_robustness,
            on_progress=on_progress,
        )
        write_policy(out, tuned)
        if report is not None:
            told.unit = "requests"
            told.says("counting for the report")
            write_report(
                report, story_of_search(tuned, out, [load.trace, engine.profile, space]), hire or workers, told
            )
    if json:
        sys.stdout.write(tuned_json(tuned, out).decode() + "\n")
        return
    print_tuned(tuned, out, Console(), verbose=verbose)


@contextmanager
def _saying_how_to_go_on(study: Path) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        print(f"interrupted: the same command goes on with {study}", file=sys.stderr)
        raise typer.Exit(130) from None


def _check(load: LoadFlags, out: Path, study: Path, report: Path | None) -> None:
    """What can be refused before anything is read."""
    from simulator.report.page import check_page

    if report is not None:
        check_page(report)
    if load.windows != 1:
        raise InputError("--windows does nothing with dspark tune, which cuts its requests into parts itself")
    for path in (out, study, *([] if report is None else [report])):
        if path.is_dir() or not path.parent.is_dir():
            raise InputError(f"cannot write {path}: {path if path.is_dir() else path.parent} is no place for a file")
    named = {"out": out, "study": study, "report": report}
    for (one, here), (other, there) in combinations(named.items(), 2):
        if here == there:
            raise InputError(f"--{one} and --{other} name the same file {here}: give two")
