"""DP-attention ranks without a server: two gloo processes with batches of their own, one of them idle at times."""

from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="ranks agree over torch.distributed")

from test_serving_agreement import DelayedCopies  # noqa: E402
from two_ranks import results_of_two  # noqa: E402

from sglang_dspark.cost import TERMS, StepCost  # noqa: E402
from sglang_dspark.cost.curves import Curve  # noqa: E402
from sglang_dspark.policies import make_policy  # noqa: E402
from sglang_dspark.serving.base.options import Resolved  # noqa: E402
from sglang_dspark.serving.base.trial_plan import TrialPlan  # noqa: E402
from sglang_dspark.serving.loop.agreement import Agreement  # noqa: E402
from sglang_dspark.serving.loop.engine import PolicyEngine  # noqa: E402
from sglang_dspark.serving.loop.tier_group import TierGroup  # noqa: E402

GAMMA = 4
LOAD = {0: (3, 3, 3, 2, 1, 0, 0, 5, 5, 5, 5, 5), 1: (1, 1, 1, 1, 6, 6, 6, 0, 0, 1, 2, 2)}
"""Requests of each rank by step: both busy, the second alone, the first alone, both."""
POLICIES = {
    "fixed": ("fixed:k=2", "overlapped"),
    "budget": ("argmax:lag=2", "overlapped"),
    "stopping": ("hull", "synchronous"),
    "length": ("threshold:t=0.5", "synchronous"),
    "no prices": ("tetris:capacity=6", "overlapped"),
}


class Seen:
    def __init__(self) -> None:
        self.records = []

    def on_step(self, record) -> None:
        self.records.append(record)

    def on_switch(self, policy: str, since_step: int) -> None: ...


def batch_of(count: int) -> SimpleNamespace:
    sampling = SimpleNamespace(temperature=1.0, top_p=1.0, top_k=-1)
    reqs = [SimpleNamespace(rid=str(i), sampling_params=sampling) for i in range(count)]
    indices = torch.arange(count)
    return SimpleNamespace(
        req_pool_indices_cpu=indices, req_pool_indices=indices, seq_lens_sum=10 * count, reqs=reqs, forward_iter=0
    )


def slope() -> StepCost:
    """Every token costs: 4 ms, beside 6 of a step."""
    curve = Curve(np.array([1.0, 64.0]), np.array([0.010, 0.262]))
    free, terms = Curve(np.array([1.0]), np.array([0.0])), dict.fromkeys(TERMS, 0.0)
    return StepCost("made", "1-d", free, curve, diagonal=False, terms=terms)


def make_engine(rank: int, policy: str, schedule: str) -> PolicyEngine:
    world = torch.distributed.group.WORLD
    return PolicyEngine(
        Resolved(make_policy(policy), None, slope(), schedule, 0.0),
        gamma=GAMMA,
        generations=torch.ones(8, dtype=torch.int64),
        device=torch.device("cpu"),
        agreement=Agreement(None, 0, 0),
        caps_only=False,
        tiers=TierGroup(world, rank, 2, speaks=True),
        everyone=Agreement(world, 0, rank),
    )


def take_step(engine: PolicyEngine, count: int, step: int, generator: torch.Generator) -> None:
    if not count:
        engine.idle(before_forward=True)
        engine.idle(before_forward=False)
        return
    batch, confidence = batch_of(count), torch.rand(count, GAMMA, generator=generator).sqrt()
    engine.before_forward(batch)
    engine.enter(batch, step)
    engine.decide(confidence)
    lengths, zeros = engine.lengths(confidence), torch.zeros(count, dtype=torch.int64)
    values = {"accepted": zeros, "trimmed": zeros, "prefix_lengths": zeros}
    engine.published(confidence=confidence, lengths=lengths, executed_tier=0, **values)


def run_policy(rank: int, policy: str, schedule: str, late: set[int] | None = None) -> list:
    engine, seen = make_engine(rank, policy, schedule), Seen()
    if late:
        DelayedCopies(engine, late)
    engine.add_observer(seen)
    generator = torch.Generator().manual_seed(7 + rank)
    for step, count in enumerate(LOAD[rank]):
        take_step(engine, count, step, generator)
    engine.settle()
    assert engine.decider.steps == len(LOAD[rank])
    return [
        (r.step, r.asked.tokens, r.asked.requests, r.shared_tier, r.lengths.tolist(), r.decision.total)
        + ((r.decision.reason,) if late is not None else ())
        for r in seen.records
    ]


def run_switch(rank: int) -> list:
    """A switch between steps, one refused, and a trial that only the first rank judges."""
    engine, generator = make_engine(rank, "fixed:k=1", "overlapped"), torch.Generator().manual_seed(rank)
    said = []
    for step, count in enumerate(LOAD[rank]):
        if step == 3:
            said.append(engine.can_switch(None if rank else make_policy("hull")))
            said.append(engine.can_switch(make_policy("hull")))
            engine.switch(make_policy("hull"), TrialPlan(60.0))
        if step == 5:
            engine.trials.trial.verdict = "running" if rank else "reverted"  # rank 0 is idle then
        take_step(engine, count, step, generator)
        said.append(
            (
                engine.decider.live.text,
                engine.decider.live.since_step,
                engine.trials.trial and engine.trials.trial.verdict,
            )
        )
    return said


