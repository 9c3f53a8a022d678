"""The live recorder on a stand-in engine: what goes into the records, and that nothing comes out of it."""

import time
from types import SimpleNamespace

import numpy as np
import pytest

from sglang_dspark.cost import load_profile
from sglang_dspark.policies import Argmax, LiveBlock, Past, SurvivalRing
from sglang_dspark.records import RecordSet
from sglang_dspark.records import StepRecord as WrittenStep
from sglang_dspark.records.blocks import uncensored_blocks
from sglang_dspark.records.replay import replay
from sglang_dspark.serving.base.faults import Faults
from sglang_dspark.serving.base.steps import BatchView, SamplingView, StepDecision, StepRecord
from sglang_dspark.serving.feedback.observers import Observers
from sglang_dspark.serving.recording import step_fields
from sglang_dspark.serving.recording.recorder import start

GAMMA = 4


def request(rid, prompt=10, temperature=0.8, top_k=1 << 30):
    sampling = SimpleNamespace(
        temperature=temperature, top_p=0.9, top_k=top_k, min_p=0.0, max_new_tokens=50, custom_params={"domain": "code"}
    )
    now = time.perf_counter()
    times = SimpleNamespace(
        created_time=now - 1,
        scheduler_recv_time=now,
        wait_queue_entry_time=now,
        prefill_finished_time=now,
        completion_time=0.0,
    )
    req = SimpleNamespace(
        rid=rid,
        origin_input_ids=list(range(prompt)),
        output_ids=[1],
        sampling_params=sampling,
        time_stats=times,
        cached_tokens=3,
        finished_reason=None,
        finished_len=None,
        tokenizer=SimpleNamespace(decode=lambda ids: f"{len(ids)} tokens"),
    )
    req.finished = lambda: req.finished_reason is not None
    return req


class Engine:
    """Decides with the real policy and reports like the worker: one step late, in order."""

    def __init__(self, cost):
        self.policy, self.ring = Argmax(lag=1), SurvivalRing(8, GAMMA, 2)
        live = SimpleNamespace(text="argmax:lag=1", since_step=0)
        self.decider = SimpleNamespace(
            cost=cost, gamma=GAMMA, live=live, shadow=None, explore=0.25, steps=0, schedule="overlapped"
        )
        self.rng = np.random.default_rng(0)

    def step(self, reqs, reason="policy"):
        count, decider = len(reqs), self.decider
        slots, generation = np.arange(count), np.ones(count, dtype=np.int64)
        prefix = np.array([len(r.origin_input_ids) + len(r.output_ids) - 1 for r in reqs])
        batch = BatchView(slots, generation, int(prefix.sum()), 2)
        confidence = self.rng.random((count, GAMMA), dtype=np.float32)
        live, lagged = LiveBlock.of(confidence), {1: self.ring.look(slots, generation, 1)}
        past = Past(
            count,
            GAMMA,
            decider.cost.prices(count, GAMMA, float(batch.context_tokens)),
            lambda lag: self.ring.look(slots, generation, lag),
            self.policy.start(GAMMA),
        )
        decision = self.policy.decide(past, live)
        lengths = decision.lengths if reason == "policy" else np.full(count, GAMMA)
        total = decision.total if reason == "policy" else None
        accepted = np.minimum(self.rng.integers(0, 3, size=count), lengths)
        self.ring.publish(slots, generation, live.units)
        top_k = np.array([r.sampling_params.top_k for r in reqs])
        sampling = SamplingView(np.ones(count, dtype=np.float32), np.ones(count, dtype=np.float32), top_k)
        record = StepRecord(
            step=decider.steps,
            forward=decider.steps,
            began_s=time.perf_counter(),
            rids=[r.rid for r in reqs],
            batch=batch,
            prefix_lengths=prefix,
            sampling=sampling,
            policy="argmax:lag=1",
            carry=self.policy.start(GAMMA).tolist(),
            since_step=0,
            decision=StepDecision(reason, total, predicted_s=0.01),
            lagged=lagged,
            prefill_before=False,
            executed_tier=count * 2,
            step_s=0.02,
            confidence=confidence,
            lengths=lengths,
            accepted=accepted,
            uncapped=np.full(count, -1),
        )
        for req, more in zip(reqs, accepted.tolist(), strict=True):
            req.output_ids += [1] * (more + 1)
        decider.steps += 1
        return record


