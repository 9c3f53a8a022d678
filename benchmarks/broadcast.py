"""What one agreement a step costs the ranks of a tensor-parallel group: rank 0's decision in one gloo broadcast.

    python benchmarks/broadcast.py --ranks 2              # microseconds of a step by requests, on this machine
    python benchmarks/broadcast.py --ranks 8 --json out.json

Every rank takes part in every decode step, whatever decides (`serving/loop/agreement.py`), so this is a part of every
step time that is measured on such a server: a profile of a TP server holds it, and an estimate holds it in its host
time. The time of a step is the slowest rank's, all of which start together.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

BATCHES = (1, 16, 64, 256)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2, help="processes (2)")
    parser.add_argument("--steps", type=int, default=2000, help="timed broadcasts for each batch size (2000)")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    options = parser.parse_args()
    if not 2 <= options.ranks <= 64 or options.steps < 10:
        print(
            f"--ranks {options.ranks} --steps {options.steps} is refused, expected 2..64 and 10 or more",
            file=sys.stderr,
        )
        return 2
    import torch

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
    context = torch.multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    ranks = [
        context.Process(target=_rank, args=(rank, options.ranks, address, options.steps, results))
        for rank in range(options.ranks)
    ]
    for process in ranks:
        process.start()
    found = [results.get() for _ in ranks]
    for process in ranks:
        process.join()
    figures = {size: _slowest([one[size] for one in found]) for size in BATCHES}
    print(f"{options.ranks} ranks, {os.cpu_count()} cores, {options.steps} steps: us a step by requests")
    for size, (median, late) in figures.items():
        print(f"  R={size:4d}: median {1e6 * median:7.1f}, 99 % below {1e6 * late:7.1f}")
    if options.json is not None:
        rows = [{"requests": size, "median_s": median, "p99_s": late} for size, (median, late) in figures.items()]
        options.json.write_text(
            json.dumps(
                {"ranks": options.ranks, "cores": os.cpu_count(), "steps": options.steps, "rows": rows}, indent=1
            )
        )
    return 0


def _slowest(by_rank: list[list[float]]) -> tuple[float, float]:
    """(median, 99th percentile) over steps of the slowest rank's seconds."""
    steps = sorted(max(step) for step in zip(*by_rank, strict=True))
    return statistics.median(steps), steps[int(0.99 * (len(steps) - 1))]


def _rank(rank: int, world: int, address: str, steps: int, results: Any) -> None:
    import torch

    from sglang_dspark.policies import Plan
    from sglang_dspark.serving.base.steps import StepDecision
    from sglang_dspark.serving.loop.agreement import Agreement

    torch.distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=world)
    agreement, taken = Agreement(torch.distributed.group.WORLD, 0, rank), {}
    for requests in BATCHES:
        decision = StepDecision("policy", 3 * requests, Plan(3 * requests, 0, 7)) if rank == 0 else None
        taken[requests] = []
        for step in range(steps + 20):
            torch.distributed.barrier()
            began = time.perf_counter()
            agreement.share(step, requests, decision)
            if step >= 20:
                taken[requests].append(time.perf_counter() - began)
    results.put(taken)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    raise SystemExit(main())
