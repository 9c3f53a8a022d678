"""The first screen: what a comparison says in 80 columns. Everything else is a flag away."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from simulator.results.answer import answer, load_words
from simulator.results.comparison import Comparison, PolicyResult
from simulator.results.paired import Paired
from simulator.results.servers import flag_lines
from simulator.results.verdict import overload_words

_POLICY_WIDTH = 26


def print_screen(comparison: Comparison, console: Console, notes: tuple[str, ...] = ()) -> None:
    """Load, table, answer, what makes it doubtful, and how much is assumed. notes: what the caller has to say."""
    setting = comparison.setting
    console.print(
        Text(
            f"{setting['requests']:,} requests of {setting['trace']}, {load_words(setting).removeprefix('at ')}; "
            f"step costs of {setting['profile']}, drafter {setting['drafter']}"
        )
    )
    console.print(screen_table(comparison))
    console.print(Text(gains_line(comparison), style="dim"))
    surcharge = [] if comparison.surcharge is None else [str(comparison.surcharge)]
    varied = [] if comparison.sensitivity is None else comparison.sensitivity.lines()
    doubts = [failed_line(comparison), *map(overload_words, comparison.results), *comparison.warnings, *notes]
    doubts += [f"trace: {note}" for note in setting["trace_notes"] if note.startswith("warning")]
    said = [answer(comparison), rates_line(comparison), *surcharge, *varied, *doubts]
    for sentence in filter(None, [*said, *flag_lines(setting)]):
        console.print(Text(sentence))
    print_accuracy(comparison, console)
    print_assumed(len(comparison.assumptions), console)


def print_accuracy(comparison: Comparison, console: Console) -> None:
    """How far such predictions were off, where that is not among the warnings."""
    if comparison.accuracy:
        console.print(Text(comparison.accuracy, style="dim"))


def failed_line(comparison: Comparison) -> str:
    """How many requests could never be served; empty where all were."""
    failed = max(result.figures["failed"] for result in comparison.results)
    room = comparison.setting["kv_tokens"]
    return f"failed: {failed:,.0f} requests can never fit in {room:,} KV tokens" if failed else ""


def rates_line(comparison: Comparison) -> str:
    """The highest rates that keep the limits, where they were asked for."""
    if comparison.sustainable is None:
        return ""
    limits = ", ".join(f"{key} {limit:g} ms" for key, limit in comparison.setting["goodput_slos_ms"].items())
    rates = ", ".join(f"{policy} {rate:.3g}" for policy, rate in comparison.sustainable.items())
    return f"highest requests/s at which {comparison.setting['find_rate']:.1%} meet {limits}: {rates}"


def print_assumed(count: int, console: Console) -> None:
    """Assumptions as one line."""
    console.print(Text(f"{count} assumptions (--verbose lists them)", style="dim"))


def screen_table(comparison: Comparison) -> Table:
    """Policy, what decides, the gain over the first policy, TPOT, TTFT, accept length: at most 80 columns."""
    steady = "steady_" if comparison.setting["loop"] == "closed" else ""
    limits = bool(comparison.setting["goodput_slos_ms"])
    first = comparison.results[0]
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("policy", overflow="fold", max_width=_POLICY_WIDTH)
    for name in ("good/s" if limits else "tok/s", "gain [95 %]", "TPOT ms", "TTFT ms", "accept"):
        table.add_column(name, justify="right", no_wrap=True)
    for result in comparison.results:
        figures = result.figures
        served = figures[f"{steady}request_goodput"] if limits else figures[f"{steady}output_throughput"]
        table.add_row(
            name_of(result),
            f"{served:,.3g}" if limits else f"{served:,.0f}",
            "" if result is first else cell(comparison.gain(result)),
            f"{figures[steady + 'mean_tpot_ms']:,.2f}",
            f"{figures[steady + 'mean_ttft_ms']:,.0f}",
            f"{figures['accept_length']:.2f}",
        )
    return table


def gains_line(comparison: Comparison) -> str:
    """What the gains of the table are of."""
    first = comparison.results[0].policy
    return f"gain over {first} in {comparison.judged.words}: above 0 is better{_covers(comparison)}"


def name_of(result: PolicyResult) -> str:
    """The policy, marked where it is not lossless."""
    return result.policy + ("" if result.lossless else " (not lossless)")


def cell(gap: Paired) -> str:
    """A gain with its interval, 22 columns."""
    if gap.mean != gap.mean:
        return "-"
    text = f"{100 * gap.mean:+.1f} %"
    return text if gap.low != gap.low else f"{text} [{100 * gap.low:+.1f}, {100 * gap.high:+.1f}]"


def _covers(comparison: Comparison) -> str:
    windows, replications = comparison.setting["windows"], comparison.setting["replications"]
    if replications == 1:
        return ""
    if windows > 1:
        return f"; intervals cover {windows} windows of the trace and their draws"
    return f"; intervals cover {replications} sets of draws (--windows: parts of the trace too)"
