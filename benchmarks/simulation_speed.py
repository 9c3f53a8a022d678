"""How fast the simulator is, and what a verification decision costs the host. Everything is measured in one run.

Run: python benchmarks/simulation_speed.py [--trace FILE] [--repeats 3]

1. The simulator against a bare SimPy loop (one event a step, a NumPy batch that loses 1..5 tokens a step and nothing
   else), for the same number of engine steps and the same limit of running requests; requests of 211 output tokens that
   never run out. Goal: at most 3 times the bare loop at a mean of up to 64 running.
2. With --trace: the whole trace, open loop at its own rate (goal for the Azure 2023 conversation trace: under 120 s).
3. Peak memory for a trace and for one ten times as long, each in a process of its own.
4. The host's time for one decision by policy and batch size, beside SGLang's `compute_verify_token_budget` where sglang
   is installed (goal for a budget rule at R = 256: at most a quarter of it).

Times are this process's CPU time, the least of several repetitions that alternate between what is compared: other work
on the machine disturbs.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import numpy as np
import simpy

from sglang_dspark.cost import load_profile
from sglang_dspark.policies import LiveBlock, Past, Policy, SurvivalRing, make_policy
from simulator.blocks.acceptance import BlockTable, StatisticalAcceptance
from simulator.blocks.drafters import DRAFTERS
from simulator.engine.run import Setting
from simulator.engine.settings import EngineSettings
from simulator.results.run import run_once
from simulator.traces import Trace, load_trace

PROFILE = "vllm-b300-dsv4-flash"
SIMULATED = ("argmax:lag=2", "hull", "fixed:k=7")
DECIDED = ("fixed:k=7", "schedule", "tetris", "goodput", "argmax:lag=2", "threshold", "early-stop", "hull", "lookahead")
OUTPUT_TOKENS = 211  # mean of the Azure 2023 conversation trace
BATCHES = (1, 8, 64, 256)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trace", help="a request trace to run whole, open loop")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--requests", type=int, default=60, help="requests per running request in part 1")
    args = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, NumPy {np.__version__}")
    against_bare_loop(args.requests, args.repeats)
    if args.trace:
        whole_trace(args.trace)
    memory()
    decisions(args.repeats)


def synthetic(requests: int) -> Trace:
    """Equal requests that all arrive at once."""
    output = np.full(requests, OUTPUT_TOKENS)
    return Trace(np.zeros(requests), np.full(requests, 512), output, source="synthetic")


def setting(trace: Trace, running: int, *, closed: bool = True) -> Setting:
    cost = load_profile(PROFILE)
    engine = EngineSettings(max_running_requests=running)
    return Setting(trace, cost, cost, DRAFTERS["dspark"], engine=engine, concurrency=running if closed else None)


def against_bare_loop(requests: int, repeats: int) -> None:
    """Part 1."""
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
    blocks = blocks_s(todo, repeats)
    return (
        f"{steps:7d}  {figures['mean_batch']:10.1f}  {1e6 * min(ours) / steps:7.1f}  "
        f"{1e6 * blocks / steps:6.1f}  {1e6 * decisions / steps:9.1f}  {1e6 * min(bare) / steps:5.1f}  "
        f"{min(ours) / min(bare):5.2f}  {len(todo.trace) / min(ours):10.0f}"
    )


def blocks_s(todo: Setting, repeats: int) -> float:
    """CPU seconds to draw the blocks of every request of the trace once."""
    output = todo.trace.output_length
    source = StatisticalAcceptance(todo.drafter, todo.confidence, np.arange(len(output)) % 3, output, 0)
    table = BlockTable.empty(OUTPUT_TOKENS + 1, source.gamma, confidence=False)

    def all_blocks() -> None:
        for request in range(len(output)):
            source.fill(request, 0, table)

    all_blocks()
    return min(timed(all_blocks)[0] for _ in range(repeats))


def bare_loop(steps: int, running: int) -> None:
    """One SimPy process, one event a step, the batch as one array; requests arrive in a process of their own."""
    env, rng = simpy.Environment(), np.random.default_rng(0)
    waiting: list[int] = []
    wake: list[simpy.Event] = []

    def arrivals() -> Generator[simpy.Event, Any, None]:
        while True:
            waiting.append(OUTPUT_TOKENS)
            if wake:
                wake.pop().succeed()
            # Enough to keep every place taken, as in the runs that this is compared with.
            yield env.timeout(0.006 * 60 / running)

    def engine() -> Generator[simpy.Event, Any, None]:
        remaining = np.zeros(0)
        for _ in range(steps):
            if waiting and len(remaining) < running:
                count = min(len(waiting), running - len(remaining))
                remaining = np.concatenate([remaining, waiting[:count]])
                del waiting[:count]
            if len(remaining) == 0:
                wake.append(env.event())
                yield wake[0]
                continue
            yield env.timeout(0.006 + 0.00002 * len(remaining) * 4)
            remaining = remaining - (1 + rng.integers(0, 5, len(remaining)))
            remaining = remaining[remaining > 0]

    waiting += [OUTPUT_TOKENS] * running
    env.process(arrivals())
    env.run(until=env.process(engine()))


def whole_trace(path: str) -> None:
    """Part 2."""
    trace = load_trace(path)
    print(f"\n{len(trace)} requests of {path}, open loop")
    print("policy            s  requests/s    steps  mean batch  times real time")
    for text in SIMULATED:
        seconds, (figures, _) = timed(lambda text=text: run_once(setting(trace, 48, closed=False), make_policy(text)))
        steps = int(figures["decode_steps"] + figures["prefill_steps"])
        print(
            f"{text:12s} {seconds:6.1f}  {len(trace) / seconds:10.0f}  {steps:7d}  {figures['mean_batch']:10.1f}  "
            f"{figures['duration'] / seconds:15.0f}"
        )


def memory() -> None:
    """Part 3."""
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
    """Part 4."""
    upstream = sglang_budget()
    print("\nhost microseconds of one decision, by requests in the batch")
    print("policy        " + "".join(f"{f'R={size}':>9s}" for size in BATCHES))
    times = {}
    for text in DECIDED:
        policy = make_policy(text)
        times[text] = [per_call(decide_once(policy, size), repeats) for size in BATCHES]
        print(f"{text:14s}" + "".join(f"{1e6 * seconds:9.1f}" for seconds in times[text]))
    if upstream is None:
        print("SGLang's compute_verify_token_budget: not measured (sglang is not installed here)")
        return
    theirs = [per_call(upstream(size), repeats) for size in BATCHES]
    ours = [per_call(plan_once(make_policy("argmax:lag=2"), size), repeats) for size in BATCHES]
    print(f"{'SGLang budget':14s}" + "".join(f"{1e6 * seconds:9.1f}" for seconds in theirs))
    print(f"{'argmax budget':14s}" + "".join(f"{1e6 * seconds:9.1f}" for seconds in ours))
    print(f"{'share':14s}" + "".join(f"{a / b:9.2f}" for a, b in zip(ours, theirs, strict=True)))


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


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds, and what the call returned."""
    start = time.process_time()
    result = call()
    return time.process_time() - start, result


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
