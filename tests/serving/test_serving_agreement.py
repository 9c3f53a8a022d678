"""Two gloo ranks whose copies arrive at different times still run the same step."""

from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="ranks agree over torch.distributed")

from serving_support import flat_cost  # noqa: E402
from two_ranks import results_of_two  # noqa: E402

from sglang_dspark.policies import Plan, make_policy  # noqa: E402
from sglang_dspark.serving.base.options import Resolved  # noqa: E402
from sglang_dspark.serving.base.steps import StepDecision  # noqa: E402
from sglang_dspark.serving.loop.agreement import Agreement  # noqa: E402
from sglang_dspark.serving.loop.engine import PolicyEngine  # noqa: E402

GAMMA, REQUESTS, STEPS = 4, 3, 12


class DelayedCopies:
    """Makes the copies of chosen steps arrive late, as an unfinished device event would."""

    def __init__(self, engine: PolicyEngine, late_steps: set[int]) -> None:
        self._issue, self._late, self._count = engine.decider.publishes.issue, late_steps, 0
        engine.decider.publishes.issue = self.issue  # type: ignore[method-assign]

    def issue(self, copy) -> None:
        self._count += 1
        if self._count in self._late:
            ready_at = self._count + 2  # not before two more steps have published
            copy.ready = lambda: self._count >= ready_at
        self._issue(copy)


def fake_batch() -> SimpleNamespace:
    sampling = SimpleNamespace(temperature=1.0, top_p=1.0, top_k=-1)
    reqs = [SimpleNamespace(rid=str(i), sampling_params=sampling) for i in range(REQUESTS)]
    indices = torch.arange(REQUESTS)
    return SimpleNamespace(req_pool_indices_cpu=indices, req_pool_indices=indices, seq_lens_sum=30, reqs=reqs)


SCENARIOS = {
    "rank 0 late": ({0: {3, 7}, 1: set()}, "argmax:lag=2", "overlapped"),
    "rank 1 late": ({0: set(), 1: {3, 7}}, "argmax:lag=2", "overlapped"),
    "live": ({0: set(), 1: set()}, "early-stop", "synchronous"),
}


def run_scenario(agreement: Agreement, rank: int, late_steps: dict[int, set[int]], policy: str, schedule: str) -> tuple:
    engine = PolicyEngine(
        Resolved(make_policy(policy), None, flat_cost(), schedule, 0.0),
        gamma=GAMMA,
        generations=torch.ones(8, dtype=torch.int64),
        device=torch.device("cpu"),
        agreement=agreement,
        caps_only=False,
    )
    DelayedCopies(engine, late_steps[rank])
    generator = torch.Generator().manual_seed(7)
    seen = []
    for step in range(STEPS):
        batch, confidence = fake_batch(), torch.rand(REQUESTS, GAMMA, generator=generator)
        engine.before_forward(batch)
        engine.enter(batch, step)
        decision = engine.decide(confidence)
        lengths = engine.lengths(confidence)
        seen.append((decision.reason, decision.total, None if lengths is None else lengths.tolist()))
        zeros = torch.zeros(REQUESTS, dtype=torch.int64)
        values = {"accepted": zeros, "trimmed": zeros, "prefix_lengths": zeros}
        engine.published(confidence=confidence, lengths=lengths, executed_tier=0, **values)
    votes = engine.can_switch(None if rank == 1 else make_policy(policy)), engine.can_switch(make_policy(policy))
    return seen, votes, engine.state()["ranks"]


def run_rank(rank: int) -> dict[str, tuple]:
    agreement = Agreement(torch.distributed.group.WORLD, 0, rank)
    return {name: run_scenario(agreement, rank, *scenario) for name, scenario in SCENARIOS.items()}


@pytest.fixture(scope="module")
def two_ranks() -> list[dict[str, tuple]]:
    """What both ranks saw in every scenario."""
    return results_of_two(run_rank)


@pytest.mark.parametrize("late_rank", [0, 1])
def test_ranks_agree_whoever_is_late(two_ranks, late_rank: int) -> None:
    (first, _, _), (second, _, _) = (results[f"rank {late_rank} late"] for results in two_ranks)
    assert first == second
    reasons = [reason for reason, _, _ in first]
    assert ("late" in reasons) is (late_rank == 0), "rank 0's copies count, and only those"
    assert all((total is None) == (reason == "late") for reason, total, _ in first)


def test_lengths_of_a_live_policy_travel_and_one_refusal_keeps_all(two_ranks) -> None:
    (first, votes, ranks), (second, other_votes, other_ranks) = (results["live"] for results in two_ranks)
    assert first == second and any(total for _, total, _ in first)
    assert votes == other_votes == (False, True)
    assert ranks == other_ranks and len(ranks) == 2


def test_ranks_at_different_steps_are_an_error(monkeypatch) -> None:
    agreement = Agreement(object(), 0, 1)
    monkeypatch.setattr(torch.distributed, "broadcast", lambda tensor, src, group: tensor.fill_(5))
    with pytest.raises(RuntimeError, match="rank 0 decides step 5, this rank is at 4"):
        agreement.share(4, 2, None)


def test_a_single_rank_keeps_its_decision() -> None:
    agreement = Agreement(None, 0, 0)
    decision = object()
    assert agreement.decides and agreement.share(0, 3, decision) is decision  # type: ignore[arg-type]
    assert agreement.gather(np.int64(3)) == [3] and agreement.from_first("x") == "x"


def test_a_plan_and_its_caps_travel(monkeypatch) -> None:
    """What rank 0 writes is what another rank reads, with and without caps of requests."""
    sent: list[torch.Tensor] = []

    def broadcast(tensor, src, group) -> None:
        tensor.copy_(sent[-1]) if sent and rank.decides is False else sent.append(tensor.clone())

    monkeypatch.setattr(torch.distributed, "broadcast", broadcast)
    for caps in (None, np.array([0, 5, 2], dtype=np.int64)):
        sent.clear()
        correction = None if caps is None else (0.75, -1.5)
        decision = StepDecision("policy", 7, Plan(7, 0, 5, caps, None, correction))
        for rank in (Agreement(object(), 0, 0), Agreement(object(), 0, 1)):
            read = rank.share(4, 3, decision if rank.decides else None)
        assert read.plan is not None and (read.total, read.plan.budget, read.plan.cap) == (7, 7, 5)
        assert read.plan.correction == correction
        assert (read.plan.caps is None) if caps is None else np.array_equal(read.plan.caps, caps)
