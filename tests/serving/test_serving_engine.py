"""`PolicyEngine` without a server: records, lag, times, shadow, switches, cap-accept."""

from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the engine hands tensors on")

from serving_support import flat_cost  # noqa: E402

from sglang_dspark.errors import InputError  # noqa: E402
from sglang_dspark.jit import stated  # noqa: E402
from sglang_dspark.policies import (  # noqa: E402
    LiveBlock,
    Past,
    carry_as_json,
    carry_from_json,
    make_policy,
    survival_units,
)
from sglang_dspark.serving.base.options import Resolved  # noqa: E402
from sglang_dspark.serving.base.steps import StepRecord  # noqa: E402
from sglang_dspark.serving.base.trial_plan import TrialPlan  # noqa: E402
from sglang_dspark.serving.gpu.device_kernels.live import LiveDecisions  # noqa: E402
from sglang_dspark.serving.loop.agreement import Agreement  # noqa: E402
from sglang_dspark.serving.loop.engine import PolicyEngine  # noqa: E402

GAMMA = 3
CPU = torch.device("cpu")


class Seen:
    """An observer that keeps everything."""

    def __init__(self) -> None:
        self.records: list[StepRecord] = []
        self.events: list[tuple] = []

    def on_step(self, record: StepRecord) -> None:
        self.records.append(record)

    def on_prefill(self, rids: list[str], num_tokens: int) -> None:
        self.events.append(("prefill", rids, num_tokens))

    def on_finished(self, rid: str, natural_stop: bool) -> None:
        self.events.append(("finished", rid, natural_stop))

    def on_switch(self, policy: str, since_step: int) -> None:
        self.events.append(("switch", policy, since_step))


def make_engine(
    policy: str,
    schedule: str = "overlapped",
    shadow: str | None = None,
    caps_only: bool = False,
    device: torch.device = CPU,
):
    other = None if shadow is None else make_policy(shadow)
    engine = PolicyEngine(
        Resolved(make_policy(policy), other, flat_cost(), schedule, 0.0),
        gamma=GAMMA,
        generations=torch.ones(8, dtype=torch.int64),
        device=device,
        agreement=Agreement(None, 0, 0),
        caps_only=caps_only,
    )
    seen = Seen()
    engine.add_observer(seen)
    return engine, seen


def fake_batch(num_requests: int) -> SimpleNamespace:
    sampling = SimpleNamespace(temperature=0.7, top_p=0.9, top_k=5)
    reqs = [SimpleNamespace(rid=f"r{i}", sampling_params=sampling) for i in range(num_requests)]
    indices = torch.arange(num_requests)
    return SimpleNamespace(req_pool_indices_cpu=indices, req_pool_indices=indices, seq_lens_sum=50, reqs=reqs)


def step(engine: PolicyEngine, confidence: torch.Tensor, accepted: list[int], trimmed: list[int] | None = None):
    device = confidence.device
    batch = fake_batch(confidence.shape[0])
    engine.before_forward(batch)
    engine.enter(batch, 1)
    with engine.clock.segment("draft"):
        pass
    decision = engine.decide(confidence)
    lengths = engine.lengths(confidence)
    outcome = {
        "accepted": torch.tensor(accepted, device=device),
        "trimmed": torch.tensor(trimmed or [0] * len(accepted), device=device),
        "prefix_lengths": torch.arange(len(accepted), device=device) + 10,
    }
    engine.published(confidence=confidence, lengths=lengths, executed_tier=0, **outcome)
    return decision


