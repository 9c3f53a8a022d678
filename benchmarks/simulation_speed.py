"""How fast the simulator is, and what a verification decision costs the host. Everything is measured in one run.

Run: python benchmarks/simulation_speed.py [--trace FILE [--peer PYTHON]] [--before COMMIT] [--repeats 3] [--only PART]

loop: the simulator against a bare SimPy loop (one event a step, a NumPy batch that loses 1..5 tokens a step and nothing
else), for the same number of engine steps and the same limit of running requests; requests of 211 output tokens that
never run out. Goal: at most 3 times the bare loop at a mean of up to 64 running.

trace (with --trace): the whole trace, open loop at its own rate, one policy on one core, alternating with the peer,
NVIDIA Dynamo's offline replay, where there is one (goal for the Azure 2023 conversation trace: its time; up to 1.5
times it if what remains is explained). The peer pins much that we do not need, so it has an environment of its own, and
--peer names that interpreter:

    python3 -m venv peer
    peer/bin/pip install --no-deps ai-dynamo==1.6.1 ai-dynamo-runtime==1.6.1
    peer/bin/pip install typing_extensions pydantic==2.13.5 numpy pyyaml pandas uvloop

before (with --before): an engine step at 2, 64 and 256 running requests, and a host decision, here and at that commit.

memory: its peak for a trace and for one ten times as long, each in a process of its own.

decisions: the host's time for one decision by policy and batch size, beside SGLang's `compute_verify_token_budget`
where sglang is installed (goal for a budget rule at R = 256: at most a quarter of it).

Times are CPU time on one core, the least of several repetitions that alternate between what is compared: other work on
the machine disturbs. Imports, reading the trace and what is compiled first are not in them.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import platform
import resource
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from speed.bare import bare_loop
from speed.before import against
from speed.loads import PROFILE, SIMULATED, drawing_s, on_one_core, setting, synthetic, timed
from speed.peer import whole_trace

from sglang_dspark import jit
from sglang_dspark.cost import load_profile
from sglang_dspark.errors import InputError
from sglang_dspark.policies import LiveBlock, Past, Policy, SurvivalRing, make_policy
from simulator.blocks.drafters import DRAFTERS
from simulator.engine.run import Setting
from simulator.results.run import run_once

DECIDED = ("fixed:k=7", "schedule", "tetris", "goodput", "argmax:lag=2", "threshold", "early-stop", "hull", "lookahead")
BATCHES = (1, 8, 64, 256)
SGLANG = "SGLang's budget function"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trace", help="a request trace to run whole, open loop")
    parser.add_argument("--peer", metavar="PYTHON", help="an interpreter that has ai-dynamo (default: this one)")
    parser.add_argument("--before", metavar="COMMIT", help="a commit to compare a step and a decision with")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--requests", type=int, default=60, help="requests per running request in part `loop`")
    parser.add_argument("--only", choices=("loop", "trace", "before", "memory", "decisions"), help="one part")
    args = parser.parse_args()
    for name in ("repeats", "requests"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} {getattr(args, name)}: expected 1 or more")
    for name in ("trace", "before"):
        if args.only == name and not getattr(args, name):
            parser.error(f"--only {name} needs --{name}")
        if args.only not in (None, name) and getattr(args, name):
            parser.error(f"--only {args.only} leaves --{name} out: expected one of them")
    if args.peer and not args.trace:
        parser.error("--peer replays a trace: give --trace")
    parts = {
        "loop": lambda: against_bare_loop(args.requests, args.repeats),
        "trace": lambda: whole_trace(args.trace, args.peer, args.repeats) if args.trace else None,
        "before": lambda: against(args.before, args.repeats) if args.before else None,
        "memory": memory,
        "decisions": lambda: decisions(args.repeats),
    }
    on_one_core()
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, NumPy {np.__version__}")
    try:
        for name in [args.only] if args.only else parts:
            parts[name]()
    except InputError as error:
        parser.error(str(error))


def against_bare_loop(requests: int, repeats: int) -> None:
    """Part `loop`."""
    print("\nCPU us/step, of it for blocks and decisions (measured apart); the bare loop's; the ratio")
    print("running  policy         steps  mean batch  us/step  blocks  decisions   bare  ratio  requests/s")
    for running in (64, 256):
        for text in SIMULATED:
            todo = setting(synthetic(requests * running), running)
            print(f"{running:7d}  {text:12s} {one_comparison(todo, make_policy(text), running, repeats)}")


def one_comparison(todo: Setting, policy: Policy, running: int, repeats: int) -> str:
    """One row of part 1."""
    ours, bare = [], []
    for _ in range(repeats):
        seconds, (figures, _) = timed(lambda: run_once(todo, policy))
        ours.append(seconds)
        steps = int(figures["decode_steps"] + figures["prefill_steps"])
        bare.append(timed(lambda count=steps: bare_loop(count, running))[0])
    decisions = per_call(decide_once(policy, running), repeats) * figures["decode_steps"]
    blocks = drawing_s(todo, repeats)
    return (
        f"{steps:7d}  {figures['mean_batch']:10.1f}  {1e6 * min(ours) / steps:7.1f}  "
        f"{1e6 * blocks / steps:6.1f}  {1e6 * decisions / steps:9.1f}  {1e6 * min(bare) / steps:5.1f}  "
        f"{min(ours) / min(bare):5.2f}  {len(todo.trace) / min(ours):10.0f}"
    )


def memory() -> None:
    """Part `memory`."""
    print("\nrequests  peak MiB")
    context = multiprocessing.get_context("spawn")
    for requests in (2000, 20000):
        with context.Pool(1) as pool:
            print(f"{requests:8d}  {pool.apply(peak_mib, (requests,)):8.1f}")


def peak_mib(requests: int) -> float:
    """Peak resident memory of this process after one run, MiB."""
    run_once(setting(synthetic(requests), 64), make_policy("hull"))
    status = Path("/proc/self/status")
    if status.exists():  # Linux: getrusage also counts what the process was before it became this program
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 * 1024 if sys.platform == "darwin" else 1024)


def decisions(repeats: int) -> None:
    """Part `decisions`: compiled, where anything is, and in NumPy; either as a share of SGLang's."""
    upstream = sglang_budget()
    jit.prepare()
    times = [least_of_decisions(size, upstream, repeats) for size in BATCHES]
    print(f"\nhost us of one decision, by requests in the batch{' (share of SGLang)' if upstream else ''}")
    print(f"here decisions are {jit.stated()}")
    print("policy                 " + "".join(f"{f'R={size}':>8s}" + " " * 7 * bool(upstream) for size in BATCHES))
    for row in times[0]:
        shares = [f" ({found[row] / found[SGLANG]:4.2f})" if upstream else "" for found in times]
        print(f"{row:23s}" + "".join(f"{1e6 * a[row]:8.1f}{b}" for a, b in zip(times, shares, strict=True)).rstrip())
    if upstream is None:
        print(f"{SGLANG}: not measured (sglang is not installed here)")


