"""Whether a change made any policy slower: the host time of one decision here and in another checkout, alternating.

Run: git worktree add ../before COMMIT; python benchmarks/decisions_against.py ../before [--rounds 5]

Each round measures every policy and batch size in a fresh process of either checkout, with `decide_once` of that
checkout's own benchmarks/simulation_speed.py. Printed: the least CPU time of the rounds here, and its ratio to there.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
BATCHES = (8, 64, 256)
_MEASURE = """
import json, sys
from simulation_speed import DECIDED, decide_once, per_call
from sglang_dspark.policies import make_policy
print(json.dumps({f"{text} {size}": per_call(decide_once(make_policy(text), size), 3)
                  for text in DECIDED for size in map(int, sys.argv[1:])}))
"""


def measured(checkout: Path) -> dict[str, float]:
    """CPU seconds of one decision by policy and batch size."""
    path = os.pathsep.join(str(checkout / folder) for folder in ("", "kernels", "benchmarks"))
    command = [sys.executable, "-c", _MEASURE, *map(str, BATCHES)]
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return dict(json.loads(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, help="the other checkout")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    here: dict[str, float] = {}
    there: dict[str, float] = {}
    for _ in range(args.rounds):
        for checkout, least in ((args.other.resolve(), there), (ROOT, here)):
            for name, seconds in measured(checkout).items():
                least[name] = min(seconds, least.get(name, seconds))
    print("policy        " + "".join(f"{f'R={size}':>20s}" for size in BATCHES))
    for text in dict.fromkeys(name.rsplit(" ", 1)[0] for name in here):
        cells = [(here[f"{text} {size}"], there.get(f"{text} {size}")) for size in BATCHES]
        shown = [f"{1e6 * now:9.1f} us" + (f" x{now / then:5.2f}" if then else "      ") for now, then in cells]
        print(f"{text:14s}" + "".join(f"{cell:>20s}" for cell in shown))


if __name__ == "__main__":
    main()
