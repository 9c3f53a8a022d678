"""The numbers behind every chart, as rows of plain values: what the page draws, lists and lets people copy."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from sglang_dspark.calibration.metrics import ece_of_sums
from simulator.report.counts import Counts, Ints
from simulator.report.story import Entry, LoadRuns, Story
from simulator.results.paired import interval
from simulator.results.spread import SHARES

Row = dict[str, Any]
AllCounts = Mapping[tuple[int, str], Counts]

LATENCIES = {
    "ttft": "Time to first token (TTFT)",
    "tpot": "Time per output token (TPOT)",
    "e2e_latency": "End-to-end latency",
}
FLOOR = -0.1
"""Gains below it are drawn at it, with their value beside: they would press all others together."""
_FULL = 0.8  # of the largest batch of a closed loop: steps with fewer requests belong to its beginning or end
_LEAST_STEPS = 20  # steps at about one batch size that a point of the budget chart needs


def steady(entry: Entry, figure: str) -> float:
    """A figure's mean over the runs, in the steady window where a run has one."""
    name = f"steady_{figure}" if f"steady_{figure}" in entry.runs[0] else figure
    return entry.mean(name)


def figure_rows(story: Story) -> list[Row]:
    """One row a load and policy: what a user of the server would see."""
    rows = []
    for load in story.loads:
        base = None if load.base is None else load.entry(load.base)
        for entry in load.entries:
            gap = None if base is None or base is entry else load.gain(entry, base)
            row: Row = {
                "load": load.load,
                "policy": entry.name,
                "part": ", ".join(filter(None, (entry.label, "best baseline" if entry is base else ""))),
                "tokens_s": steady(entry, "output_throughput"),
                "gain": None if gap is None else number(gap.mean),
                "low": None if gap is None else number(gap.low),
                "high": None if gap is None else number(gap.high),
                "tpot_ms": steady(entry, "mean_tpot_ms"),
                "ttft_ms": steady(entry, "mean_ttft_ms"),
                "accept_length": entry.mean("accept_length"),
                "wasted": entry.mean("wasted_share"),
            }
            if "slo_attainment" in entry.runs[0]:
                row["within"] = entry.mean("slo_attainment")
            rows.append(row)
    return rows


def frontier_rows(story: Story) -> list[Row]:
    """Throughput against the speed that one user gets. front: no other row is better in both."""
    rows: list[Row] = [
        {
            "load": load.load,
            "size": load.size,
            "policy": entry.name,
            "speed": _per_second(steady(entry, "mean_tpot_ms")),
            "tokens_s": steady(entry, "output_throughput"),
        }
        for load in story.loads
        for entry in load.entries
    ]
    rows = [row for row in rows if row["speed"] is not None]
    for row in rows:
        row["front"] = not any(_better(other, row) for other in rows)
    return rows


def gain_rows(story: Story) -> list[Row]:
    """Gains of every policy at every load over each baseline there, with their 95 % intervals."""
    rows = []
    for load in story.loads:
        for over, base in _bases(load).items():
            for entry in load.entries:
                if entry is base:
                    continue
                gap = load.gain(entry, base)
                rows.append(
                    {
                        "over": over,
                        "load": load.load,
                        "size": load.size,
                        "policy": entry.name,
                        "gain": number(gap.mean),
                        "low": number(gap.low),
                        "high": number(gap.high),
                        "beyond": gap.mean < FLOOR,
                        "said": f"{entry.name} at {load.load}: gain {interval(gap)} over {base.name}",
                        **{f"drawn_{key}": _at_floor(value) for key, value in vars(gap).items()},
                    }
                )
    return rows


def budget_rows(story: Story, counts: AllCounts) -> list[Row]:
    """Tokens verified a request and step (anchor counted) by requests that decode at once.

    Of several closed loops the full batches of each; else every batch, in steps of half an octave.
    """
    several = len(story.loads) > 1 and all(entry.setting.concurrency for load in story.loads for entry in load.entries)
    rows = []
    for (_, name), each in sorted(counts.items(), key=lambda item: (story.names.index(item[0][1]), item[0][0])):
        if several:
            full = each.requests >= _FULL * each.requests.max(initial=1)
            rows.append(_budget(name, each.requests[full], each.tokens[full]))
            continue
        bins = np.round(2 * np.log2(np.maximum(each.requests, 1))).astype(np.int64)
        for number in np.unique(bins).tolist():
            inside = bins == number
            if inside.sum() >= min(_LEAST_STEPS, bins.size):
                rows.append(_budget(name, each.requests[inside], each.tokens[inside]))
    return rows