def test_records_come_in_order_with_everything() -> None:
    engine, seen = make_engine("argmax:lag=2", shadow="hull")
    engine.note_prefill(["r0", "r1"], 17)
    confidences = [torch.rand(2, GAMMA, generator=torch.Generator().manual_seed(i)) for i in range(4)]
    for confidence in confidences:
        step(engine, confidence, [1, 0])
    engine.note_finished("r0", True)
    assert [record.step for record in seen.records] == [0, 1], "overlapped: two steps behind"
    engine.settle()
    assert [record.step for record in seen.records] == [0, 1, 2, 3]
    for record, confidence in zip(seen.records, confidences, strict=True):
        assert np.array_equal(record.confidence, confidence.numpy())
        assert record.prefix_lengths.tolist() == [10, 11] and record.rids == ["r0", "r1"]
        assert record.sampling.temperature.tolist() == pytest.approx([0.7, 0.7])
        assert int(record.lengths.sum()) == record.decision.total
        assert record.shadow is not None and record.shadow.total is not None
        assert record.draft_s is not None and record.draft_s >= 0
    assert [record.prefill_before for record in seen.records] == [True, False, False, False]
    assert [record.step_s is not None for record in seen.records] == [True, True, True, False]
    units, published = seen.records[3].lagged[2]
    assert published.all() and np.array_equal(units, survival_units(confidences[1].numpy()))
    assert seen.events == [("prefill", ["r0", "r1"], 17), ("finished", "r0", True)]
    assert engine.counters.decode_steps == 4 and engine.counters.shadow_steps == 4


def test_the_shadow_is_logged(monkeypatch, caplog) -> None:
    from sglang_dspark.serving.feedback.counters import ShadowLog

    monkeypatch.setattr(ShadowLog, "EVERY", 3)
    engine, _ = make_engine("fixed:k=1", shadow="fixed:k=3")
    with caplog.at_level("INFO", logger="sglang_dspark.serving.feedback.counters"):
        for _ in range(7):
            step(engine, torch.full((2, GAMMA), 0.5), [0, 0])
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 1
    assert "fixed:k=3: 6.0 draft tokens a step where fixed:k=1 verified 2.0; equal in 0 %" in lines[0]


def test_uncapped_depth_is_stated_only_where_it_is_known() -> None:
    engine, seen = make_engine("fixed:k=1")
    step(engine, torch.full((3, GAMMA), 0.5), [1, 0, 1])
    engine.settle()
    assert seen.records[0].uncapped.tolist() == [-1, 0, -1]
    engine, seen = make_engine("fixed:k=1", caps_only=True)
    step(engine, torch.full((3, GAMMA), 0.5), [1, 0, 1], trimmed=[2, 0, 0])
    engine.settle()
    assert seen.records[0].uncapped.tolist() == [3, 0, 1]


def test_a_live_policy_decides_from_this_draft() -> None:
    engine, seen = make_engine("threshold:t=0.5", "synchronous")
    confidence = torch.tensor([[0.9, 0.4, 0.9], [0.6, 0.6, 0.6]])
    decision = step(engine, confidence, [1, 3])
    assert decision.lengths is not None and decision.lengths.tolist() == [1, 3]
    step(engine, confidence, [1, 3])
    assert len(seen.records) == 1, "synchronous: one step behind"


def test_a_switch_takes_effect_with_the_next_step() -> None:
    engine, seen = make_engine("fixed:k=1")
    step(engine, torch.full((2, GAMMA), 0.5), [0, 0])
    engine.switch(make_policy("fixed:k=3"))
    step(engine, torch.full((2, GAMMA), 0.5), [0, 0])
    engine.settle()
    assert [record.lengths.tolist() for record in seen.records] == [[1, 1], [3, 3]]
    assert [record.policy for record in seen.records] == ["fixed:k=1", "fixed:k=3"]
    assert ("switch", "fixed:k=3", 1) in seen.events
    assert engine.state()["ranks"] == [{"policy": "fixed:k=3", "since_step": 1, "faults": []}]
    assert engine.state()["decisions"] == stated()


def test_captured_sizes_replace_the_profiles() -> None:
    engine, _ = make_engine("argmax:lag=2")
    engine.use_graphs([2, 4, 8])
    cost = engine.decider.cost
    assert cost is not None and cost.last_captured == 8 * (GAMMA + 1) and cost.captured_requests == 8
    prices, tier = cost.prices(4, GAMMA), 2 * (GAMMA + 1) - 4  # draft tokens of 4 requests in the graph of 2 blocks
    assert prices.seconds[0] == prices.seconds[tier] < prices.seconds[tier + 1]


def test_learning_follows_the_outcomes_in_order() -> None:
    engine, _ = make_engine("goodput")
    before = engine.decider.live.carry
    for accepted in ([3, 3], [0, 0], [0, 0]):
        step(engine, torch.full((2, GAMMA), 0.5), accepted)
    assert engine.decider.live.carry != before


