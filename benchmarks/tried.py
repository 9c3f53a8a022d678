"""What ideas that were tried and reverted cost: the figures of docs/notes.md.

Run: python benchmarks/tried.py --leaks, --rules TRACE or --memory TRACE

--leaks enumerates rules that look at what they must not (those that the tests plant) with the exact audit. --rules
simulates rules as they were before and after, in a closed loop at 16, 32 and 64 in flight on the same draws. --memory
gives `self-tuning` two memories in the drift of benchmarks/regret.py. TRACE: AzureLLMInferenceTrace_conv.csv.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from sglang_dspark.audit.exact import audit_exactly
from sglang_dspark.audit.world import Shape
from simulator import Load, load_trace, simulate

ROOT = Path(__file__).parents[1]
BASE = "fixed:k=7"
RULES = (
    BASE,
    "early-stop",
    "hull:fill=false,dips=false",
    "hull:dips=false",
    "hull",
    "argmax:lag=2,pricing=floor",
    "argmax:lag=2,cold=prior",
    "argmax:lag=2",
)
FIGURE = "steady_output_throughput"


def leaks(instances: int) -> None:
    """The worst total variation of each planted rule over random small worlds."""
    sys.path.insert(0, str(ROOT / "tests" / "audit"))
    import planted_faults as planted

    rules = [planted.ClaimingArgmaxLive(), planted.UnAdmits(), planted.LiveGuard()]
    for verdict in audit_exactly(rules, Shape(2, 2, 2, 4), instances=instances):
        print(f"{verdict.policy:24s} worst total variation {verdict.worst_tv:.3f} in {verdict.instances} worlds")


def rules(trace: str) -> None:
    """Gain of each rule over verifying everything."""
    for concurrency in (16, 32, 64):
        load = Load(load_trace(trace, limit=300 + 25 * concurrency), concurrency=concurrency)
        found = simulate(load, "vllm-b300-dsv4-flash", RULES, replications=3, jobs=1)
        for result in found.results[1:]:
            gap = result.difference[FIGURE]
            said = f"{100 * gap.mean:+.1f} [{100 * gap.low:+.1f}, {100 * gap.high:+.1f}]"
            print(f"{concurrency:3d} in flight  {result.policy:28s} {said}", flush=True)


def memory(trace: str) -> None:
    """Regret of `self-tuning` where confidences turn from bias +1 to -1 halfway, and where they are right."""
    import regret

    from sglang_dspark.policies import calibration

    regret.POLICIES = ("self-tuning",)
    for kept in (0.999, 0.99):
        calibration.KEPT = kept
        for world in regret.worlds(False):
            if world.name in ("the centre", "bias +1, then -1"):
                requests = load_trace(trace, limit=10 * world.in_flight)
                found = regret.regrets(world, requests, 2, 1)["self-tuning"]
                steps = f"memory of {1 / (1 - kept):4.0f} steps"
                print(f"{steps}  {world.name:20s} regret {100 * found:5.2f} %", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--leaks", action="store_true")
    parser.add_argument("--instances", type=int, default=200)
    parser.add_argument("--rules", metavar="TRACE")
    parser.add_argument("--memory", metavar="TRACE")
    args = parser.parse_args()
    if args.leaks:
        leaks(args.instances)
    if args.rules:
        rules(args.rules)
    if args.memory:
        memory(args.memory)


if __name__ == "__main__":
    main()