def started(folder, mode="compact", texts=False):
    engine = Engine(load_profile("vllm-b300-dsv4-flash"))
    arguments = SimpleNamespace(model_path="m", tp_size=1, speculative_dspark_confidence_sts_path=None)
    return engine, start(
        str(folder), engine, arguments, mode=mode, loop="overlap", rank=1, texts=texts, limits={"kv_tokens": 4096}
    )


def test_steps_and_requests_are_written_and_replay(tmp_path):
    engine, recorder = started(tmp_path)
    reqs = [request("a", prompt=10), request("b", prompt=20, top_k=1)]
    recorder.on_prefill(reqs, 30)
    for reason in ["policy", "policy", "late", "explore", "policy"]:
        recorder.on_step(engine.step(reqs, reason))
    last = engine.step(reqs)
    reqs[0].finished_reason = SimpleNamespace()
    recorder.on_finished("a", True)
    assert recorder.writer.flush() and not list(RecordSet(tmp_path).requests()), "its last step is still on its way"
    recorder.on_step(last)
    recorder.writer.close()
    records = RecordSet(tmp_path)
    steps = [step for _, step in records.steps()]
    assert [step.override for step in steps] == ["", "", "late", "explore", "", ""]
    assert steps[0].fresh.all() and not steps[1].fresh.any() and steps[0].anchor.tolist() == [1, 1]
    assert steps[0].temperature.tolist() == [1.0, 0.0] and steps[0].waiting == 2 and steps[0].rank == 1
    assert steps[0].prefill_tokens.tolist() == [30] and 0 < steps[0].prefill_ago_s[0] < 5
    assert steps[1].prefill_tokens is None and steps[3].explore and steps[3].explore_probability == 0.25
    result = replay(records)
    assert (result.equal, result.different, result.verified_all) == (4, 0, 2)
    [done] = records.requests()
    assert (done.rid, done.domain, done.num_steps, done.input_length) == ("a", "code", 6, 10)
    assert done.output_length == done.num_accepted + done.num_steps + 1 and records.header().engine["kv_tokens"] == 4096
    assert (
        done.arrival_time_s < done.first_token_time_s <= done.finish_time_s
        and abs(done.finish_time_s - time.time()) < 5
    )
    assert done.prompt is None and b"tokens" not in b"".join(path.read_bytes() for path in tmp_path.iterdir())


def test_text_only_when_asked(tmp_path):
    _, recorder = started(tmp_path, texts=True)
    req = request("a")
    recorder.on_prefill([req], 10)
    req.finished_reason = SimpleNamespace()
    recorder.on_prefill([], 0)
    recorder.writer.close()
    [done] = RecordSet(tmp_path).requests()
    assert (done.prompt, done.output, done.num_steps) == ("10 tokens", "1 tokens", 0), "and a one-token request is seen"


def test_a_cost_model_that_changes_at_start_is_recorded(tmp_path):
    engine, recorder = started(tmp_path)
    engine.decider.cost = engine.decider.cost.with_terms(copy_s=0.001)
    recorder.on_step(engine.step([request("a")]))
    recorder.writer.close()
    assert replay(RecordSet(tmp_path)).equal == 1


def test_an_eager_batch_is_no_decision(tmp_path):
    engine, recorder = started(tmp_path)
    record = engine.step([request("a"), request("b")])
    record.decision = StepDecision("policy", 3)
    record.lengths = np.full(2, GAMMA)
    recorder.on_step(record)
    recorder.writer.close()
    assert [step.override for _, step in RecordSet(tmp_path).steps()] == ["eager batch"]


