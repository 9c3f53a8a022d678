"""Comparisons for people (a table), for scripts (JSON) and for bench_serving's readers (JSON lines)."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sglang_dspark.records.steady import STEADY_RATIO
from simulator.results.answer import answer
from simulator.results.comparison import Comparison, PolicyResult
from simulator.results.paired import interval
from simulator.results.prefixes import cache_report
from simulator.results.screen import failed_line, gains_line, print_accuracy, rates_line, screen_table
from simulator.results.servers import flag_lines
from simulator.results.verdict import overload_words


def print_report(comparison: Comparison, console: Console, notes: tuple[str, ...] = (), *, wide: bool = True) -> None:
    """Everything: the table with all its columns (or that of the first screen), the setting above it, and below it what
    it says and what it assumes. notes: the caller's.
    """
    setting = comparison.setting
    load = f"concurrency {setting['concurrency']}" if setting["loop"] == "closed" else "open loop"
    console.print(
        Text(
            f"{setting['requests']:,} requests of {setting['trace']}, {load}; profile {setting['profile']}, "
            f"drafter {setting['drafter']} (gamma {setting['gamma']}), {setting['replications']} replications"
        )
    )
    console.print(Text(f"profile: {setting['profile_provenance']}", style="dim"))
    console.print(Text(f"acceptance: {setting['acceptance']['text']}", style="dim"))
    for note in setting["trace_notes"]:
        console.print(Text(f"trace: {note}", style="dim"))
    console.print(_table(comparison) if wide else screen_table(comparison))
    console.print(Text(gains_line(comparison), style="dim"))
    console.print(Text(_load_line(comparison)))
    said = [
        failed_line(comparison),
        *map(overload_words, comparison.results),
        *comparison.warnings,
        *notes,
        rates_line(comparison),
        answer(comparison),
    ]
    said += [str(comparison.surcharge)] if comparison.surcharge is not None else []
    said += [] if comparison.sensitivity is None else comparison.sensitivity.lines()
    for sentence in filter(None, [*said, *flag_lines(setting)]):
        console.print(Text(sentence))
    print_accuracy(comparison, console)
    for line in _engine_lines(setting):
        console.print(Text(line, style="dim"))
    for assumption in comparison.assumptions:
        console.print(Text(f"assumed: {assumption.text}", style="dim"))


def _table(comparison: Comparison) -> Table:
    closed = comparison.setting["loop"] == "closed"
    steady = "steady_" if closed else ""
    table = Table(pad_edge=False)
    table.add_column("policy", overflow="fold")
    goodput = ("good/s", "within limits") if comparison.setting["goodput_slos_ms"] else ()
    for name in ("done", "tok/s", *goodput, "gain [95 %]", "accept", "TPOT ms", "p99", "TTFT ms"):
        table.add_column(name, justify="right", no_wrap=name != "gain [95 %]")
    for name in ("draft+verify ms", "tau", "verified/step", "waste"):
        table.add_column(name, justify="right")
    for result in comparison.results:
        figures = result.figures
        kept = (f"{figures['request_goodput']:.3g}", f"{figures['slo_attainment']:.1%}") if goodput else ()
        table.add_row(
            result.policy + ("" if result.lossless else " (not lossless)"),
            f"{figures['completed']:,.0f}",
            f"{figures[steady + 'output_throughput']:,.0f}",
            *kept,
            "-" if result is comparison.results[0] else interval(comparison.gain(result)),
            f"{figures['accept_length']:.2f}",
            f"{figures[steady + 'mean_tpot_ms']:.2f}",
            f"{figures[steady + 'p99_tpot_ms']:.2f}",
            f"{figures[steady + 'mean_ttft_ms']:.0f}",
            f"{figures['draft_ms_per_step']:.2f}+{figures['verify_ms_per_step']:.2f}",
            f"{figures['tau']:.1f}",
            f"{figures['verified_tokens_per_step']:.0f}",
            f"{100 * figures['wasted_share']:.0f} %",
        )
    return table


def _load_line(comparison: Comparison) -> str:
    """What was measured in: the steady window, or the offered against the served rate."""
    figures = [result.figures for result in comparison.results]
    if comparison.setting["loop"] == "closed":
        seconds, sent = ([each[key] for each in figures] for key in ("steady_window_s", "steady_requests"))
        return (
            f"steady window ({STEADY_RATIO:g} of the most in flight): {_range(seconds, '.1f')} s, "
            f"{_range(sent, '.0f')} requests sent inside; tok/s, TPOT and TTFT are those inside{_cached(comparison)}"
        )
    served = _range([each["request_throughput"] for each in figures], ".3g")
    offered = figures[0]["offered_request_rate"]
    asked = "all requests at once" if math.isinf(offered) else f"{offered:.3g} requests/s offered"
    said = f"{asked}, {served} served; without a backlog tok/s is what was offered and judges nothing"
    return said + _cached(comparison)


def _cached(comparison: Comparison) -> str:
    if not comparison.setting["caches_prefixes"]:
        return ""
    shares = _range([100 * result.figures["cached_prompt_share"] for result in comparison.results], ".1f")
    return f"; {shares} % of the prompt tokens hit the prefix cache"


def _range(values: list[float], form: str) -> str:
    low, high = (f"{value:{form}}" for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def _engine_lines(setting: dict[str, Any]) -> list[str]:
    """One line a kind of server."""
    servers = setting["servers"]
    return [
        _engine_line({**setting, **values}, "engine" if len(servers) == 1 else f"engine ({kind})")
        for kind, values in servers.items()
    ]


def _engine_line(setting: dict[str, Any], name: str) -> str:
    if setting["prefill_elsewhere_s"] is not None:
        return (
            f"{name}: decode server, max running requests {setting['max_running_requests']}, "
            f"KV {setting['kv_tokens']:,} tokens, replicas {setting['replicas']}"
        )
    return (
        f"{name}: max running requests {setting['max_running_requests']}, "
        f"chunked prefill {setting['chunked_prefill_size']}, prefill before decode{_awaited(setting)}, "
        f"mixed chunks off, KV {setting['kv_tokens']:,} tokens, replicas {setting['replicas']}{_prefix_cache(setting)}"
    )


def _awaited(setting: dict[str, Any]) -> str:
    slots = setting["free_slots_awaited"]
    return f" when {slots} slots are free" if slots > 1 else ""


def _prefix_cache(setting: dict[str, Any]) -> str:
    if setting["caches_prefixes"]:
        return ", prefix cache LRU, requests first come first served"
    return "" if setting["prefix_cache"] else ", prefix cache off"


def json_lines(comparison: Comparison) -> bytes:
    """One line a policy: bench_serving's keys, then ours. Byte-identical for equal comparisons."""
    lines = [msgspec.json.encode(_record(result, comparison)) for result in comparison.results]
    return b"\n".join(lines) + b"\n"


