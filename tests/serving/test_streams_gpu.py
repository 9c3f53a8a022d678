"""The engine on a CUDA device: pinned copies behind a busy stream, late publishes, live decisions, captured plans."""

from __future__ import annotations

import time

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the engine hands tensors on")
pytest.importorskip("triton", reason="admission has Triton kernels")

from serving_support import flat_cost  # noqa: E402
from test_serving_engine import GAMMA, Seen, fake_batch  # noqa: E402

from sglang_dspark.policies import LiveBlock, Past, Plan, allocate, make_policy, survival_units  # noqa: E402
from sglang_dspark.serving.base.admission import allocate_on_device  # noqa: E402
from sglang_dspark.serving.base.options import Resolved  # noqa: E402
from sglang_dspark.serving.feedback.clock import StepClock  # noqa: E402
from sglang_dspark.serving.gpu.device_kernels.live import LiveAdmission  # noqa: E402
from sglang_dspark.serving.loop.agreement import Agreement  # noqa: E402
from sglang_dspark.serving.loop.engine import PolicyEngine  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
BUSY_CYCLES = 200_000_000
"""About 0.1 s of a stream that does nothing else."""


def engine_on_device(policy: str, schedule: str = "overlapped") -> tuple[PolicyEngine, Seen]:
    engine = PolicyEngine(
        Resolved(make_policy(policy), None, flat_cost(), schedule, 0.0),
        gamma=GAMMA,
        generations=torch.ones(8, dtype=torch.int64),
        device=torch.device("cuda"),
        agreement=Agreement(None, 0, 0),
        caps_only=False,
    )
    seen = Seen()
    engine.add_observer(seen)
    return engine, seen


def step(engine: PolicyEngine, confidence: torch.Tensor, *, busy: bool = False):
    """One decode step; busy: the stream that publishes works for a tenth of a second first."""
    rows = confidence.shape[0]
    engine.before_forward(fake_batch(rows))
    engine.enter(fake_batch(rows), 1)
    if busy:
        torch.cuda._sleep(BUSY_CYCLES)
    with engine.clock.segment("draft"):
        shown = confidence * 1.0
    decision = engine.decide(shown)
    lengths = engine.lengths(shown)
    zeros = torch.zeros(rows, dtype=torch.int64, device="cuda")
    engine.published(
        confidence=shown, lengths=lengths, accepted=zeros, trimmed=zeros, prefix_lengths=zeros + 7, executed_tier=0
    )
    return decision


def test_a_copy_waits_for_its_stream_and_not_for_others() -> None:
    """Enqueued behind 0.1 s of work it is not ready at once, holds no one up, and arrives with the right values."""
    engine, seen = engine_on_device("fixed:k=1")
    confidence = torch.rand(3, GAMMA, device="cuda")
    torch.cuda.synchronize()
    begin = time.perf_counter()
    step(engine, confidence, busy=True)
    assert time.perf_counter() - begin < 0.05, "publishing does not wait for the device"
    copy = engine.decider.publishes._in_flight[0]
    assert not copy.ready() and copy._host.is_pinned()
    engine.settle()
    assert np.array_equal(seen.records[0].confidence, confidence.cpu().numpy())
    assert seen.records[0].prefix_lengths.tolist() == [7, 7, 7]
    assert seen.records[0].draft_s is not None and seen.records[0].draft_s < 0.05


def test_copies_on_two_streams_arrive_in_order() -> None:
    engine, seen = engine_on_device("fixed:k=1")
    blocks = [torch.rand(2, GAMMA, device="cuda") for _ in range(4)]
    torch.cuda.synchronize()
    streams = [torch.cuda.Stream() for _ in range(2)]
    for number, block in enumerate(blocks):
        with torch.cuda.stream(streams[number % 2]):
            step(engine, block, busy=number == 0)
    engine.settle()
    assert [record.step for record in seen.records] == [0, 1, 2, 3]
    for record, block in zip(seen.records, blocks, strict=True):
        assert np.array_equal(record.confidence, block.cpu().numpy())


def test_a_late_publish_verifies_everything_and_is_not_lost() -> None:
    engine, seen = engine_on_device("argmax:lag=2")
    confidence = torch.full((2, GAMMA), 0.5, device="cuda")
    torch.cuda.synchronize()
    step(engine, confidence, busy=True)
    step(engine, confidence)
    late = step(engine, confidence)
    assert late.reason == "late" and late.total is None
    torch.cuda.synchronize()
    assert step(engine, confidence).reason == "policy"
    engine.settle()
    assert [record.decision.reason for record in seen.records] == ["policy", "policy", "late", "policy"]
    assert [record.lengths.tolist() for record in seen.records][2] == [GAMMA, GAMMA]


def test_policies_are_switched_behind_a_busy_stream_the_schedule_with_them() -> None:
    """Overlapped, synchronous and back: every step is decided by the policy of its time, and every copy arrives."""
    engine, seen = engine_on_device("argmax:lag=2")
    confidence = torch.full((2, GAMMA), 0.9, device="cuda")
    torch.cuda.synchronize()
    ran = []
    for text in ("argmax:lag=2", "hull", "fixed:k=1", "foresight", "argmax:lag=2"):
        engine.switch(make_policy(text))
        for number in range(4):
            step(engine, confidence, busy=number == 0)
            ran.append((text, "synchronous" if text in ("hull", "foresight") else "overlapped"))
            torch.cuda.synchronize()
    engine.settle()
    assert [(record.policy.partition(":")[0], record.schedule) for record in seen.records] == [
        (text.partition(":")[0], schedule) for text, schedule in ran
    ]
    assert all(np.array_equal(record.confidence, confidence.cpu().numpy()) for record in seen.records)


@pytest.mark.parametrize("text", ["early-stop", "hull", "hull:fill=false", "lookahead"])
@pytest.mark.parametrize("rows", [1, 3, 32, 256])
def test_live_decisions_are_the_host_s(text: str, rows: int) -> None:
    policy, cost, gamma = make_policy(text), flat_cost(), 7
    live = LiveAdmission(torch.device("cuda"))
    for seed in range(5):
        confidence = torch.rand(rows, gamma, generator=torch.Generator().manual_seed(seed))
        past = Past(rows, gamma, cost.prices(rows, gamma), carry=policy.start(gamma))
        expected = policy.decide(past, LiveBlock.of(confidence.numpy()))
        found = live.decide(policy, past, confidence.cuda())
        assert found.total == expected.total and np.array_equal(found.lengths, expected.lengths)


@pytest.mark.parametrize("plan", [Plan(40, 0, 7), Plan(40, 1, 5), Plan(0, 2, 7), Plan(1 << 20, 0, 6)])
def test_a_plan_is_allocated_under_capture_and_replayed_with_other_survivals(plan: Plan) -> None:
    rows, gamma = 16, 7
    static = torch.rand(rows, gamma, device="cuda")
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        allocate_on_device(static, plan)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        lengths = allocate_on_device(static, plan)
    for seed in range(3):
        confidence = torch.rand(rows, gamma, generator=torch.Generator().manual_seed(seed))
        static.copy_(confidence)
        graph.replay()
        expected = allocate(survival_units(confidence.numpy()), plan.budget, plan.floor, plan.cap)
        assert lengths.cpu().tolist() == expected.tolist()


def test_segments_are_timed_on_the_device() -> None:
    clock = StepClock(torch.device("cuda"))
    with clock.segment("draft"):
        torch.cuda._sleep(BUSY_CYCLES)
    torch.cuda.synchronize()
    seconds = clock.seconds("draft")
    assert seconds is not None and seconds > 0.01