def test_nothing_is_raised_into_the_engine(tmp_path, caplog):
    engine, recorder = started(tmp_path)
    faults = Faults()
    observers = Observers(faults, recorder)
    record = engine.step([request("a")])
    record.confidence = None
    for _ in range(3):
        observers.on_step(record)
        observers.on_prefill([object()], 1)
        observers.on_finished("never seen", True)
    recorder.writer.close()
    assert sum("observer Recorder failed" in message for message in caplog.messages) == 1
    [fault] = faults.as_list()
    assert fault["what"] == "observer Recorder" and fault["count"] == 6


def test_sglangs_own_requests_are_left_out(tmp_path):
    """Its start-up request and health checks: nobody's load, and an idle gap before the first real one."""
    engine, recorder = started(tmp_path)
    first, health, user = request("x"), request("HEALTH_CHECK_1"), request("a")
    first.sampling_params.custom_params = {"dspark_sent_by_server": True}
    for req in (first, health):
        recorder.on_prefill([req], 10)
        recorder.on_step(engine.step([req]))
        req.finished_reason = SimpleNamespace()
        recorder.on_finished(req.rid, True)
    recorder.on_prefill([user], 10)
    recorder.on_step(engine.step([user, health]))
    user.finished_reason = SimpleNamespace()
    recorder.on_prefill([], 0)
    recorder.writer.close()
    records = RecordSet(tmp_path)
    assert [step.rids for _, step in records.steps()] == [["a", "HEALTH_CHECK_1"]]
    assert [done.rid for done in records.requests()] == ["a"]


def test_the_groups_name_every_field_of_a_step_once(tmp_path):
    engine, _ = started(tmp_path)
    record, run = engine.step([request("a")]), step_fields.Circumstances("compact", "overlap", 0, 0.0, 0.0)
    rows = step_fields.Rows(*np.zeros((3, 1)))
    groups = (
        step_fields.batch_fields(record, run, rows),
        step_fields.decision_fields(record, run, step_fields.Believed(), ""),
        step_fields.outcome_fields(record, run),
        step_fields.time_fields(record, []),
    )
    names = [name for group in groups for name in group]
    assert sorted(names) == sorted(WrittenStep.__struct_fields__)


def test_the_server_can_say_how_recording_goes(tmp_path):
    engine, recorder = started(tmp_path / "records")
    recorder.on_step(engine.step([request("a")]))
    assert recorder.writer.flush()
    state = recorder.state()
    assert state["written"] == 2 and state["bytes"] > 0 and not state["stalled"] and state["problem"] == ""


@pytest.mark.parametrize("mode", ["compact", "cap-accept"])
def test_depth_is_kept_only_where_the_block_was_verified(tmp_path, mode):
    engine, recorder = started(tmp_path, mode)
    record = engine.step([request("a")])
    record.uncapped = np.array([3])
    record.accepted = np.minimum(record.lengths, 1)
    recorder.on_step(record)
    recorder.writer.close()
    [(_, step)] = RecordSet(tmp_path).steps()
    assert (step.depth is None) == (mode == "compact")


def test_a_block_after_the_last_token_is_marked(tmp_path):
    engine, recorder = started(tmp_path, "cap-accept")
    req = request("a")
    recorder.on_prefill([req], 10)
    first = engine.step([req])
    late = engine.step([req])
    req.finished_reason, req.finished_len = SimpleNamespace(), 2
    recorder.on_finished("a", True)
    for record in (first, late):
        record.uncapped = record.accepted
        recorder.on_step(record)
    recorder.writer.close()
    assert [step.ended.tolist() for _, step in RecordSet(tmp_path).steps()] == [[False], [True]]
    assert len(uncensored_blocks(RecordSet(tmp_path))) == 1
