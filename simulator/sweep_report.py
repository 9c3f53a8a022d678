"""A sweep for people (one table, policies by loads, in 80 columns) and for scripts."""

from __future__ import annotations

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from simulator.results.report import json_lines, plain_report
from simulator.results.screen import print_accuracy, print_assumed
from simulator.results.servers import flag_lines
from simulator.sweep import BEST, Sweep

_POLICY_WIDTH = 26
_CELL_WIDTH = 9
_KIND = 60  # letters that tell warnings of one kind: the largest load's is shown


def print_sweep(sweep: Sweep, console: Console, *, verbose: bool = False, notes: tuple[str, ...] = ()) -> None:
    """The table, the crossovers in words, the schedule, and what makes them doubtful."""
    first = sweep.comparisons[0]
    setting, base = first.setting, first.results[0].policy
    console.print(
        Text(
            f"{setting['requests']:,} requests of {setting['trace']}; step costs of {setting['profile']}, drafter "
            f"{setting['drafter']}; {setting['replications']} replications a load"
        )
    )
    names = [row if row != BEST else f"{BEST} (below)" for row in sweep.rows]
    width = max(_POLICY_WIDTH, 0) if any(len(name) > _POLICY_WIDTH for name in names) else max(map(len, names))
    most = max(1, (console.width - width) // _CELL_WIDTH)
    for begin in range(0, len(sweep.loads), most):
        console.print(_table(sweep, range(begin, min(begin + most, len(sweep.loads))), width))
    console.print(
        Text(
            f"{base}: {_unit(sweep)}; others: gain over it in {first.judged.words}, above 0 is better; * the best",
            style="dim",
        )
    )
    said = [_lengths(sweep), *sweep.words(), sweep.summary()]
    if sweep.schedule is not None:
        said.append(f"read off it: --policy {sweep.schedule}")
    warnings = {warning[:_KIND]: warning for each in sweep.comparisons for warning in each.warnings}.values()
    flags = dict.fromkeys(line for each in sweep.comparisons for line in flag_lines(each.setting))
    for sentence in filter(None, [*said, *warnings, *notes, *list(flags)[-2:]]):
        console.print(Text(sentence))
    print_accuracy(first, console)
    assumed = dict.fromkeys(each.text for comparison in sweep.comparisons for each in comparison.assumptions)
    if not verbose:
        print_assumed(len(assumed), console)
        return
    for text in assumed:
        console.print(Text(f"assumed: {text}", style="dim"))


def _table(sweep: Sweep, loads: range, width: int) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    table.add_column(sweep.unit, overflow="fold", max_width=width)
    for load in loads:
        table.add_column(f"{sweep.loads[load]:g}", justify="right", no_wrap=True)
    for row in sweep.rows:
        table.add_row(f"{BEST} (below)" if row == BEST else row, *(_cell(sweep, row, load) for load in loads))
    return table


def _cell(sweep: Sweep, row: str, load: int) -> str:
    comparison, result = sweep.comparisons[load], sweep.result(row, load)
    if result is None:
        return "="  # this length is the best one of this load, a row above
    by = comparison.judged
    lossless = by.ranked(comparison.lossless)
    mark = "*" if lossless[0].policy == result.policy else ""
    if result is comparison.results[0]:
        value = result.figures[by.figure]
        return f"{value:,.0f}{mark}" if value >= 100 else f"{value:.3g}{mark}"
    return f"{100 * comparison.gain(result).mean:+.1f} %{mark}"


def _unit(sweep: Sweep) -> str:
    figure = sweep.comparisons[0].judged.figure
    return {"steady_output_throughput": "tokens/s", "output_throughput": "tokens/s"}.get(figure, figure)


def _lengths(sweep: Sweep) -> str:
    """Best fixed lengths in words; they need not fall with the load."""
    if not any(sweep.fixed):
        return ""
    found = ", ".join(
        f"{fixed.removeprefix('fixed:')} at {load:g}"
        for fixed, load in zip(sweep.fixed, sweep.loads, strict=True)
        if fixed is not None
    )
    return f"{BEST} (chosen on other draws): {found}"


def sweep_json(sweep: Sweep) -> bytes:
    """The whole sweep as one JSON object."""
    return msgspec.json.encode({"sweep": sweep.as_json(), "comparisons": list(map(plain_report, sweep.comparisons))})


def sweep_lines(sweep: Sweep) -> bytes:
    """One line a load and policy, with bench_serving's keys."""
    return b"".join(map(json_lines, sweep.comparisons))