class Raises(Seen):
    """An observer that fails at everything."""

    def on_step(self, record: StepRecord) -> None:
        raise ZeroDivisionError("division by zero")

    def on_prefill(self, rids: list[str], num_tokens: int) -> None:
        raise KeyError("gone")


def test_an_observer_that_raises_misses_its_event_alone(caplog) -> None:
    engine, seen = make_engine("fixed:k=1")
    engine.add_observer(Raises())
    behind = Seen()
    engine.add_observer(behind)
    engine.note_prefill(["r0"], 5)
    for _ in range(4):
        step(engine, torch.full((2, GAMMA), 0.5), [0, 0])
    engine.settle()
    assert len(seen.records) == len(behind.records) == engine.counters.decode_steps == 4
    assert behind.events == [("prefill", ["r0"], 5)]
    [fault] = engine.state()["ranks"][0]["faults"]
    assert fault == {"what": "observer Raises", "count": 5, "first": "KeyError: 'gone'"}
    assert sum("observer Raises failed" in message for message in caplog.messages) == 1


def test_a_publish_that_is_lost_costs_its_step_and_no_other(monkeypatch) -> None:
    """Copies that cannot be made or read: decisions go on, and what arrives later still meets its own record."""
    from sglang_dspark.serving.feedback.copies import StepCopy

    fetch = StepCopy.fetch
    engine, seen = make_engine("argmax:lag=2")
    for number in range(8):
        if number == 2:
            monkeypatch.setattr(StepCopy, "fetch", lambda copy: 1 // 0)
        decision = step(engine, torch.full((2, GAMMA), 0.1 + 0.05 * number), [0, 0])
        if number == 2:
            assert decision.reason == "late" and decision.total is None
        monkeypatch.setattr(StepCopy, "fetch", fetch)
    engine.settle()
    assert [record.step for record in seen.records] == [1, 2, 3, 4, 5, 6, 7]
    for record in seen.records:
        assert record.confidence[0, 0] == pytest.approx(0.1 + 0.05 * record.step)
    assert [fault["what"] for fault in engine.faults.as_list()] == ["publishes"]


def test_a_step_that_cannot_be_described_is_decided_all_the_same(monkeypatch) -> None:
    engine, seen = make_engine("fixed:k=2")
    monkeypatch.setattr(engine.reader, "sampling", lambda reqs, rids: 1 // 0)
    assert step(engine, torch.full((2, GAMMA), 0.5), [0, 0]).total == 4
    monkeypatch.undo()
    step(engine, torch.full((2, GAMMA), 0.5), [0, 0])
    engine.settle()
    assert [record.step for record in seen.records] == [1]
    assert [fault["what"] for fault in engine.faults.as_list()] == ["step record"]


def test_whatever_else_raises_on_the_way_verifies_everything(monkeypatch) -> None:
    engine, _ = make_engine("fixed:k=2")
    monkeypatch.setattr(engine.decider, "before_draft", lambda view, late: 1 // 0)
    decision = step(engine, torch.full((2, GAMMA), 0.5), [0, 0])
    assert (decision.reason, decision.total) == ("fault", None) and engine.lengths(torch.zeros(2, GAMMA)) is None
    monkeypatch.undo()
    assert step(engine, torch.full((2, GAMMA), 0.5), [0, 0]).total == 4
    assert engine.faults.as_list()[0]["first"].startswith("ZeroDivisionError")


def test_a_live_decision_of_a_step_that_failed_is_not_used_again() -> None:
    engine, _ = make_engine("threshold:t=0.5", "synchronous")
    batch = fake_batch(2)
    engine.enter(batch, 1)
    engine.decide(torch.full((2, GAMMA), 0.9))  # and then nothing is published
    assert step(engine, torch.full((3, GAMMA), 0.9), [1, 1, 1]).lengths.tolist() == [3, 3, 3]


def test_a_shadow_that_raises_is_no_shadow(monkeypatch) -> None:
    engine, seen = make_engine("fixed:k=1", shadow="hull")
    step(engine, torch.full((2, GAMMA), 0.5), [0, 0])
    engine._records[0] = (engine._records[0][0], lambda confidence: 1 // 0)
    step(engine, torch.full((2, GAMMA), 0.5), [0, 0])
    engine.settle()
    assert [record.shadow is None for record in seen.records] == [True, False]
    assert [fault["what"] for fault in engine.faults.as_list()] == ["shadow policy"]


def test_a_live_kernel_that_raises_leaves_the_same_decision_to_the_host(monkeypatch) -> None:
    engine, _ = make_engine("hull", "synchronous")
    engine.live_decisions = LiveDecisions(torch.device("cpu"), "ours", engine.faults)
    engine.prepare_live_decisions(8)
    assert "asked for" in engine.kernels["live early stop, filled, 2 requests or more"]
    confidence = torch.rand(3, GAMMA, generator=torch.Generator().manual_seed(1))
    here = step(engine, confidence, [0, 0, 0]).lengths.tolist()
    monkeypatch.setattr(engine.live_decisions._admission, "decide", lambda *arguments: 1 // 0)
    assert step(engine, confidence, [0, 0, 0]).lengths.tolist() == here
    step(engine, confidence, [0, 0, 0])
    [fault] = engine.faults.as_list()
    assert fault["what"] == "kernel live admission" and fault["count"] == 1


def test_a_live_kernel_that_differs_is_never_used(monkeypatch) -> None:
    from sglang_dspark.policies import Decision

    engine, _ = make_engine("hull", "synchronous")
    engine.live_decisions = LiveDecisions(torch.device("cpu"), "ours", engine.faults)
    monkeypatch.setattr(
        engine.live_decisions._admission, "decide", lambda policy, past, c: Decision(np.zeros(past.num_requests), 0)
    )
    engine.prepare_live_decisions(4)
    assert not engine.live_decisions.choices
    assert "expected" in engine.faults.as_list()[0]["first"]


def test_a_broken_policy_is_refused_where_it_is_switched_on(monkeypatch) -> None:
    pytest.importorskip("sglang", reason="needs the extra `serve`")
    from sglang.srt.managers.scheduler_components.internal_state import UpdateRejected

    from sglang_dspark.policies import Fixed
    from sglang_dspark.serving.control.switch import KEY, SwitchHandler

    engine, _ = make_engine("fixed:k=1")
    handler = SwitchHandler(engine)
    monkeypatch.setattr(Fixed, "start", lambda self, gamma: 1 // 0)
    with pytest.raises(UpdateRejected, match="ZeroDivisionError"):
        handler.validate(KEY + "fixed:k=2", 1)
    monkeypatch.undo()
    with pytest.raises(UpdateRejected) as rejected:
        handler.validate(KEY + "no\nsuch\x1b[31m", 1)
    assert "\n" not in str(rejected.value) and "\x1b" not in str(rejected.value)
    handler.validate(KEY + "fixed:k=2", 1)
    handler.validate(KEY + "fixed:k=2", 0)
    with pytest.raises(UpdateRejected, match="another policy as well"):
        handler.validate(KEY + "fixed:k=3", 1)
    assert engine.decider.live.text == "fixed:k=1", "nothing is applied before everything is accepted"
    handler.apply(KEY + "fixed:k=2", 1)
    assert engine.decider.live.text == "fixed:k=2"


POLICIES = ("fixed:k=2", "hull", "argmax:lag=2", "threshold:t=0.4", "foresight", "self-tuning", "hull:calibrate=online")


@pytest.mark.parametrize("begins", ["overlapped", "synchronous"])
@pytest.mark.parametrize("where", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_any_policy_follows_any_other_and_every_decision_is_decided_again(begins: str, where: str) -> None:
    """Started either way: each step is decided under the schedule that its policy needs, from what that may see."""
    if where == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    device = torch.device(where)
    engine, seen = make_engine("hull" if begins == "synchronous" else "fixed:k=2", begins, device=device)
    engine.prepare_live_decisions(3)
    generator = torch.Generator().manual_seed(3)
    order = [POLICIES[i % len(POLICIES)] for i in range(3 * len(POLICIES))]
    for text in order:
        engine.switch(make_policy(text))
        for _ in range(3):
            step(engine, torch.rand(3, GAMMA, generator=generator).to(device), [0, 1, 0])
            if where == "cuda":
                torch.cuda.synchronize()  # no step is late
    engine.settle()
    assert [record.step for record in seen.records] == list(range(3 * len(order)))
    published = [survival_units(record.confidence) for record in seen.records]
    for record, text in zip(seen.records, [text for text in order for _ in range(3)], strict=True):
        policy = make_policy(record.policy)
        live = policy.live
        assert record.schedule == ("synchronous" if live else "overlapped"), (text, record.policy)
        assert record.decision.reason == "policy" and (record.decision.plan is None) == live
        for lag, (units, there) in record.lagged.items():
            assert there.all() == (record.step >= lag)
            if record.step >= lag:
                assert np.array_equal(units, published[record.step - lag])
        past = Past(3, GAMMA, flat_cost().prices(3, GAMMA, 50.0), lambda lag, r=record: r.lagged[lag], record.carry)
        past = past.carrying(carry_from_json(carry_as_json(record.carry)))
        again = policy.decide(past, LiveBlock.of(record.confidence))
        assert np.array_equal(again.lengths, record.lengths), record.policy
    assert {record.policy for record in seen.records} >= {"hull", "foresight:lag=2", "hull:calibrate=online"}


def test_what_calibration_has_learned_is_shown() -> None:
    engine, _ = make_engine("fixed:k=2")
    assert engine.state()["calibration"] is None
    engine.switch(make_policy("self-tuning"))
    assert engine.state()["calibration"] == {"slope": 1.0, "shift": 0.0}
    for _ in range(6):
        step(engine, torch.full((3, GAMMA), 0.9), [0, 0, 0])
    engine.settle()
    learned = engine.state()["calibration"]
    assert learned is not None and learned["shift"] < 0.0, "nothing was accepted: confidences of 0.9 were too high"


def test_self_tuning_keeps_the_schedule_in_force() -> None:
    engine, _ = make_engine("fixed:k=2")
    engine.switch(make_policy("self-tuning"))
    assert (engine.decider.schedule, engine.decider.live.text) == ("overlapped", "self-tuning:rule=argmax")
    engine.switch(make_policy("hull"))
    engine.switch(make_policy("self-tuning"))
    assert (engine.decider.schedule, engine.decider.live.text) == ("synchronous", "self-tuning:rule=foresight")


def test_a_shadow_that_the_other_schedule_cannot_show_its_past_refuses_the_switch() -> None:
    engine, _ = make_engine("hull", "synchronous", shadow="argmax:lag=1")
    with pytest.raises(InputError, match="lag=1 is not on the host before an overlapped step"):
        engine.switch(make_policy("argmax:lag=2"))
    assert engine.decider.live.text == "hull" and engine.decider.schedule == "synchronous"


@pytest.mark.parametrize(("begins", "tried"), [("fixed:k=2", "hull"), ("hull", "argmax:lag=2"), ("hull", "foresight")])
def test_a_failed_trial_goes_back_before_the_next_decision(begins: str, tried: str) -> None:
    """Across schedules and within one: the step that carries the news is still decided by the policy on trial."""
    engine, seen = make_engine(begins, "synchronous" if begins == "hull" else "overlapped")
    generator = torch.Generator().manual_seed(5)

    def run(steps: int) -> None:
        for _ in range(steps):
            step(engine, torch.rand(2, GAMMA, generator=generator), [1, 1])

    run(3)
    engine.switch(make_policy(tried), TrialPlan(60.0))
    run(4)
    assert engine.trials.trial is not None and engine.trials.trial.verdict == "running"
    engine.trials.trial.fell_back()
    run(4)
    engine.settle()
    assert engine.decider.live.text == begins and engine.trials.trial.as_dict()["verdict"] == "reverted"
    ran = [record.policy for record in seen.records]
    first = make_policy(tried)
    assert ran[:3] == [begins] * 3 and ran[-3:] == [begins] * 3
    assert all(make_policy(text) == first for text in ran[3:8]) and len(ran) == 11
    assert [record.step for record in seen.records] == list(range(11))
    assert [event[0] for event in seen.events].count("switch") == 2
    engine.switch(make_policy("fixed:k=1"))
    assert engine.trials.trial is None
