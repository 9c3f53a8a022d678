"""After the warm-up nothing compiles in a server: whatever policy decides, learns or is switched to, at any size."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest

from sglang_dspark import jit
from sglang_dspark.errors import InputError
from sglang_dspark.policies import POLICIES, LiveBlock, Outcome, knows_depth, make_policy
from sglang_dspark.policies.classes import of_plan
from sglang_dspark.policies.drawing import random_cost
from sglang_dspark.serving.base.options import SCHEDULES, Resolved, check_policy
from sglang_dspark.serving.base.steps import BatchView, StepDecision
from sglang_dspark.serving.feedback.publishes import Published, Publishes
from sglang_dspark.serving.loop.decider import Decider

GAMMA, MOST = 7, 256
RNG = np.random.default_rng(0)
COST = random_cost(RNG, MOST, GAMMA)
MORE = (
    *("argmax:pricing=floor", "argmax:cold=prior", "hull:fill=false", "hull:dips=false", "threshold:on=survival"),
    *("guard:inner=(hull:floor=1),baseline=(threshold:t=0.3)", "self-tuning:rule=foresight", "schedule:upto=8,k=3/1"),
)


def policies() -> Iterator[str]:
    """Every registered policy, with what can be learned online and with bounds."""
    for base in (*(name for name, kind in POLICIES.items() if not knows_depth(kind())), *MORE):
        for more in ("", "calibrate=online", "costs=online", "calibrate=online,costs=online", "floor=1,cap=4"):
            text = f"{base}{',' if ':' in base else ':'}{more}".rstrip(":,")
            try:
                make_policy(text)
            except InputError:
                continue
            yield text


def compiled_forms() -> dict[str, list]:
    """What numba holds of each function that rules call."""
    loops = jit.policy_loops()
    return {name: list(getattr(loops, name).signatures) for name in loops.__all__ if name != "warm"}


class ByHand:
    """A copy that has arrived, laid out as `StepCopy` lays it out."""

    def __init__(self, view: BatchView, packed: np.ndarray) -> None:
        self._view, self._packed = view, packed

    def ready(self) -> bool:
        return True

    def fetch(self) -> Published:
        block = LiveBlock.of(self._packed[:, :GAMMA].copy())
        lengths, accepted, uncapped = (self._packed[:, GAMMA + i].astype(np.int64) for i in range(3))
        return Published(self._view.slots, self._view.generation, block.confidence, lengths, accepted, uncapped)


def copy_of(view: BatchView, confidence: np.ndarray, lengths: np.ndarray, accepted: np.ndarray, by_torch: bool):
    if not by_torch:
        packed = np.concatenate([confidence, *(column[:, None] for column in (lengths, accepted, accepted))], axis=1)
        return ByHand(view, packed.astype(np.float32))
    import torch

    from sglang_dspark.serving.base.faults import Faults
    from sglang_dspark.serving.feedback.clock import StepClock
    from sglang_dspark.serving.feedback.copies import StepCopy

    record, clock = SimpleNamespace(batch=view), StepClock(torch.device("cpu"), Faults())
    columns = (torch.from_numpy(column) for column in (lengths, accepted, accepted, lengths))
    return StepCopy(record, clock, torch.from_numpy(confidence), *columns, caps_only=False)  # type: ignore[arg-type]


def views() -> Iterator[BatchView]:
    for requests in (1, 2, MOST):
        slots, generation = np.arange(requests), np.ones(requests, dtype=np.int64)
        for caps in (None, RNG.integers(0, GAMMA + 1, requests)):
            yield BatchView(slots, generation, 100 * requests, 0, caps)


def serve(decider: Decider, view: BatchView, by_torch: bool) -> None:
    """One step, from the decision to what is learned of it."""
    confidence = RNG.random((view.num_requests, GAMMA), dtype=np.float32)
    ticket = decider.shadow_ticket(view)
    decision: StepDecision | None = decider.before_draft(view, late=False)
    if decision is None:
        decision = decider.after_draft(view, confidence)
    lengths = decision.lengths
    if decision.plan is not None:
        lengths = of_plan(decision.plan, LiveBlock.of(confidence)).lengths
        if by_torch:
            import torch

            from sglang_dspark.serving.base.admission import planned_lengths

            assert np.array_equal(planned_lengths(torch.from_numpy(confidence), decision.plan).numpy(), lengths)
    assert decision.fault is None and lengths is not None
    decider.publishes.issue(copy_of(view, confidence, lengths, RNG.integers(0, lengths + 1), by_torch))
    for arrived in decider.publishes.catch_up()[0]:
        outcome = Outcome(arrived.units, arrived.lengths, arrived.accepted)
        timing = SimpleNamespace(batch=view, decision=decision, step_s=RNG.uniform(0.01, 2.0), shared_tier=0)
        decider.learn(Outcome(outcome.survival, outcome.lengths, outcome.accepted, decider.timing(timing)))  # type: ignore[arg-type]
    assert ticket is not None and ticket(confidence).fault is None
    decider.steps += 1


@pytest.mark.parametrize("by_torch", [False, True], ids=["by hand", "torch"])
def test_nothing_compiles_after_the_warm_up(by_torch: bool) -> None:
    if by_torch:
        pytest.importorskip("torch", reason="the server's copies are tensors")
    if not jit.compiled():
        pytest.skip(jit.stated())
    assert jit.prepare() is None
    before, served, faults = compiled_forms(), set(), []
    assert all(len(forms) == 1 for forms in before.values()), "one form of each function, and no function without"
    for schedule in SCHEDULES:
        for text in policies():
            policy = make_policy(text)
            try:
                check_policy(policy, schedule, COST, GAMMA)
            except InputError:
                continue
            shadow = make_policy("argmax-live")
            publishes = Publishes(MOST, GAMMA, 2 if schedule == "overlapped" else 1, waits=True)
            decider = Decider(Resolved(policy, shadow, COST, schedule, 0.0), GAMMA, publishes)
            for view in views():
                for _ in range(4):
                    serve(decider, view, by_torch)
            served.add(text)
            faults += decider.faults.as_list()
    lossless = {
        name for name, kind in POLICIES.items() if kind().lossless and kind().drafts and not knows_depth(kind())
    }
    assert lossless <= {text.partition(":")[0] for text in served} and not faults
    assert compiled_forms() == before, "a decision compiled something"
