"""Which policy, from which load on, and what it gains: the answer in Python instead of on a command line.

Run: python examples/choose_a_policy.py [TRACE] (default: the trace that the package brings; a minute on two cores).
"""

from __future__ import annotations

import sys

from simulator import Acceptance, Engine, Load, simulate

PROFILE = "vllm-b300-dsv4-flash"
POLICIES = ["none", "fixed:k=3", "fixed:k=7", "hull", "argmax:lag=2"]


def main() -> None:
    trace = sys.argv[1] if len(sys.argv) > 1 else "example"
    for in_flight in (8, 32):
        comparison = simulate(
            Load(trace, concurrency=in_flight),
            Engine(PROFILE),
            POLICIES,
            acceptance=Acceptance("dspark:deepseek-v4-flash"),
            replications=3,
        )
        print(comparison)
        best = comparison.best()
        gain = comparison.gain(best)
        print(f"best: {best.policy}, {gain.mean:+.1%} [{gain.low:+.1%}, {gain.high:+.1%}] over {POLICIES[0]}")
        print(f"least TPOT: {comparison.best('steady_mean_tpot_ms').policy}\n")


if __name__ == "__main__":
    main()