def json_report(comparison: Comparison) -> bytes:
    """The whole comparison as one JSON object."""
    return msgspec.json.encode(plain_report(comparison))


def plain_report(comparison: Comparison) -> dict[str, Any]:
    """The whole comparison in plain values."""
    return {
        "setting": comparison.setting,
        "judged_by": comparison.judged.figure,
        "verdict": answer(comparison),
        "surcharge": None if comparison.surcharge is None else asdict(comparison.surcharge),
        "sensitivity": None if comparison.sensitivity is None else comparison.sensitivity.as_json(),
        "warnings": [*filter(None, map(overload_words, comparison.results)), *comparison.warnings],
        "accuracy": comparison.accuracy or None,
        "assumptions": [assumption.as_json() for assumption in comparison.assumptions],
        "results": [_record(result, comparison) for result in comparison.results],
    }


def _record(result: PolicyResult, comparison: Comparison) -> dict[str, Any]:
    base = comparison.results[0].policy
    gaps = {
        name: {"mean": gap.mean, "low": _number(gap.low), "high": _number(gap.high), "verdict": gap.verdict}
        for name, gap in result.difference.items()
    }
    return {
        "backend": "sglang-dspark-simulator",
        "policy": result.policy,
        "drafter": comparison.setting["drafter"],
        "lossless": result.lossless,
        "schedule": result.schedule,
        "dataset_name": comparison.setting["trace"],
        "max_concurrency": comparison.setting["concurrency"],
        "request_rate": comparison.setting["request_rate"],
        **_figures(result.figures, comparison.setting),
        **(
            {}
            if comparison.sustainable is None
            else {"sustainable_request_rate": comparison.sustainable[result.policy]}
        ),
        "difference_to": base,
        "difference": gaps,
        "replications": [_figures(run, comparison.setting) for run in result.replications],
    }


def _figures(figures: dict[str, float], setting: dict[str, Any]) -> dict[str, Any]:
    """As bench_serving nests them: what is one a limit of goodput stands below one key."""
    out: dict[str, Any] = {}
    for name, value in figures.items():
        number = int(value) if float(value).is_integer() else value
        key, dot, limit = name.partition(".")
        if dot:
            out.setdefault(f"{key}_by_metric", {})[limit] = number
        else:
            out[key] = number
    out |= cache_report(figures)
    return out | ({"goodput_slos_ms": setting["goodput_slos_ms"]} if setting["goodput_slos_ms"] else {})


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
