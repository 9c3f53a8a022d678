"""Which policy serves which load: the gain over verifying every token, by requests in flight; README's picture.

Run: python benchmarks/policy_by_load.py TRACE --out docs/policy_by_load.svg (needs matplotlib). Closed loop on SGLang's
graphs, every policy on the same draws, one panel an acceptance. A point is hollow where its 95 % interval holds 0.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from simulator import Comparison, load_trace, simulate
from simulator.inputs import Acceptance, Load
from simulator.results.paired import Paired

BASE = "fixed:k=7"
POLICIES = (BASE, "fixed:k=3", "early-stop", "hull", "argmax:lag=2")
STYLES = {
    "fixed:k=3": ("#56b4e9", "v", "-"),
    "early-stop": ("#d55e00", "s", "-"),
    "hull": ("#009e73", "o", "-"),
    "argmax:lag=2": ("#cc79a7", "^", "--"),
}
CONCURRENCIES = (8, 16, 32, 64, 96, 128, 160)
FIGURE = "steady_output_throughput"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trace")
    parser.add_argument("--profile", default="vllm-b300-dsv4-flash")
    parser.add_argument("--drafter", action="append", help="repeat for a panel each")
    parser.add_argument("--limit", type=int, default=4000, help="most requests a concurrency")
    parser.add_argument("--replications", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=None)
    parser.add_argument("--out", type=Path, default=None, help="picture (.svg)")
    args = parser.parse_args()
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
    if args.out is not None:
        draw(panels, args.profile, args.out)


def said(gain: Paired) -> str:
    return f"{100 * gain.mean:+.1f} [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}]"


def draw(panels: dict[str, list[Comparison]], profile: str, out: Path) -> None:
    """One panel an acceptance, one line a policy; colours and markers that a colour-blind reader can tell apart."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot as plt

    matplotlib.rcParams["svg.hashsalt"] = "sglang-dspark"
    figure, axes = plt.subplots(1, len(panels), figsize=(4.4 * len(panels), 3.6), sharey=True, squeeze=False)
    for panel, (drafter, comparisons) in zip(axes[0], panels.items(), strict=True):
        draw_panel(panel, drafter, comparisons)
    axes[0][0].set_ylabel(f"output throughput against {BASE}")
    axes[0][0].legend(fontsize=8)
    figure.suptitle(f"Simulated: step costs of {profile}, SGLang's graphs", fontsize=10)
    figure.tight_layout()
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, metadata={"Date": None})
    print(f"wrote {out}", file=sys.stderr)


def draw_panel(axes: Any, drafter: str, comparisons: list[Comparison]) -> None:
    """Gains of every policy at every load."""
    for policy, (colour, marker, line) in STYLES.items():
        index = POLICIES.index(policy)
        gains = [comparison.results[index].difference[FIGURE] for comparison in comparisons]
        means = [100 * gain.mean for gain in gains]
        axes.plot(CONCURRENCIES, means, label=policy, color=colour, linestyle=line, linewidth=1.2)
        for at, mean, gain in zip(CONCURRENCIES, means, gains, strict=True):
            fill = "white" if gain.verdict == "no difference" else colour
            axes.plot(at, mean, marker=marker, color=colour, markerfacecolor=fill, markersize=5)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xscale("log", base=2)
    axes.set_xticks(CONCURRENCIES, [str(count) for count in CONCURRENCIES], fontsize=8)
    axes.set_xlabel("requests in flight")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:+.0f} %")
    axes.set_title(f"acceptance: {drafter}", fontsize=9)
    axes.grid(alpha=0.3)


if __name__ == "__main__":
    main()
