"""Whether compiled code and NumPy give the same figures, to the last bit, on real traces.

Run: python benchmarks/compiled_figures.py --data FOLDER [--minutes 5] [--requests 300] [--only WORLD] [--policy NAME]

Every registered policy and the line-up of `simulate`, both ways: the example trace, Azure 2023, Mooncake with its
prefixes, memory that runs out, replicas, lock step, a closed loop, and a recorded load (made by tests/records); then
what `simulate` prints, again, in two processes, and without compiled code. FOLDER holds azure2023 and mooncake;
--minutes 0 takes whole Azure traces, --requests 0 all of Mooncake. Status 1: they differ.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sglang_dspark import jit
from sglang_dspark.errors import InputError
from sglang_dspark.policies import POLICIES, Policy, make_policy, policy_to_string
from simulator import EngineSettings, Load, Trace, load_trace
from simulator.baselines import ADAPTIVE
from simulator.engine.run import Setting, assemble
from simulator.engine.stepping import LOOPS
from simulator.inputs import Engine, prepare
from simulator.results.metrics import figures

ROOT = Path(__file__).parents[1]
PROFILES = "vllm-b300-dsv4-flash", "estimate-h100-qwen3-8b-bf16"  # the second knows the context
MORE = ("fixed:k=3", "fixed:k=7", *ADAPTIVE, "argmax:lag=2,cold=prior,calibrate=online", "hull:costs=online")


def left_by(setting: Setting, policy: Policy, **callbacks: Any) -> dict[str, Any]:
    """All that a run leaves behind, by name."""
    run = assemble(setting, policy, **callbacks)
    run.env.run(until=run.router.done)
    left = {f"its {name}": value for name, value in vars(run.recorder).items() if not name.startswith("on_")}
    for number, tally in enumerate(left.pop("its tallies")):
        each = vars(tally) | dict(zip(("end_s", "gap_s", "bursts"), tally.bursts.rows(), strict=True))
        left |= {f"{name} of replica {number}": value for name, value in each.items()}
    return left | figures(run, setting.slos_ms)


def difference(one: dict[str, Any], two: dict[str, Any]) -> str:
    """The first name whose value is not the same to the last bit, and both values; empty if there is none."""
    for name, value in one.items():
        found, expected = np.asarray(value), np.asarray(two[name])
        if (found.dtype, found.shape, found.tobytes()) != (expected.dtype, expected.shape, expected.tobytes()):
            return f"{name}: {value} and {two[name]}"
    return ""


def served(load: Load | Trace | str | Path, **engine: Any) -> Setting:
    return prepare(load, Engine(PROFILES[0], settings=EngineSettings(**engine) if engine else None))


def worlds(data: Path, minutes: float, requests: int) -> Iterator[tuple[str, Setting]]:
    """What is simulated, by name."""
    azure = str(data / "azure2023" / "AzureLLMInferenceTrace_{}.csv")
    conv, code = (load_trace(azure.format(name), end_s=60 * minutes or None) for name in ("conv", "code"))
    mooncake = load_trace(data / "mooncake" / "synthetic_trace.jsonl", limit=requests or None)
    may_end_early = replace(conv, max_tokens=conv.output_length)
    yield from (("example", served("example")), ("azure conv", served(conv)), ("azure code", served(code)))
    yield "azure conv, context", prepare(conv, PROFILES[1])
    yield "64 in flight", prepare(Load(conv, concurrency=64), PROFILES[1])
    yield "mooncake", served(mooncake, kv_tokens=400_000)
    yield "tight memory", served(Load(may_end_early, request_rate=40.0), kv_tokens=8_000)
    for router in ("round-robin", "least-loaded"):
        yield f"2 replicas, {router}", served(conv, replicas=2, router=router, max_running_requests=16)
    yield "dp attention", served(conv, replicas=2, dp_attention=True)
    sys.path.append(str(ROOT / "tests" / "records"))
    from synthetic_load import Load as Recorded  # type: ignore[import-not-found,unused-ignore]

    with tempfile.TemporaryDirectory() as folder:
        Recorded(Path(folder) / "records", "fixed:k=4").closed(6, requests=120, repetitions=1).open(20).close()
        yield "records", served(Path(folder) / "records")


def printed(jobs: int, compiled: bool) -> bytes:
    """What `simulate` answers to a call in a process of its own."""
    call = "from simulator.cli import main; main()"
    asked = ["--trace", "example", "--profile", PROFILES[0], "--replications", "2", "--jobs", str(jobs), "--json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), jit.SWITCH: str(int(compiled))}
    return subprocess.run([sys.executable, "-c", call, *asked], env=environment, stdout=-1, check=True).stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--requests", type=int, default=300)
    parser.add_argument("--only", action="append", metavar="WORLD", default=[])
    parser.add_argument("--policy", action="append", default=[])
    args = parser.parse_args()
    if not jit.compiled() or jit.prepare() or jit.prepare(LOOPS):
        sys.exit(f"error: there is no compiled code to compare: {jit.stated()}")
    policies = list(dict.fromkeys(map(make_policy, args.policy or (*POLICIES, *MORE))))
    differ = compared = 0
    for name, setting in worlds(args.data, args.minutes, args.requests):
        for policy in policies if not args.only or name in args.only else ():
            try:
                setting.check(policy)
            except InputError as error:
                print(f"{name:24s} {policy_to_string(policy):44s} left out: {error}")
                continue
            began, compiled = time.process_time(), left_by(setting, policy)
            then = time.process_time()
            with jit.numpy_only():
                found = difference(compiled, left_by(setting, policy))
            times = f"{then - began:6.2f} s, NumPy {time.process_time() - then:6.2f} s"
            said = f"{compiled['decode_steps']} steps, {compiled['retractions']} retractions, {times}"
            print(f"{name:24s} {policy_to_string(policy):44s} {found or 'same':6s} {said}", flush=True)
            compared, differ = compared + 1, differ + bool(found)
    if not compared:
        sys.exit(f"error: --only {', '.join(args.only)}: no such world, or no policy for it")
    if not args.only:
        calls = [(1, True), (1, True), (2, True), (1, False), (2, False)]
        answers = [printed(jobs, compiled) for jobs, compiled in calls]
        compared, differ = compared + len(calls) - 1, differ + len(set(answers)) - 1
        print(f"simulate, again, --jobs 2, NumPy, NumPy --jobs 2: {[answer == answers[0] for answer in answers]}")
    print(f"{compared} compared, {differ} differ")
    sys.exit(differ > 0)


if __name__ == "__main__":
    main()
