"""Record, calibrate, predict, switch, compare: the whole loop on the demo pair, on any machine, in one script.

    python examples/close_the_loop.py --work loop

It starts its own server on this machine (extra `serve`), trains the demo pair if `--pair` has none, and prints what
every step of the guided path prints: about ten minutes on four quiet cores. `examples/README.md` shows the output of
one run. Everything is kept under `--work`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from sglang_dspark.errors import InputError
from sglang_dspark.live.client import Server, read_prompts, run_closed_loop

LOADS = (2, 4, 8)  # low, middle, high
REPETITIONS = 3
REQUESTS_EACH = 12  # requests of a repetition, per request in flight
TOKENS = 128
OLD = "fixed:k=7"
SWITCHES = ("argmax:lag=2", "fixed:k=3")
CANDIDATES = (OLD, "hull", *SWITCHES)
PAUSE_S = 2.0  # repetitions are told apart by the idle time between them


MAINS = {"dspark": "sglang_dspark.cli", "simulate": "simulator.cli"}


def run(program: str, *arguments: object, show: bool = True) -> str:
    """Run one of our commands as a person would, print it and what it says."""
    print(f"\n$ {program} {' '.join(map(str, arguments))}", flush=True)
    command = [sys.executable, "-c", f"from {MAINS[program]} import main; main()", *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if show:
        print(done.stdout, end="", flush=True)
    if done.returncode:
        sys.exit(f"{program} ended with status {done.returncode}")
    return done.stdout


@contextmanager
def server(pair: Path, port: int, log: Path, *flags: object) -> Iterator[Server]:
    """A server on the pair, up when this yields, gone afterwards."""
    command = [
        sys.executable,
        "-m",
        "sglang.launch_server",
        "--model-path",
        pair / "target",
        "--speculative-algorithm",
        "DSPARK",
        "--speculative-draft-model-path",
        pair / "draft",
        "--port",
        port,
        *flags,
    ]
    print(f"\n$ python {' '.join(map(str, command[1:]))}", flush=True)
    with open(log, "w") as file:
        process = subprocess.Popen(list(map(str, command)), stdout=file, stderr=file, start_new_session=True)
    found = Server(f"http://127.0.0.1:{port}")
    try:
        wait_until_up(found, process, log)
        yield found
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def wait_until_up(found: Server, process: subprocess.Popen, log: Path) -> None:
    for _ in range(600):
        if process.poll() is not None:
            sys.exit(f"the server ended at once, see {log}")
        try:
            found.dspark()
            return
        except InputError:
            time.sleep(1.0)
    sys.exit(f"the server did not come up in ten minutes, see {log}")


def load(found: Server, prompts: list[str], concurrency: int, tokens: int) -> float:
    """A closed loop, and a pause after it; returns tokens per second."""
    sampling = {"max_new_tokens": tokens, "temperature": 1.0, "ignore_eos": True}
    bodies = [{"text": text, "sampling_params": sampling} for text in prompts[: concurrency * REQUESTS_EACH]]
    begun = time.perf_counter()
    answers = run_closed_loop(found, bodies, concurrency)
    seconds = time.perf_counter() - begun
    done = sum(answer.meta["completion_tokens"] for answer in answers)
    print(f"{concurrency} in flight, {found.policy()}: {done / seconds:.1f} tokens/s", flush=True)
    time.sleep(PAUSE_S)
    return done / seconds


def record_loads(found: Server, prompts: list[str], tokens: int) -> None:
    """All loads in every round, so that a machine that drifts is not taken for a load that costs more.

    Shorter windows tell the price of a request from that of a token; the middle load is left to the prediction.
    """
    for _ in range(REPETITIONS):
        for policy, length in ((OLD, tokens), ("fixed:k=3", tokens // 4), ("fixed:k=0", tokens // 4)):
            found.switch(policy)
            for concurrency in LOADS if policy == OLD else (LOADS[0], LOADS[-1]):
                load(found, prompts, concurrency, length)
    found.switch(OLD)


def demo_prompts(pair: Path) -> list[str]:
    """All demo prompts in a fixed random order, so that every load meets the same mix."""
    texts = [turns[0] for path in sorted((pair / "prompts").glob("*.jsonl")) for turns in read_prompts(path)]
    random.Random(0).shuffle(texts)
    needed = LOADS[-1] * REQUESTS_EACH
    return [texts[number % len(texts)] for number in range(needed)]


def main() -> None:
    """The guided path."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for everything that is made")
    parser.add_argument("--pair", type=Path, help="demo pair (default: WORK/pair, trained if absent)")
    parser.add_argument("--port", type=int, default=31999)
    parser.add_argument("--tokens", type=int, default=TOKENS, help="tokens of an answer")
    options = parser.parse_args()
    work, pair = options.work, options.pair or options.work / "pair"
    work.mkdir(parents=True, exist_ok=True)
    run("dspark", "demo-model", "--out", pair, "--size", "ci") if not (pair / "target").exists() else None
    prompts, records, profile = demo_prompts(pair), work / "records", work / "profile.json"
    middle = LOADS[1]

    with server(pair, options.port, work / "profile.log", "--speculative-dspark-policy", OLD) as found:
        sizes = "/".join(map(str, LOADS))
        measured = ("--batches", sizes, "--contexts", 64, "--windows", 3)
        run("dspark", "profile", "--url", found.url, "--out", profile, *measured)

    flags = (
        "--speculative-dspark-profile",
        profile,
        "--speculative-dspark-policy",
        OLD,
        "--speculative-dspark-record",
        records,
    )
    with server(pair, options.port, work / "server.log", *flags) as found:
        record_loads(found, prompts, options.tokens)
        run("dspark", "calibrate", records, "--out", work / "sts.json")
        kept = ("--fit", records, "--concurrency", middle, "--under", OLD)
        run("dspark", "compare", records, *kept)
        policies = [word for policy in CANDIDATES for word in ("--policy", policy)]
        costs = ("--profile", records, "--policy-profile", profile)  # what a step costs here, and what policies believe
        run("simulate", "--trace", records, *costs, "--concurrency", middle, "--only", "--wide", *policies)
        told = {
            policy: json.loads(run("dspark", "compare", records, *kept, "--policy", policy, "--json", show=False))
            for policy in (OLD, *SWITCHES)
        }
        made: dict[str, list[float]] = {policy: [] for policy in told}
        for _ in range(REPETITIONS):
            for policy, rates in made.items():
                run("dspark", "policy", policy, "--url", found.url, show=False)
                rates.append(load(found, prompts, middle, options.tokens))
        after = ("--fit", records, "--concurrency", middle, "--complete", "--json", "--under")
        seen = {new: json.loads(run("dspark", "compare", records, *after, new, show=False)) for new in SWITCHES}
    print_switches(told, made, seen)


def print_switches(told: dict[str, Any], made: dict[str, list[float]], seen: dict[str, Any]) -> None:
    """What was predicted before the switches, and what they brought; gains are taken round by round."""
    print(f"\nswitching from {OLD}: told before, then made in turn in {REPETITIONS} rounds")
    columns = f"{'throughput: told':>17} {'made':>7}  {'in each round':24} {'accept length: told':>19} {'made':>6}"
    print(f"{'policy':14} {columns}")
    for policy in SWITCHES:
        new, old = (told[text]["steady_output_throughput"]["predicted"] for text in (policy, OLD))
        gain = new / old - 1
        gains = [new / old - 1 for new, old in zip(made[policy], made[OLD], strict=True)]
        each = ", ".join(f"{one:+.1%}" for one in gains)
        lengths = told[policy]["accept_length"]["predicted"], seen[policy]["accept_length"]["measured"]
        print(f"{policy:14} {gain:+17.1%} {median(gains):+7.1%}  {each:24} {lengths[0]:19.3f} {lengths[1]:6.3f}")


if __name__ == "__main__":
    main()