def position_rows(story: Story, counts: AllCounts) -> list[Row]:
    """Of 100 drafted blocks: tokens verified at each position, accepted or wasted, by domain."""
    return [
        {
            "load": story.loads[at].load,
            "policy": policy,
            "domain": domain,
            "position": position + 1,
            "accepted": 100 * float(each.accepted[number, position]) / blocks,
            "wasted": 100 * float(each.verified[number, position] - each.accepted[number, position]) / blocks,
            "blocks": blocks,
        }
        for (at, policy), each in counts.items()
        for number, domain in enumerate(each.domains)
        if (blocks := int(each.blocks[number]))
        for position in range(each.verified.shape[1])
    ]


def reliability_rows(story: Story, counts: AllCounts) -> list[Row]:
    """Reported against observed survival of all drafted tokens, by load and domain, with the calibration error."""
    rows = []
    for at, load in enumerate(story.loads):
        name = load.best if (at, load.best) in counts else next((key[1] for key in counts if key[0] == at), None)
        if name is None:
            continue
        each = counts[at, name]
        for domain, sums in zip(each.domains, each.reliability, strict=True):
            total = sums[0].sum()
            for weight, said, seen in sums.T.tolist():
                if weight:
                    rows.append(
                        {
                            "load": load.load,
                            "domain": domain,
                            "reported": said / weight,
                            "observed": seen / weight,
                            "share": weight / total,
                            "tokens": int(weight),
                            "ece": float(ece_of_sums(sums)),
                        }
                    )
    return rows


def latency_rows(story: Story) -> list[Row]:
    """Median and higher percentiles by load, policy and kind of latency, milliseconds."""
    return [
        {
            "load": load.load,
            "policy": entry.name,
            "what": what,
            **{share: steady(entry, f"{share}_{figure}_ms") for share in SHARES},
        }
        for load in story.loads
        for entry in load.entries
        for figure, what in LATENCIES.items()
    ]


def sensitivity_rows(story: Story) -> list[Row]:
    """The leader's gain over the runner-up with one assumption varied at a time, as assumed first."""
    found = story.sensitivity
    if found is None:
        return []
    asis = [("as assumed", found.asis, False)]
    return [
        {"what": what, "gain": number(gap.mean), "low": number(gap.low), "high": number(gap.high), "flips": flips}
        for what, gap, flips in [*asis, *((each.what, each.gain, each.flips) for each in found.varied)]
    ]


def number(value: float) -> float | None:
    """JSON has no NaN and no infinity."""
    return value if math.isfinite(value) else None


def values(rows: Iterable[Row], field: str) -> list[Any]:
    """What a field holds, each once, in order."""
    return list(dict.fromkeys(row[field] for row in rows))


def _bases(load: LoadRuns) -> dict[str, Entry]:
    """What gains are taken over: the best baseline of the load, and no speculation."""
    named = {"the best baseline there": load.base, "no speculation": "none"}
    found = {over: load.entry(name) for over, name in named.items() if name is not None}
    bases = {over: entry for over, entry in found.items() if entry is not None}
    return bases or {load.entries[0].name: load.entries[0]}


def _at_floor(value: float) -> float | None:
    return number(max(value, FLOOR)) if math.isfinite(value) else None


def _budget(policy: str, requests: Ints, tokens: Ints) -> Row:
    low, high = np.quantile(tokens / requests, (0.1, 0.9)).tolist()
    return {
        "policy": policy,
        "requests": float(requests.mean()),
        "verified": float(tokens.sum() / requests.sum()),
        "low": low,
        "high": high,
        "steps": int(requests.size),
    }


def _per_second(tpot_ms: float) -> float | None:
    return 1e3 / tpot_ms if tpot_ms > 0 else None


def _better(one: Row, other: Row) -> bool:
    pairs = [(one[key], other[key]) for key in ("speed", "tokens_s")]
    return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)