def run_rank(rank: int) -> dict[str, list]:
    results = {name: run_policy(rank, *settings) for name, settings in POLICIES.items()}
    results["switch"] = run_switch(rank)
    results["late"] = run_policy(rank, "argmax:lag=2", "overlapped", {1} if rank else set())
    return results


@pytest.fixture(scope="module")
def two_ranks() -> list[dict[str, list]]:
    return results_of_two(run_rank)


@pytest.mark.parametrize("name", POLICIES)
def test_both_know_what_both_ask_and_nothing_is_taken_back(two_ranks, name: str) -> None:
    first, second = ({step[0]: step for step in results[name]} for results in two_ranks)
    assert sorted(first) == [step for step, count in enumerate(LOAD[0]) if count]
    assert sorted(second) == [step for step, count in enumerate(LOAD[1]) if count]
    for rank, steps in enumerate((first, second)):
        for step, (_, asked, requests, tier, lengths, total) in steps.items():
            assert requests == (LOAD[0][step], LOAD[1][step])
            assert asked[1 - rank] >= requests[1 - rank] and (asked[1 - rank] > 0) == (requests[1 - rank] > 0)
            assert tier == max(asked) and sum(lengths) == total
            assert asked[rank] <= len(lengths) + total <= max(tier, asked[rank])
    for step in set(first) & set(second):
        assert first[step][1:4] == second[step][1:4]


def test_who_fills_reaches_the_tier_and_who_does_not_stays(two_ranks) -> None:
    for name, fills in (("budget", True), ("stopping", True), ("fixed", False), ("length", False)):
        short = 0
        for rank, results in enumerate(two_ranks):
            for _, asked, requests, tier, lengths, total in results[name]:
                most = requests[rank] * (1 + GAMMA)
                used = len(lengths) + total
                short += asked[rank] < min(tier, most)
                assert used == (min(tier, most) if fills else asked[rank])
        assert short > 0, f"{name} never asked for less than the tier"


def test_a_rank_whose_past_is_late_verifies_all_and_the_other_fills_what_runs_anyway(two_ranks) -> None:
    first, second = ({step[0]: step for step in results["late"]} for results in two_ranks)
    late = [step for step, row in second.items() if row[-1] == "late"]
    assert late and {row[-1] for row in first.values()} == {"policy"}
    for step in late:
        _, asked, requests, tier, lengths, total, _ = second[step]
        assert asked[1] == requests[1] * (1 + GAMMA) and lengths == [GAMMA] * requests[1] and total == sum(lengths)
        if step in first:
            assert len(first[step][4]) + first[step][5] == min(tier, requests[0] * (1 + GAMMA))


def test_a_switch_and_a_return_are_at_one_step_on_both_ranks(two_ranks) -> None:
    first, second = (results["switch"] for results in two_ranks)
    by_step = [[item if isinstance(item, bool) else item[:2] for item in said] for said in (first, second)]
    assert by_step[0] == by_step[1], "idle ranks follow"
    assert first[-1] == second[-1] == ("fixed:k=1", 6, "reverted")
    votes = [item for item in first if isinstance(item, bool)]
    assert votes == [False, True]
    live = [item for item in first if not isinstance(item, bool)]
    assert {item[:2] for item in live[3:6]} == {("hull", 3)}
    assert live[6][:2] == ("fixed:k=1", 6)


def test_ranks_at_different_steps_are_an_error(monkeypatch) -> None:
    def fill(rows, own, group) -> None:
        rows.copy_(torch.cat([own, own + 1]))

    monkeypatch.setattr(torch.distributed, "all_gather_into_tensor", fill)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda group: 2)
    with pytest.raises(RuntimeError, match="this one is at step 4"):
        TierGroup(object(), 0, 2, speaks=True).share(4, 3, 1, 9)


def test_processes_that_only_listen_do_not_count(monkeypatch) -> None:
    """Two ranks of two tensor-parallel processes each: one of each speaks."""

    def fill(rows, own, group) -> None:
        silent = np.array([4, 0, 0, 0, 0])
        speaking = np.array([4, 7, 2, 50, 1])
        rows.copy_(torch.from_numpy(np.concatenate([own.numpy(), silent, speaking, silent])))

    monkeypatch.setattr(torch.distributed, "all_gather_into_tensor", fill)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda group: 4)
    step = TierGroup(object(), 0, 2, speaks=True).share(4, 3, 1, 9)
    assert step.asked.tokens == (3, 7) and step.asked.requests == (1, 2) and step.goes_back
