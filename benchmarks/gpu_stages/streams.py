"""Publishes behind a busy stream: what a step costs the host, how long a copy takes, and that lateness is seen."""

from __future__ import annotations

import statistics
import time
from types import SimpleNamespace
from typing import Any

from gpu_stages import Stage

BUSY_CYCLES = 100_000_000
BATCHES = (1, 8, 64, 256)
GAMMA = 7


def run(stage: Stage) -> None:
    device = stage.device
    import torch

    for policy in ("argmax:lag=2", "fixed:k=3"):
        for rows in BATCHES:
            engine = make_engine(policy, device, rows)
            confidence = torch.rand(rows, GAMMA, device=device)
            host = [1e6 * one_step(engine, confidence, wait=True) for _ in range(60)][10:]
            engine.settle()
            stage.note(**{f"host us a step, {policy}, R={rows}": round(statistics.median(host), 1)})
    stage.note(**switched(device))
    if device.type == "cpu":
        return
    for rows in BATCHES:
        stage.note(**{f"copy us, R={rows}": round(1e6 * copy_seconds(device, rows), 1)})
    stage.note(**late_step(device))


def make_engine(policy: str, device: Any, rows: int, schedule: str = "overlapped") -> Any:
    import torch

    from sglang_dspark.cost import load_profile
    from sglang_dspark.policies import make_policy
    from sglang_dspark.serving.base.options import Resolved
    from sglang_dspark.serving.loop.agreement import Agreement
    from sglang_dspark.serving.loop.engine import PolicyEngine

    resolved = Resolved(make_policy(policy), None, load_profile("vllm-b300-dsv4-flash"), schedule, 0.0)  # type: ignore[arg-type]
    return PolicyEngine(
        resolved,
        gamma=GAMMA,
        generations=torch.ones(rows + 1, dtype=torch.int64),
        device=device,
        agreement=Agreement(None, 0, 0),
        caps_only=False,
    )


def batch_of(rows: int) -> Any:
    import torch

    sampling = SimpleNamespace(temperature=1.0, top_p=1.0, top_k=-1)
    slots = torch.arange(rows)
    reqs = [SimpleNamespace(rid=str(row), sampling_params=sampling) for row in range(rows)]
    return SimpleNamespace(req_pool_indices_cpu=slots, req_pool_indices=slots, seq_lens_sum=100 * rows, reqs=reqs)


def one_step(engine: Any, confidence: Any, *, busy: bool = False, wait: bool = False) -> float:
    """Seconds of host time of one decode step's policy work. busy: the stream works first. wait: for it, afterwards."""
    import torch

    rows = confidence.shape[0]
    batch, zeros = batch_of(rows), torch.zeros(rows, dtype=torch.int64, device=confidence.device)
    begin = time.perf_counter()
    engine.before_forward(batch)
    engine.enter(batch, 1)
    if busy:
        torch.cuda._sleep(BUSY_CYCLES)
    engine.decide(confidence)
    lengths = engine.lengths(confidence)
    engine.published(
        confidence=confidence, lengths=lengths, accepted=zeros, trimmed=zeros, prefix_lengths=zeros, executed_tier=0
    )
    taken = time.perf_counter() - begin
    if wait and confidence.device.type == "cuda":
        torch.cuda.synchronize()
    return taken


def switched(device: Any, rows: int = 64) -> dict[str, Any]:
    """Host time of an overlapped step before and after a synchronous policy decided in between."""
    import torch

    from sglang_dspark.policies import make_policy

    engine, confidence = make_engine("argmax:lag=2", device, rows), torch.rand(rows, GAMMA, device=device)
    found = {}
    for when, policy in (("before", "argmax:lag=2"), ("between", "hull"), ("after", "argmax:lag=2")):
        engine.switch(make_policy(policy))
        host = [1e6 * one_step(engine, confidence, wait=True) for _ in range(60)][10:]
        found[f"host us a step, {policy}, R={rows}, {when}"] = round(statistics.median(host), 1)
    engine.settle()
    return found


def copy_seconds(device: Any, rows: int) -> float:
    """Median seconds from the launch of one packed publish until it can be read on the host."""
    import torch

    packed = torch.rand(rows, GAMMA + 4, device=device)
    host = torch.empty(packed.shape, pin_memory=True)
    taken = []
    for _ in range(50):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        host.copy_(packed, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        event.synchronize()
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken)


def late_step(device: Any) -> dict[str, Any]:
    """Reasons of four overlapped steps, the first behind a stream that is busy: the third must be late."""
    import torch

    engine = make_engine("argmax:lag=2", device, 2)
    confidence = torch.full((2, GAMMA), 0.5, device=device)
    torch.cuda.synchronize()
    seen: list[str] = []
    engine.add_observer(_Reasons(seen))
    blocked = one_step(engine, confidence, busy=True)
    for _ in range(2):
        one_step(engine, confidence)
    torch.cuda.synchronize()
    one_step(engine, confidence)
    engine.settle()
    expected = ["policy", "policy", "late", "policy"]
    if seen != expected:
        raise RuntimeError(f"steps were decided by {seen}, expected {expected}")
    return {"late steps": seen, "host us of a step behind a busy stream": round(1e6 * blocked, 1)}


class _Reasons:
    """An observer that keeps what decided each step."""

    def __init__(self, seen: list[str]) -> None:
        self._seen = seen

    def on_step(self, record: Any) -> None:
        self._seen.append(record.decision.reason)

    def on_prefill(self, reqs: list[Any], num_tokens: int) -> None: ...

    def on_finished(self, rid: str, natural_stop: bool) -> None: ...

    def on_switch(self, policy: str, since_step: int) -> None: ...
