"""One decode step as the rules see it: tau, step time and Theta along the admission order; docs' picture and table.

Run: python benchmarks/one_decision.py [--out docs/how_it_decides.svg] (the picture needs matplotlib). The block is
drawn from the paper's acceptance of DSpark on Qwen3-4B, calibrated confidences; costs are those of
`vllm-b300-dsv4-flash` on SGLang's graphs.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pictures

from sglang_dspark.policies import SCALE, LiveBlock, Past, make_policy
from sglang_dspark.policies.arithmetic import Floats
from simulator import DRAFTERS, Confidence, Load
from simulator.blocks.acceptance import BlockTable, StatisticalAcceptance
from simulator.inputs import prepare
from simulator.traces import example_trace

PROFILE = "vllm-b300-dsv4-flash"
REQUESTS = 20
POLICIES = ("fixed:k=3", "fixed:k=7", "threshold:t=0.5", "early-stop", "hull", "lookahead", "argmax:lag=2")


@dataclass(frozen=True)
class Step:
    """Along the admission order, [R * gamma + 1] each. counts: what each policy verifies. theirs: its own Theta, which
    is below the curve where a rule takes the same number of other tokens (fixed lengths, thresholds).
    """

    tau: Floats
    seconds: Floats
    counts: dict[str, int]
    theirs: dict[str, float]

    @property
    def theta(self) -> Floats:
        return self.tau / self.seconds


def one_step(seed: int = 1) -> Step:
    """The step that the page shows."""
    drafter, confidence = DRAFTERS["dspark"], Confidence.of("calibrated")
    domain, output = np.arange(REQUESTS) % 3, np.full(REQUESTS, 200)
    source = StatisticalAcceptance(drafter, confidence, domain, output, seed)
    rows = BlockTable.empty(REQUESTS, source.gamma, confidence=True)
    earlier = BlockTable.empty(REQUESTS, source.gamma, confidence=True)
    for request in range(REQUESTS):
        source.fill(request, 40, rows.rows(request, request + 1))
        source.fill(request, 34, earlier.rows(request, request + 1))
    assert rows.confidence is not None and earlier.confidence is not None
    live, before = LiveBlock.of(rows.confidence), LiveBlock.of(earlier.confidence)
    setting = prepare(Load(example_trace(), concurrency=REQUESTS), PROFILE)
    prices = setting.server(make_policy("hull")).on_graphs(setting.cost).prices(REQUESTS, source.gamma)
    everyone = np.ones(REQUESTS, dtype=bool)
    counts, theirs = {}, {}
    for text in POLICIES:
        policy = make_policy(text)
        past = Past(REQUESTS, source.gamma, prices, lambda _: (before.units, everyone), policy.start(source.gamma))
        decision = policy.decide(past, live)
        counts[text] = int(decision.total)
        inside = np.arange(source.gamma)[None, :] < decision.lengths[:, None]
        tau = REQUESTS + float(live.units[inside].sum()) / SCALE
        theirs[text] = tau / float(prices.seconds[decision.total])
    along = np.sort(live.units.ravel())[::-1]
    tau = REQUESTS + np.concatenate([[0], np.cumsum(along)]) / SCALE
    return Step(tau, prices.seconds[: tau.size], counts, theirs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=None, help="picture (.svg)")
    args = parser.parse_args()
    step = one_step()
    print("\n".join(table(step)))
    if args.out is not None:
        draw(step, args.out)


def table(step: Step) -> list[str]:
    """As Markdown."""
    lines = ["| policy | draft tokens verified | step, ms | Theta, tokens/s |", "|---|---:|---:|---:|"]
    for text, count in step.counts.items():
        lines.append(f"| `{text}` | {count} | {1e3 * step.seconds[count]:.2f} | {step.theirs[text]:,.0f} |")
    best = int(step.theta.argmax())
    lines.append(f"| the top of the curve | {best} | {1e3 * step.seconds[best]:.2f} | {step.theta[best]:,.0f} |")
    return lines


def draw(step: Step, out: Path) -> None:
    """tau, T and Theta below each other, and where the rules stop."""
    plt = pictures.pyplot()
    plt.rcParams["font.size"] = 9
    figure, axes = plt.subplots(3, 1, figsize=(7.2, 6.6), sharex=True, height_ratios=[1, 1, 1.6])
    along = np.arange(step.tau.size)
    axes[0].plot(along, step.tau, color="#0072b2")
    axes[0].set_ylabel("tau, tokens a step")
    axes[1].step(along, 1e3 * step.seconds, where="post", color="#d55e00")
    axes[1].set_ylabel("T, ms a step")
    axes[2].plot(along, step.theta, color="black", linewidth=1)
    axes[2].set_ylabel("Theta = tau / T, tokens/s")
    axes[2].set_xlabel("draft tokens verified, the likeliest first")
    marks = {"early-stop": ("#d55e00", "s"), "hull": ("#009e73", "o"), "argmax:lag=2": ("#cc79a7", "^"),
             "fixed:k=3": ("#56b4e9", "v"), "fixed:k=7": ("#0072b2", "D")}  # fmt: skip
    for text, (colour, marker) in marks.items():
        axes[2].plot(step.counts[text], step.theirs[text], marker, color=colour, markersize=8, label=text)
    axes[2].legend(fontsize=8, loc="lower right")
    for each in axes:
        each.grid(alpha=0.25)
        each.spines[["top", "right"]].set_visible(False)
    axes[0].set_title(f"One step of {REQUESTS} requests, gamma 7 (simulated; step costs of {PROFILE})", fontsize=9)
    figure.tight_layout()
    pictures.save(figure, out)
    plt.close(figure)


if __name__ == "__main__":
    main()
