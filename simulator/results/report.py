"""Comparisons for people (a table), for scripts (JSON) and for bench_serving's readers (JSON lines)."""

from __future__ import annotations

import math
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from simulator.results.comparison import Comparison, Paired, PolicyResult, paired


def print_report(comparison: Comparison, console: Console) -> None:
    """The comparison table, the setting above it and the assumptions below."""
    setting = comparison.setting
    load = f"concurrency {setting['concurrency']}" if setting["loop"] == "closed" else "open loop"
    console.print(
        Text(
            f"{setting['requests']:,} requests of {setting['trace']}, {load}; profile {setting['profile']}, "
            f"drafter {setting['drafter']} (gamma {setting['gamma']}), {setting['replications']} replications"
        )
    )
    console.print(Text(f"profile: {setting['profile_provenance']}", style="dim"))
    for note in setting["trace_notes"]:
        console.print(Text(f"trace: {note}", style="dim"))
    console.print(_table(comparison))
    failed = max(result.figures["failed"] for result in comparison.results)
    if failed:
        console.print(Text(f"failed: {failed:,.0f} requests can never fit in {setting['kv_tokens']:,} KV tokens"))
    best = _best(comparison)
    if best:
        console.print(Text(best))
    console.print(Text(_engine_line(setting), style="dim"))
    for assumption in comparison.assumptions:
        console.print(Text(f"assumed: {assumption.text}", style="dim"))


def _table(comparison: Comparison) -> Table:
    closed = comparison.setting["loop"] == "closed"
    judged = "output_throughput" if closed else "mean_e2e_latency_ms"
    table = Table(pad_edge=False)
    table.add_column("policy", overflow="fold")
    for name in ("done", "tok/s", "vs first [95 %]", "accept", "TPOT ms", "p99", "TTFT ms", "draft+verify ms", "tau"):
        table.add_column(name, justify="right", no_wrap=name != "vs first [95 %]")
    table.add_column("verified/step", justify="right")
    table.add_column("waste", justify="right")
    for result in comparison.results:
        figures = result.figures
        table.add_row(
            result.policy + ("" if result.lossless else " (not lossless)"),
            f"{figures['completed']:,.0f}",
            f"{figures['output_throughput']:,.0f}",
            "-" if result is comparison.results[0] else _interval(result.difference[judged]),
            f"{figures['accept_length']:.2f}",
            f"{figures['mean_tpot_ms']:.2f}",
            f"{figures['p99_tpot_ms']:.2f}",
            f"{figures['mean_ttft_ms']:.0f}",
            f"{figures['draft_ms_per_step']:.2f}+{figures['verify_ms_per_step']:.2f}",
            f"{figures['tau']:.1f}",
            f"{figures['verified_tokens_per_step']:.0f}",
            f"{100 * figures['wasted_share']:.0f} %",
        )
    table.caption = f"vs first: relative difference of {'output throughput' if closed else 'mean end-to-end latency'}"
    return table


def _interval(paired: Paired) -> str:
    if math.isnan(paired.low):
        return f"{100 * paired.mean:+.1f} %"
    text = f"{100 * paired.mean:+.1f} % [{100 * paired.low:+.1f}, {100 * paired.high:+.1f}]"
    return text + (" no difference" if paired.verdict == "no difference" else "")


def _best(comparison: Comparison) -> str:
    """Which lossless policy serves the load best, unless the draws cannot tell."""
    lossless = [result for result in comparison.results if result.lossless]
    if len(lossless) < 2:
        return ""
    closed = comparison.setting["loop"] == "closed"
    figure, sign = ("output_throughput", 1.0) if closed else ("mean_e2e_latency_ms", -1.0)
    ranked = sorted(lossless, key=lambda result: -sign * result.figures[figure])
    best, second = ranked[0], ranked[1]
    what = "output throughput" if closed else "mean end-to-end latency"
    if len(best.replications) < 2:
        return f"best {what}: {best.policy} (one replication: no interval)"
    gap = paired([run[figure] for run in best.replications], [run[figure] for run in second.replications])
    if gap.verdict == "no difference":
        return f"best {what}: {best.policy} and {second.policy}: no difference ({_interval(gap)})"
    return f"best {what}: {best.policy} ({_interval(gap)} against {second.policy})"


def _engine_line(setting: dict[str, Any]) -> str:
    return (
        f"engine: max running requests {setting['max_running_requests']}, "
        f"chunked prefill {setting['chunked_prefill_size']}, prefill before decode, mixed chunks off, "
        f"KV {setting['kv_tokens']:,} tokens, replicas {setting['replicas']}"
    )


def json_lines(comparison: Comparison) -> bytes:
    """One line a policy: bench_serving's keys, then ours. Byte-identical for equal comparisons."""
    lines = [msgspec.json.encode(_record(result, comparison)) for result in comparison.results]
    return b"\n".join(lines) + b"\n"


def json_report(comparison: Comparison) -> bytes:
    """The whole comparison as one JSON object."""
    return msgspec.json.encode(
        {
            "setting": comparison.setting,
            "assumptions": [assumption.as_json() for assumption in comparison.assumptions],
            "results": [_record(result, comparison) for result in comparison.results],
        }
    )


def _record(result: PolicyResult, comparison: Comparison) -> dict[str, Any]:
    base = comparison.results[0].policy
    gaps = {
        name: {"mean": gap.mean, "low": _number(gap.low), "high": _number(gap.high), "verdict": gap.verdict}
        for name, gap in result.difference.items()
    }
    return {
        "backend": "sglang-dspark-simulator",
        "policy": result.policy,
        "lossless": result.lossless,
        "schedule": result.schedule,
        "dataset_name": comparison.setting["trace"],
        "max_concurrency": comparison.setting["concurrency"],
        "request_rate": comparison.setting["request_rate"],
        **{name: int(value) if value.is_integer() else value for name, value in result.figures.items()},
        "difference_to": base,
        "difference": gaps,
        "replications": [dict(run) for run in result.replications],
    }


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
