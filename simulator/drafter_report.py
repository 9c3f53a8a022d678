"""A comparison of drafters for people (80 columns), for scripts, and as a picture."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from simulator.drafter_comparison import DrafterComparison
from simulator.results.paired import Paired
from simulator.results.plot import plot_frontiers
from simulator.results.report import json_lines, plain_report
from simulator.results.screen import print_accuracy, print_assumed

_NAME_WIDTH, _CELL_WIDTH = 24, 10
_KIND = 30  # letters that tell warnings of one kind: one of them is shown


def print_drafters(
    found: DrafterComparison, console: Console, *, verbose: bool = False, notes: tuple[str, ...] = ()
) -> None:
    """Throughput and speed by load, the gains at matched speed and throughput, what makes them doubtful."""
    setting, base = found.comparisons[0][0].setting, found.base
    console.print(
        Text(
            f"{setting['requests']:,} requests of {setting['trace']}; step costs of {setting['profile']}; "
            f"{setting['replications']} replications a load"
        )
    )
    frontiers = {name: found.frontier(name) for name in found.drafters}
    loads = [f"{load}" for load in found.loads]
    _print(console, "in flight: tok/s", loads, found, lambda name, at: f"{frontiers[name].throughput[at]:,.0f}")
    _print(console, "in flight: tok/s a user", loads, found, lambda name, at: f"{frontiers[name].speed[at]:,.1f}")
    speeds = [f"{speed:,.1f}" for speed in frontiers[base].speed]
    rates = [f"{rate:,.0f}" for rate in frontiers[base].throughput]
    for heads, what, gain in (
        (speeds, "tok/s a user: throughput", found.more_throughput),
        (rates, "tok/s: speed of a user", found.more_speed),
    ):
        _print(console, what, heads, found, lambda name, at, of=gain: _cell(name, at, found, of))  # type: ignore[misc]
    console.print(
        Text(
            f"the last two tables: gain over {base} at what {base} gives at each load, above 0 is better; - was not "
            "simulated there (more loads)",
            style="dim",
        )
    )
    every = [each for of in found.comparisons for each in of]
    warnings = {warning[:_KIND]: warning for each in every for warning in each.warnings}.values()
    for sentence in [*found.words(), *_run_under(found), *_whose(found), *warnings, *notes]:
        console.print(Text(sentence))
    print_accuracy(every[0], console)
    assumed = dict.fromkeys(one.text for each in every for one in each.assumptions)
    if not verbose:
        print_assumed(len(assumed), console)
        return
    for text in assumed:
        console.print(Text(f"assumed: {text}", style="dim"))


def _print(
    console: Console, what: str, heads: list[str], found: DrafterComparison, cell: Callable[[str, int], str]
) -> None:
    most = max(1, (console.width - _NAME_WIDTH) // _CELL_WIDTH)
    for begin in range(0, len(heads), most):
        part = range(begin, min(begin + most, len(heads)))
        table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
        table.add_column(what, overflow="fold", min_width=_NAME_WIDTH, max_width=_NAME_WIDTH)
        for at in part:
            table.add_column(heads[at], justify="right", no_wrap=True)
        for name in found.drafters:
            table.add_row(name, *(cell(name, at) for at in part))
        console.print(table)


def _cell(name: str, at: int, found: DrafterComparison, gain: Callable[[str, int], Paired]) -> str:
    if name == found.base:
        return "0"
    mean = gain(name, at).mean
    return "-" if mean != mean else f"{100 * mean:+.1f} %"


def _run_under(found: DrafterComparison) -> list[str]:
    """Which policy each drafter ran under."""
    said = []
    for name in found.drafters:
        policies = found.policies(name)
        kinds = list(dict.fromkeys(policies))
        by_load = ", ".join(f"{policy} at {load}" for policy, load in zip(policies, found.loads, strict=True))
        said.append(f"{name} under {kinds[0] if len(kinds) == 1 else f'the best fixed length: {by_load}'}")
    return ["; ".join(said)]


def _whose(found: DrafterComparison) -> list[str]:
    """A warning where acceptances are of different targets or prompts: then gains are not the drafters' alone."""
    stated = {name: of[0].setting["acceptance"] for name, of in zip(found.drafters, found.comparisons, strict=True)}
    drafting = {name: (each["model"], each["data"]) for name, each in stated.items() if name != "none"}
    if len(set(drafting.values())) < 2:
        return []
    said = "; ".join(f"{name}: {model or 'model not named'}, {data}" for name, (model, data) in drafting.items())
    return [
        "warning: these acceptances are of different targets or prompts, so that a gain is not the drafter's alone "
        f"(full names of one model, as `dspark drafters` lists them, are): {said}"
    ]


def drafters_json(found: DrafterComparison) -> bytes:
    """The whole comparison as one JSON object."""
    every = [plain_report(each) for of in found.comparisons for each in of]
    return msgspec.json.encode({"drafters": found.as_json(), "comparisons": every})


def drafters_lines(found: DrafterComparison) -> bytes:
    """One line a drafter and load, with bench_serving's keys."""
    return b"".join(json_lines(each) for of in found.comparisons for each in of)


def plot_drafters(found: DrafterComparison, path: Path) -> Any:
    """Speed of a user against throughput, a line a drafter, written to .svg or .png."""
    setting = found.comparisons[0][0].setting
    lines = {name: (found.frontier(name).speed, found.frontier(name).throughput) for name in found.drafters}
    words = {
        "x": "tokens/s of each user",
        "y": "tokens/s of the server",
        "title": f"{setting['trace']}; step costs of {setting['profile']} (simulated)",
    }
    return plot_frontiers(lines, words, path)
