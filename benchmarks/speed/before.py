"""A step of the engine and a decision of the host, here and at another commit, alternating in one run."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sglang_dspark.errors import InputError
from speed.child import Child
from speed.loads import SIMULATED

ROOT = Path(__file__).parents[2]
STEPS = {2: 20_000, 64: 3000, 256: 1000}  # by how many requests run at a time
REQUESTS = {2: 2000, 64: 4000, 256: 16000}  # by how many run at a time
DECIDING = (8, 64, 256)
GOALS = {2: "1/10", 64: "1/2", 256: "6/10"}

Pair = tuple[Child, Child]


def against(commit: str, repeats: int) -> None:
    """Both tables.

    Raises:
        InputError: if the commit is none of this checkout's repository, or cannot run this.
    """
    with checked_out(commit) as there, started(ROOT) as now, started(there) as then:
        print(f"\nCPU us of a decode step now and at {commit}, of requests that stay (blocks drawn before)")
        print("running  policy           now   before  ratio  goal")
        for running in STEPS:
            for text in SIMULATED:
                print(alone_row((now, then), text, running, repeats), flush=True)
        print(f"\nCPU us of an engine step now and at {commit}: the whole run by its steps (decode and prefill), and")
        print(
            f"the same less what drawing its blocks takes (measured apart); answers of 211 tokens; least of {repeats}"
        )
        print("running  policy        steps  prefills      now   before  ratio  undrawn now   before  ratio")
        for running in REQUESTS:
            for text in SIMULATED:
                print(step_row((now, then), text, running, repeats), flush=True)
        print(f"\nhost us of one decision now (as a share of {commit}), by requests in the batch")
        print("policy        " + "".join(f"{f'R={size}':>17s}" for size in DECIDING))
        for text in now.ready["decided"]:
            cells = [decision_cell((now, then), text, size, repeats) for size in DECIDING]
            print(f"{text:14s}" + "".join(f"{cell:>17s}" for cell in cells), flush=True)


def step_row(pair: Pair, text: str, running: int, repeats: int) -> str:
    """One policy at one number of running requests."""
    ask = {"policy": text, "running": running, "requests": REQUESTS[running]}
    now, then = least(pair, repeats, ask)
    each = [1e6 * run["seconds"] / run["steps"] for run in (now, then)]
    bare = [1e6 * (run["seconds"] - run["drawing"]) / run["steps"] for run in (now, then)]
    return (
        f"{running:7d}  {text:12s}  {now['steps']:5.0f}  {now['prefills']:8.0f}  {each[0]:7.1f}  {each[1]:7.1f}  "
        f"{each[0] / each[1]:5.2f}  {bare[0]:11.1f}  {bare[1]:7.1f}  {bare[0] / bare[1]:5.2f}"
    )


def alone_row(pair: Pair, text: str, running: int, repeats: int) -> str:
    """One policy at one number of running requests, which stay."""
    now, then = least(pair, repeats, {"policy": text, "running": running, "steps": STEPS[running]})
    each = [1e6 * run["seconds"] / run["steps"] for run in (now, then)]
    ratio = each[0] / each[1]
    return f"{running:7d}  {text:12s}  {each[0]:7.2f}  {each[1]:7.1f}  {ratio:5.3f}  {GOALS[running]:>4s}"


def decision_cell(pair: Pair, text: str, size: int, repeats: int) -> str:
    """One policy at one batch size."""
    if text not in pair[1].ready["decided"]:
        return "-"
    now, then = least(pair, repeats, {"policy": text, "running": size})
    return f"{1e6 * now['seconds']:.1f} ({now['seconds'] / then['seconds']:.2f})"


def least(pair: Pair, repeats: int, ask: dict[str, object]) -> list[dict[str, float]]:
    """The least answer of either, asked by turns."""
    answers = [[child.ask(**ask) for child in pair] for _ in range(repeats)]
    return [min(of_one, key=lambda answer: answer["seconds"]) for of_one in zip(*answers, strict=True)]


@contextmanager
def started(checkout: Path) -> Iterator[Child]:
    """A process that measures a checkout, and no other one."""
    path = tuple(checkout / folder for folder in (".", "kernels", "benchmarks"))
    with Child(sys.executable, Path(__file__).with_name("steps.py"), path=path) as child:
        if not Path(child.ready["simulator"]).resolve().is_relative_to(checkout.resolve()):
            raise InputError(f"{child.ready['simulator']} was imported, expected the simulator in {checkout}")
        yield child


@contextmanager
def checked_out(commit: str) -> Iterator[Path]:
    """The files of a commit in a folder of their own; the repository is left as it is."""
    asked = ["git", "-C", str(ROOT), "archive", "--format=tar", f"{commit}^{{commit}}"]
    done = subprocess.run(asked, capture_output=True)
    if done.returncode:
        reason = done.stderr.decode(errors="replace").strip().splitlines()[-1]
        raise InputError(f"--before {commit}: expected a commit of this repository ({reason})")
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(fileobj=io.BytesIO(done.stdout)) as files:
            files.extractall(folder, filter="data")
        yield Path(folder)
