"""The `simulate` command."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from sglang_dspark.command import Application, Version, gathered, run
from sglang_dspark.errors import InputError
from sglang_dspark.policies import Policy, make_policy
from simulator.baselines import lineup
from simulator.drafter_command import compared_by_flags, refuse_with_drafters
from simulator.drafter_comparison import DrafterComparison
from simulator.drafter_report import drafters_json, drafters_lines, plot_drafters, print_drafters
from simulator.engine.run import Setting
from simulator.flags.acceptance import AcceptanceFlags, refuse_unread_confidence
from simulator.flags.cluster import ClusterFlags
from simulator.flags.engine import EngineFlags
from simulator.flags.load import LoadFlags
from simulator.inputs import prepare
from simulator.policy_files import tuned_elsewhere
from simulator.progress import Teller, progress
from simulator.report.page import check_page
from simulator.reporting import story_of_comparison, story_of_sweep, write_report
from simulator.results.comparison import Comparison
from simulator.results.plot import check_plot
from simulator.results.report import json_lines, json_report, print_report
from simulator.results.screen import print_screen
from simulator.results.timeline import write_timeline
from simulator.run_store import RunStore
from simulator.sensitivity import check_sensitivity
from simulator.sensitivity import sensitivity as vary
from simulator.simulate import check_runs, compare_policies
from simulator.sustainable import check_find_rate, sustainable_rates
from simulator.sweep import Sweep, sweep
from simulator.sweep_report import print_sweep, sweep_json, sweep_lines

app = Application()
_WIDE = 160

PANEL = "Output"


@dataclass(frozen=True)
class OutputFlags:
    """Where results go, and how much of them is shown."""

    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "--output-file",
            help="append JSON lines, one a policy, bench_serving's keys; - is stdout",
            rich_help_panel=PANEL,
        ),
    ] = None
    plot: Annotated[Path | None, typer.Option(help="picture, .svg or .png", rich_help_panel=PANEL)] = None
    report: Annotated[
        Path | None,
        typer.Option(
            help="one self-contained HTML page: answer, charts, explorer (extra `report`)", rich_help_panel=PANEL
        ),
    ] = None
    timeline: Annotated[
        Path | None, typer.Option(help="Chrome trace for ui.perfetto.dev (.json or .json.gz)", rich_help_panel=PANEL)
    ] = None
    wide: Annotated[bool, typer.Option("--wide", help="all columns of the table", rich_help_panel=PANEL)] = False
    verbose: Annotated[
        bool, typer.Option("--verbose", help="every assumption, what is measured in", rich_help_panel=PANEL)
    ] = False
    json: Annotated[
        bool, typer.Option("--json", help="everything as JSON on stdout instead of a table", rich_help_panel=PANEL)
    ] = False

    def check(self) -> None:
        """Find out before the work that a result has nowhere to go."""
        named = {"output": self.output and Path(self.output), "timeline": self.timeline, "report": self.report}
        for (one, path), (other, same) in combinations(named.items(), 2):
            if path is not None and path == same:
                raise InputError(f"--{one} and --{other} name the same file {path}: give two")
        if self.output == "-" and self.json:
            raise InputError("--output - and --json both write to standard output: give one of them")
        if self.json and (self.wide or self.verbose):
            raise InputError(f"--{'wide' if self.wide else 'verbose'} does nothing with --json, which has everything")
        files = [Path(self.output)] if self.output not in (None, "-") else []
        for path in (*files, self.timeline, self.plot, self.report):
            _check_target(path)
        if self.report is not None:
            check_page(self.report)
        if self.plot is not None:
            check_plot(self.plot)

    def deliver(self, lines: bytes, report: bytes) -> bool:
        """Write lines and JSON where they go; whether a table is wanted too."""
        if self.output == "-":
            sys.stdout.write(lines.decode())
        elif self.output is not None:
            _append(Path(self.output), lines)
        if self.json:
            sys.stdout.write(report.decode() + "\n")
        return not self.json

    @property
    def console(self) -> Console:
        """Where the table goes."""
        console = Console(stderr=self.output == "-")
        return Console(stderr=self.output == "-", width=_WIDE) if self.wide and not console.is_terminal else console


@app.command(no_args_is_help=True)
@gathered
def command(
    load: LoadFlags,
    engine: EngineFlags,
    acceptance: AcceptanceFlags,
    output: OutputFlags,
    cluster: ClusterFlags,
    policy: Annotated[
        list[str] | None,
        typer.Option(
            help="policy such as hull:fill=true or a JSON file; repeat to compare (default: no speculation, best fixed "
            "length, every token verified, hull, argmax:lag=2, self-tuning)",
            rich_help_panel="Policies",
        ),
    ] = None,
    only: Annotated[
        bool,
        typer.Option(
            "--only", help="these policies alone, without none and the best fixed length", rich_help_panel="Policies"
        ),
    ] = False,
    find_rate: Annotated[
        float | None, typer.Option(help="find the highest rate at which this share of requests meets --goodput")
    ] = None,
    sensitivity: Annotated[
        bool, typer.Option("--sensitivity", help="vary one assumption at a time: which of them flips the verdict?")
    ] = False,
    replications: Annotated[int | None, typer.Option(help="sets of draws (default: 5, or one a window)")] = None,
    seed: Annotated[int, typer.Option(help="of every draw")] = 0,
    jobs: Annotated[int | None, typer.Option(help="processes (default: one a core)")] = None,
    resume: Annotated[
        Path | None,
        typer.Option(help="keep finished runs in this file; the same command then goes on where it stopped"),
    ] = None,
    version: Version = False,
) -> None:
    """Which verification policy to switch on, and what it gains: a load is served under several, on the same draws.

    \b
    Which policy, at 64 requests in flight?
      simulate --trace requests.csv --profile vllm-b300-dsv4-flash \\
          --concurrency 64
    From which load on? One table, a picture, crossovers in words:
      simulate --trace requests.csv --profile vllm-b300-dsv4-flash \\
          --concurrency 8,32,64,128,200 --plot gains.svg
    Your own acceptance, and a latency limit instead of throughput:
      simulate --trace requests.csv --profile mine.json --acceptance 0.8,0.7,0.6 \\
          --request-rate 4 --goodput ttft:500 --goodput tpot:50
    One drafter against others, at matched speed and at matched throughput:
      simulate --trace requests.csv --profile vllm-b300-dsv4-flash \\
          --drafter all --concurrency 8,16,32,64,128
    No trace at hand:
      simulate --random-input-len 1000 --random-output-len 200 \\
          --profile vllm-b300-dsv4-flash --concurrency 64
    """
    output.check()
    cluster.check("--jobs", jobs)
    if len(acceptance.drafters) > 1:
        given = {
            "timeline": output.timeline,
            "report": output.report,
            "find-rate": find_rate,
            "sensitivity": sensitivity or None,
        }
        refuse_with_drafters({**given, "only": only or None, "request-rate": load.request_rate}, policy or [])
        drafters = compared_by_flags(load, engine, acceptance, cluster, policy or [], replications, seed, jobs, resume)
        _deliver_drafters(drafters, output)
        return
    settings = _settings(load, engine, acceptance, seed)
    several = len(settings) > 1
    for flag, value in {
        "timeline": output.timeline,
        "find-rate": find_rate,
        "sensitivity": sensitivity or None,
    }.items():
        if several and value is not None:
            raise InputError(f"--{flag} looks at one load, and {len(settings)} are given: give one")
    if only and not policy:
        raise InputError("--only does nothing without --policy")
    asked = [make_policy(text) for text in policy or ()]
    if asked:
        engine.refuse_unread(asked)
        refuse_unread_confidence(asked, acceptance.confidence)
    if find_rate is not None:
        check_find_rate(settings[0], find_rate)
    count = replications if replications is not None else max(5, load.windows) if load.windows == 1 else load.windows
    check_runs(asked or [None], load.windows, count, jobs)  # type: ignore[list-item]
    store = None if resume is None else RunStore(resume)
    notes = tuned_elsewhere(policy or (), settings[0])
    if several:
        with cluster.hire() as hire, progress("simulating") as told:

            def on_load(what: str) -> Teller:
                told.says(what)
                return told

            workers = hire or jobs
            found = sweep(settings, asked, only=only, replications=count, jobs=workers, on_load=on_load, store=store)
            if output.report is not None:
                told.says("counting for the report")
                story = story_of_sweep(settings, found, [load.trace, engine.profile, *(policy or ())], notes)
                write_report(output.report, story, workers, told)
        _deliver_sweep(found, output, notes)
        return
    (setting,) = settings
    policies: Sequence[Policy] = asked
    with cluster.hire() as hire:
        workers = hire or jobs
        with progress("choosing a fixed length") as told:
            if not only:
                each = lineup(setting, asked, jobs=workers, on_progress=told, store=store)
                policies, notes = each.policies, (*each.left_out, *notes)
            if sensitivity:
                check_sensitivity(policies)
            told.says("simulating")
            comparison = compare_policies(
                setting, policies, replications=count, jobs=workers, on_progress=told, store=store
            )
        if find_rate is not None:
            rates = sustainable_rates(setting, policies, find_rate, comparison.setting["replications"], workers)
            stated = {**comparison.setting, "find_rate": find_rate}
            comparison = replace(comparison, sustainable=rates, setting=stated)
        if sensitivity:
            comparison = replace(comparison, sensitivity=vary(setting, policies, comparison, workers))
        if output.report is not None:
            with progress("counting for the report") as told:
                story = story_of_comparison(setting, comparison, [load.trace, engine.profile, *(policy or ())], notes)
                write_report(output.report, story, workers, told)
    if output.timeline is not None:
        write_timeline(output.timeline, setting, list(policies))
    _deliver(comparison, output, notes)


def main() -> None:
    """Entry point of the `simulate` command."""
    run(app)


def _settings(load: LoadFlags, engine: EngineFlags, acceptance: AcceptanceFlags, seed: int) -> list[Setting]:
    """What the flags ask for, one setting a load."""
    requests = load.requests(seed, acceptance.gamma)
    serving = engine.engine(requests)
    drafts, mix = acceptance.read(requests, load.domains)
    return [prepare(each, serving, drafts, seed=seed) for each in load.loads(requests, mix)]


def _deliver_drafters(found: DrafterComparison, output: OutputFlags) -> None:
    if output.plot is not None:
        plot_drafters(found, output.plot)
    if output.deliver(drafters_lines(found), drafters_json(found)):
        print_drafters(found, output.console, verbose=output.verbose)


def _deliver(comparison: Comparison, output: OutputFlags, notes: tuple[str, ...]) -> None:
    if output.plot is not None:
        comparison.plot(output.plot)
    if not output.deliver(json_lines(comparison), json_report(comparison)):
        return
    if output.wide or output.verbose:
        print_report(comparison, output.console, notes, wide=output.wide)
    else:
        print_screen(comparison, output.console, notes)


def _deliver_sweep(found: Sweep, output: OutputFlags, notes: tuple[str, ...]) -> None:
    if output.plot is not None:
        found.plot(output.plot)
    if not output.deliver(sweep_lines(found), sweep_json(found)):
        return
    print_sweep(found, output.console, verbose=output.verbose, notes=notes)


def _append(path: Path, lines: bytes) -> None:
    """Add lines at the end in one write, or nothing. Errors: InputError."""
    before = path.stat().st_size if path.exists() else 0
    try:
        with open(path, "ab") as file:
            file.write(lines)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        if path.exists() and path.stat().st_size > before:
            os.truncate(path, before)
        raise InputError(f"cannot write {path}: {error.strerror}") from error


def _check_target(path: Path | None) -> None:
    if path is None:
        return
    if path.is_dir():
        raise InputError(f"cannot write {path}: is a directory")
    if not path.parent.is_dir():
        raise InputError(f"cannot write {path}: {path.parent} is no directory")
