"""Which policy serves which load: the gain over verifying every token, by requests in flight; README's picture.

Run: python benchmarks/policy_by_load.py TRACE --out docs/policy_by_load.svg (needs matplotlib). Closed loop on SGLang's
graphs, every policy on the same draws, one panel an acceptance. A point is hollow where its 95 % interval holds 0.
`--points docs/policy_by_load.json --out docs/policy_by_load.svg` alone draws the picture again from the points kept.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import pictures

from simulator import Comparison, load_trace, simulate
from simulator.inputs import Acceptance, Load
from simulator.results.paired import Paired

BASE = "fixed:k=7"
POLICIES = (BASE, "fixed:k=3", "early-stop", "hull", "argmax:lag=2")
STYLES = {  # told apart by colour-blind readers, at least 3:1 against white, and by shape
    "fixed:k=3": ("#0072b2", "v", "-"),
    "early-stop": ("#d55e00", "s", "-"),
    "hull": ("#007d5c", "o", "-"),
    "argmax:lag=2": ("#a6458a", "^", "--"),
}
LEAST, MOST = -22, 16  # per cent: what is far below would press all others together
Points = dict[str, list[tuple[int, float, bool]]]
CONCURRENCIES = (8, 16, 32, 64, 96, 128, 160)
FIGURE = "steady_output_throughput"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace", nargs="?")
    parser.add_argument("--profile", default="vllm-b300-dsv4-flash")
    parser.add_argument("--drafter", action="append", help="repeat for a panel each")
    parser.add_argument("--limit", type=int, default=4000, help="most requests a concurrency")
    parser.add_argument("--replications", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=None)
    parser.add_argument("--out", type=Path, default=None, help="picture (.svg)")
    parser.add_argument("--points", type=Path, default=None, help="JSON of what the picture shows: written, or drawn")
    args = parser.parse_args()
    if args.trace is None:
        if args.points is None or args.out is None:
            parser.error("give a trace to simulate, or --points and --out to draw the picture again")
        draw(json.loads(args.points.read_text()), args.profile, args.out)
        return
    panels: dict[str, list[Comparison]] = {}
    for drafter in args.drafter or ["dspark"]:
        panels[drafter] = []
        for concurrency in CONCURRENCIES:
            # Few requests in flight need fewer requests for a steady window.
            trace = load_trace(args.trace, limit=min(args.limit, 300 + 25 * concurrency))
            panels[drafter].append(
                simulate(
                    Load(trace, concurrency=concurrency),
                    args.profile,
                    POLICIES,
                    acceptance=Acceptance(drafter=drafter),
                    replications=args.replications,
                    jobs=args.jobs,
                )
            )
            gains = {result.policy: said(result.difference[FIGURE]) for result in panels[drafter][-1].results[1:]}
            base = panels[drafter][-1].results[0].figures[FIGURE]
            print(f"{drafter} {concurrency:4d}  {BASE} {base:,.0f} tok/s  {gains}", flush=True)
    points = {drafter: points_of(comparisons) for drafter, comparisons in panels.items()}
    if args.points is not None:
        args.points.write_text(json.dumps(points) + "\n")
    if args.out is not None:
        draw(points, args.profile, args.out)


def said(gain: Paired) -> str:
    return f"{100 * gain.mean:+.1f} [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}]"


def points_of(comparisons: list[Comparison]) -> Points:
    """By policy, a point a load: requests in flight, gain in per cent, whether its interval leaves 0 out."""
    return {
        policy: [
            (load, round(100 * gain.mean, 1), gain.verdict != "no difference")
            for load, gain in zip(
                CONCURRENCIES, (each.results[number].difference[FIGURE] for each in comparisons), strict=True
            )
        ]
        for number, policy in enumerate(POLICIES)
        if policy != BASE
    }


def draw(panels: dict[str, Points], profile: str, out: Path) -> None:
    """Panels below each other, so that a phone shows them at full width; what falls below them is said in words."""
    plt = pictures.pyplot()
    figure, axes = plt.subplots(len(panels), 1, figsize=(4.8, 2.9 * len(panels) + 0.7), sharex=True, squeeze=False)
    for number, (panel, (drafter, points)) in enumerate(zip(axes[:, 0], panels.items(), strict=True)):
        draw_panel(panel, f"{chr(ord('A') + number)}: acceptance of {drafter}", points)
    axes[-1][0].set_xlabel("requests in flight")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=9, ncols=len(labels), loc="lower center", frameon=False, columnspacing=1.2)
    figure.suptitle(f"Gain in output throughput over {BASE}, simulated\nstep costs of {profile}", fontsize=10)
    figure.tight_layout(rect=(0, 0.03, 1, 1))
    out.parent.mkdir(parents=True, exist_ok=True)
    pictures.save(figure, out)
    print(f"wrote {out}", file=sys.stderr)


def draw_panel(axes: Any, title: str, points: Points) -> None:
    """Gains of every policy at every load. A hollow point is no difference."""
    for policy, (colour, marker, line) in STYLES.items():
        loads, gains, _ = zip(*points[policy], strict=True)
        axes.plot(loads, gains, label=policy, color=colour, linestyle=line, linewidth=1.3, marker=marker, markersize=5)
        for at, gain, differs in points[policy]:
            if not differs:
                axes.plot(at, gain, marker=marker, color=colour, markerfacecolor="white", markersize=5)
        if min(gains) < LEAST:
            says = f"{policy}: {max(gains):+.0f} to {min(gains):+.0f} %"
            axes.text(0.3, 0.04, says, transform=axes.transAxes, fontsize=9, color=colour)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_ylim(LEAST, MOST)
    axes.set_xscale("log", base=2)
    axes.set_xticks(CONCURRENCIES, [str(count) for count in CONCURRENCIES], fontsize=9)
    axes.minorticks_off()
    axes.tick_params(labelsize=9)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:+.0f} %")
    axes.set_title(title, fontsize=9, loc="left")
    axes.grid(alpha=0.3)


if __name__ == "__main__":
    main()
