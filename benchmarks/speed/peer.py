"""A whole trace, open loop, here and in NVIDIA Dynamo's offline replay, alternating on one core."""

from __future__ import annotations

import itertools
import json
import sys
import tempfile
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path

from sglang_dspark.policies import make_policy
from simulator.engine.run import Setting, assemble
from simulator.results.metrics import Figures, figures
from simulator.traces import Trace, load_trace
from speed.child import Child
from speed.loads import SIMULATED, drawing_s, setting, timed

MOONCAKE_BLOCK = 512  # tokens
RUNNING = 48


def whole_trace(path: str, peer: str | None, repeats: int) -> None:
    """One row a policy. peer: the interpreter that has Dynamo, None: this one, where it has it.

    Raises:
        InputError: if `peer` does not run or has no Dynamo.
    """
    seconds, trace = timed(lambda: load_trace(path))
    todo = setting(trace, RUNNING, closed=False)
    drawing = drawing_s(todo, repeats)
    print(f"\n{len(trace)} requests of {path}, open loop, at most {RUNNING} running; CPU s, the least of {repeats}")
    print(
        f"besides: {seconds:.2f} to read the trace; in `run`: about {drawing:.2f} to draw the blocks (measured apart)"
    )
    with ExitStack() as stack:
        other = None
        if peer is None and not has_dynamo():
            print("peer: not measured (ai-dynamo is not installed here)")
        else:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            write_mooncake(trace, Path(folder) / "trace.jsonl")
            other = stack.enter_context(start_peer(peer or sys.executable, trace, Path(folder) / "trace.jsonl"))
            reading = other.ask(requests=len(trace))["reading"]
            print(f"peer: ai-dynamo {other.ready['version']}, its defaults, {reading:.2f} s of it to read the trace")
        print(
            "policy          ours = assemble    run  figures   first    steps  mean batch  real time x    peer  ratio"
        )
        for text in SIMULATED:
            print(one_policy(todo, text, other, len(trace), repeats))


def one_policy(todo: Setting, text: str, peer: Child | None, requests: int, repeats: int) -> str:
    """One row; `first` is a run before those that count, with what is compiled or loaded on the way."""
    first = sum(parts(todo, text)[0])
    ours, theirs = [], []
    for _ in range(repeats):
        ours.append(parts(todo, text))
        if peer is not None:
            theirs.append(peer.ask(requests=requests)["seconds"])
    split, found = min(ours, key=lambda one: sum(one[0]))
    least = sum(split)
    steps = int(found["decode_steps"] + found["prefill_steps"])
    row = (
        f"{text:13s} {least:6.2f}  {split[0]:9.2f} {split[1]:6.2f} {split[2]:8.2f}  {first:6.2f}  {steps:7d}  "
        f"{found['mean_batch']:10.1f}  {found['duration'] / least:11.0f}"
    )
    return row + (f"  {min(theirs):6.2f}  {least / min(theirs):5.2f}" if theirs else "       -      -")


def parts(todo: Setting, text: str) -> tuple[tuple[float, float, float], Figures]:
    """CPU seconds to assemble a run, to run it and to compute its figures; the figures."""
    assembling, run = timed(lambda: assemble(todo, make_policy(text)))
    running, _ = timed(lambda: run.env.run(until=run.router.done))
    counting, found = timed(lambda: figures(run, todo.slos_ms))
    return (assembling, running, counting), found


def has_dynamo() -> bool:
    """Whether this interpreter has the peer."""
    return find_spec("dynamo") is not None and find_spec("dynamo.replay") is not None


def start_peer(python: str, trace: Trace, path: Path) -> Child:
    """The peer's process, ready to replay a Mooncake file."""
    block = MOONCAKE_BLOCK if trace.prefix_blocks is None else trace.prefix_blocks.block_tokens
    return Child(python, Path(__file__).with_name("dynamo_replay.py"), str(path), str(block))


def write_mooncake(trace: Trace, path: Path) -> None:
    """The trace as the peer reads it: blocks that no two prompts share where the trace names none."""
    blocks = trace.prefix_blocks
    size = MOONCAKE_BLOCK if blocks is None else blocks.block_tokens
    fresh = itertools.count(0 if blocks is None else int(blocks.ids.max()) + 1)
    columns = zip(trace.arrival_s.tolist(), trace.input_length.tolist(), trace.output_length.tolist(), strict=True)
    with path.open("w") as file:
        for request, (arrival_s, prompt, output) in enumerate(columns):
            ids = [] if blocks is None else blocks.of(request).tolist()
            ids += itertools.islice(fresh, -(-prompt // size) - len(ids))
            row = {"timestamp": round(1000 * arrival_s), "input_length": prompt, "output_length": output}
            print(json.dumps({**row, "hash_ids": ids}), file=file)