def least_of_decisions(
    size: int, upstream: Callable[[int], Callable[[], object]] | None, repeats: int
) -> dict[str, float]:
    """Least CPU seconds by what decides, all of them by turns."""
    paths: dict[str, Callable[[], AbstractContextManager[object]]] = {"NumPy": jit.numpy_only}
    if jit.compiled():
        paths = {"compiled": nullcontext, **paths}
    calls = {}
    for text in DECIDED:
        for name, path in paths.items():
            calls[f"{text:13s}{name}"] = path, decide_once(make_policy(text), size)
            if text.startswith("argmax"):
                calls[f"{'  its budget':13s}{name}"] = path, plan_once(make_policy(text), size)
    if upstream is not None:
        calls[SGLANG] = nullcontext, upstream(size)
    least = dict.fromkeys(calls, math.inf)
    for _ in range(repeats):
        for row, (path, call) in calls.items():
            with path():
                least[row] = min(least[row], per_call(call, 1))
    return least


def batch_view(policy: Policy, size: int) -> tuple[Past, LiveBlock]:
    """A steady batch: confidences like those of the simulator, lagged ones in a ring."""
    gamma, rng = DRAFTERS["dspark"].gamma, np.random.default_rng(size)
    blocks = [LiveBlock.of(rng.beta(6, 1.2, (size, gamma)).astype(np.float32)) for _ in range(3)]
    ring, slots, owner = SurvivalRing(size, gamma, 2), np.arange(size), np.ones(size, dtype=np.int64)
    for block in blocks[:2]:
        ring.publish(slots, owner, block.units)
    prices = load_profile(PROFILE).prices(size, gamma)
    return Past(size, gamma, prices, lambda lag: ring.look(slots, owner, lag), policy.start(gamma)), blocks[2]


def decide_once(policy: Policy, size: int) -> Callable[[], object]:
    """The whole decision: how many tokens, and which."""
    past, live = batch_view(policy, size)
    return lambda: policy.decide(past, live)


def plan_once(policy: Any, size: int) -> Callable[[], object]:
    """What SGLang's function does: how many tokens, from lagged survivals."""
    past, _ = batch_view(policy, size)
    return lambda: policy.budget(past)


def sglang_budget() -> Callable[[int], Callable[[], object]] | None:
    """SGLang's host decision on the same survivals, or None where it is not installed."""
    try:
        import torch
        from sglang.srt.speculative.dspark_components import dspark_planner, dspark_sps
    except ImportError:
        return None
    torch.set_num_threads(1)
    model = load_profile(PROFILE)
    probes = model.verify.probes.astype(int).tolist()
    table = dspark_sps.SpsCostTable(probes, (1.0 / model.verify_s(1, model.verify.probes)).tolist(), probes[-1])

    def at(size: int) -> Callable[[], object]:
        past, _ = batch_view(make_policy("argmax:lag=2"), size)
        survival = torch.from_numpy(past.survival(2)[0].astype(np.float32) / np.float32(1 << 24))
        config = dspark_planner.DSparkScheduleConfig(gamma=past.gamma)
        return lambda: dspark_planner.compute_verify_token_budget(
            history_survival_probs=survival, sps_table=table, cfg=config
        )

    return at


def per_call(call: Callable[[], object], repeats: int, seconds: float = 0.05) -> float:
    """Least mean CPU seconds of a call over `repeats` rounds of about `seconds` each."""
    count = max(1, int(seconds / max(min(timed(call)[0] for _ in range(3)), 1e-7)))
    rounds = []
    for _ in range(repeats):
        start = time.process_time()
        for _ in range(count):
            call()
        rounds.append((time.process_time() - start) / count)
    return min(rounds)


if __name__ == "__main__":
    main()
