"""A search for people, in 80 columns, and for scripts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from simulator.results.accuracy import accuracy_of
from simulator.results.estimated import error_of_estimate
from simulator.results.paired import interval
from simulator.results.screen import cell
from simulator.tuning.finals import Held
from simulator.tuning.policy_file import policy_meta, server_command
from simulator.tuning.robustness import Changed
from simulator.tuning.tune import Tuned

_MOST_FRONTIER = 12


def print_tuned(tuned: Tuned, path: Path, console: Console, *, verbose: bool = False) -> None:
    """What was searched, the winner against the baselines, the answer, what it hangs on, and how to serve it."""
    setting, (trial, held) = tuned.settings[0], tuned.requests
    pruned = sum(each.outcome.pruned for each in tuned.trials)
    console.print(
        Text(
            f"{len(tuned.trials)} trials of {trial:,} requests of {setting.trace.source}, {_loads(tuned)}; step costs "
            f"of {setting.cost.name}; {pruned} stopped early; policies: {', '.join(tuned.space.policies)}"
        )
    )
    for line in tuned.space.left_out:
        console.print(Text(line, style="dim"))
    console.print(Text(f"on {held:,} requests and draws that the search never met:"))
    console.print(_table(tuned))
    parts = f"{tuned.finals.windows} parts of them and their draws" if tuned.finals.windows > 1 else "draws alone"
    words = tuned.objectives[0].words
    console.print(Text(f"{words}; above 0: the tuned policy is better; intervals cover {parts}", style="dim"))
    if len(tuned.settings) > 1:
        console.print(_by_load(tuned))
    if len(tuned.objectives) > 1:
        console.print(_frontier(tuned))
    console.print(Text(answer(tuned)))
    for line in error_of_estimate(setting):
        console.print(Text(line))
    if accuracy_of(setting):
        console.print(Text(accuracy_of(setting), style="dim"))
    for line in _robust_lines(tuned, verbose=verbose):
        console.print(Text(line))
    console.print(Text(f"wrote {path}; serve it with"))
    console.print(server_command(tuned, path), highlight=False, markup=False, soft_wrap=True)


def answer(tuned: Tuned) -> str:
    """One sentence: what to switch on, or that the baseline stays."""
    first, finals = tuned.objectives[0], tuned.finals
    base, gap, where = finals.base(first), finals.gap(first), _loads(tuned)
    if finals.better(first):
        named = _name(base)
        return f"switch on {finals.winner.text}: {interval(gap)} over {named} at {where} ({first.words})"
    kept = finals.kept(first)
    if finals.winner == kept.candidate:
        return f"keep {_name(kept)} at {where}: the search found nothing better ({first.words})"
    return (
        f"keep {_name(kept)} at {where}: the best of the search, {finals.winner.text}, is not better than "
        f"{_name(base)} beyond the noise: {interval(gap)} ({first.words})"
    )


def tuned_json(tuned: Tuned, path: Path) -> bytes:
    """Everything in plain values."""
    first = tuned.objectives[0]
    robust = tuned.robustness
    document = {
        "answer": answer(tuned),
        "warnings": list(error_of_estimate(tuned.settings[0])),
        "accuracy": accuracy_of(tuned.settings[0]) or None,
        "policy_file": str(path),
        "meta": policy_meta(tuned),
        "space": tuned.space.stated(),
        "left_out": list(tuned.space.left_out),
        "held_out": [
            {
                "what": each.label,
                "candidate": each.candidate.text,
                "value": each.value(first),
                "gain_of_tuned": _gain(tuned, each),
            }
            for each in tuned.finals.held
        ],
        "by_load": [{"candidate": each.text, "value": value} for each, value in tuned.finals.by_load],
        "frontier": [
            {"candidate": each.candidate.text, "values": [each.outcome.mean(at) for at in range(len(tuned.objectives))]}
            for each in (tuned.frontier if len(tuned.objectives) > 1 else ())
        ],
        "robustness": None if robust is None else {"exact_only": robust.exact_only, "changes": list(robust.changes)},
        "trials": [
            {
                "number": each.number,
                "candidate": each.candidate.text,
                "pruned": each.outcome.pruned,
                "refused": each.outcome.refused or None,
                "values": each.outcome.values,
            }
            for each in tuned.trials
        ],
        "server": server_command(tuned, path),
    }
    return msgspec.json.encode(document)


def _gain(tuned: Tuned, each: Held) -> dict[str, float | None]:
    gap = tuned.finals.held[0].gain(each, tuned.objectives[0], tuned.finals.windows)
    return {key: None if value != value else value for key, value in vars(gap).items()}


def _name(held: Held) -> str:
    return "no speculation" if held.candidate.text == "none" else held.candidate.text


def _loads(tuned: Tuned) -> str:
    first = tuned.settings[0]
    if first.concurrency is not None:
        return f"{', '.join(str(each.concurrency) for each in tuned.settings)} in flight"
    if first.request_rate is not None:
        return f"{', '.join(f'{each.request_rate:g}' for each in tuned.settings)} requests/s"
    return "the trace's own rate"


def _table(tuned: Tuned) -> Table:
    first, finals = tuned.objectives[0], tuned.finals
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("", no_wrap=True)
    table.add_column("policy", overflow="fold", max_width=26)
    for name in (_heading(first.figure), "tuned gains [95 %]", "accept"):
        table.add_column(name, justify="right", no_wrap=True)
    for each in finals.held:
        gain = "" if each is finals.held[0] else cell(finals.held[0].gain(each, first, finals.windows))
        value = each.value(first)
        accept = sum(run["accept_length"] for run in each.runs[0]) / len(each.runs[0])
        shown = f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
        table.add_row(each.label, each.candidate.text, shown, gain, f"{accept:.2f}")
    return table


def _heading(figure: str) -> str:
    return "tok/s" if figure.endswith("output_throughput") else "good/s" if "goodput" in figure else "value"


def _by_load(tuned: Tuned) -> Table:
    first, finals = tuned.objectives[0], tuned.finals
    base = finals.base(first)
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("load", justify="right")
    table.add_column("best of the same candidates there", overflow="fold", max_width=36)
    table.add_column(f"tuned over {_name(base)[:20]}", justify="right", no_wrap=True)
    for load, (setting, (candidate, _)) in enumerate(zip(tuned.settings, finals.by_load, strict=True)):
        gap = finals.held[0].gain(base, first, finals.windows, load)
        table.add_row(f"{setting.concurrency or setting.request_rate}", candidate.text, cell(gap))
    return table


def _frontier(tuned: Tuned) -> Table:
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("frontier", overflow="fold", max_width=36)
    for objective in tuned.objectives:
        table.add_column(objective.name, justify="right", overflow="fold")
    frontier = tuned.frontier
    for trial in frontier[:_MOST_FRONTIER]:
        values = (f"{trial.outcome.mean(at):,.4g}" for at in range(len(tuned.objectives)))
        table.add_row(trial.candidate.text, *values)
    more = len(frontier) - _MOST_FRONTIER
    table.caption = f"{more} more with --json" if more > 0 else ""
    return table


def _robust_lines(tuned: Tuned, *, verbose: bool) -> Iterator[str]:
    if tuned.robustness is None:
        return
    best, first = tuned.finals.recommended(tuned.objectives[0]), tuned.settings[0]
    at = f" at {first.concurrency or first.request_rate}" if len(tuned.settings) > 1 else ""
    yield f"regret of {best.candidate.text}{at} against the best there of all named here (one set of draws), where"
    groups: dict[str, list[Changed]] = {}
    for change in tuned.robustness.changes:
        groups.setdefault(change.what if verbose else _group(change), []).append(change)
    for what, changes in groups.items():
        worst = max(changes, key=lambda change: change.regret)
        leader = f" ({worst.best} leads)" if worst.regret > 0 else ""
        yield f"  {what}: {'up to ' if len(changes) > 1 else ''}{100 * worst.regret:.1f} %{leader}"
    if tuned.robustness.exact_only:
        yield "ahead on the exact table only: with step costs off by up to 10 % a baseline overtakes it"


def _group(change: Changed) -> str:
    if change.kind != "costs":
        return {"confidences": "confidences are miscalibrated", "domains": "one domain is all there is"}.get(
            change.kind, change.what
        )
    share = next(word for word in ("5 %", "10 %", "20 %") if f" {word}" in change.what)
    return f"step costs are off by {share} (whole, slope, tiers)"
