"""Which policy serves which load: output throughput by concurrency, as a table and the picture in README.

Run: python benchmarks/policy_by_load.py TRACE --out docs/policy_by_load.svg (needs matplotlib). Closed loop, every
concurrency with as many running requests, all policies on the same draws.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from simulator import Comparison, EngineSettings, load_trace, simulate

POLICIES = ("fixed:k=7", "none", "fixed:k=3", "early-stop", "hull", "argmax:lag=2")
CONCURRENCIES = (1, 4, 8, 16, 32, 64, 96, 128, 192, 256)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trace")
    parser.add_argument("--profile", default="vllm-b300-dsv4-flash")
    parser.add_argument("--limit", type=int, default=4000, help="requests a concurrency")
    parser.add_argument("--replications", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=None)
    parser.add_argument("--out", type=Path, default=None, help="picture (.svg)")
    args = parser.parse_args()
    rows = []
    for concurrency in CONCURRENCIES:
        # Few requests in flight need fewer requests for a steady window.
        trace = load_trace(args.trace, limit=min(args.limit, 100 + 40 * concurrency))
        engine = EngineSettings(max_running_requests=concurrency)
        comparison = simulate(
            trace, args.profile, POLICIES, concurrency=concurrency, engine=engine,
            replications=args.replications, jobs=args.jobs,
        )  # fmt: skip
        rows.append(throughput(comparison))
        print(f"{concurrency:4d}  " + "  ".join(f"{p} {x:.0f}" for p, x in rows[-1].items()), flush=True)
    if args.out is not None:
        draw(rows, args.profile, args.out)


def throughput(comparison: Comparison) -> dict[str, float]:
    """Output tokens per second of every policy."""
    return {result.policy: result.figures["output_throughput"] for result in comparison.results}


def draw(rows: list[dict[str, float]], profile: str, out: Path) -> None:
    """The picture: one line a policy, colours that a colour-blind reader can tell apart."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot as plt

    matplotlib.rcParams["svg.hashsalt"] = "sglang-dspark"
    figure, axes = plt.subplots(figsize=(7.2, 3.8))
    colours = ("#000000", "#999999", "#56b4e9", "#d55e00", "#009e73", "#cc79a7")
    for policy, colour in zip(rows[0], colours, strict=True):
        axes.plot(CONCURRENCIES, [row[policy] for row in rows], label=policy, color=colour, marker="o", markersize=3)
    axes.set_xscale("log", base=2)
    axes.set_xticks(CONCURRENCIES, [str(count) for count in CONCURRENCIES], fontsize=8)
    axes.set_xlabel("requests in flight")
    axes.set_yscale("log", base=2)
    ticks = (512, 1024, 2048, 4096, 8192, 16384)
    axes.set_yticks(ticks, [f"{tick:,}" for tick in ticks], fontsize=8)
    axes.set_ylabel("output tokens/s")
    axes.set_title(f"Simulated on profile {profile}", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, ncols=2)
    figure.tight_layout()
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, metadata={"Date": None})
    print(f"wrote {out}", file=sys.stderr)


if __name__ == "__main__":
    main()
