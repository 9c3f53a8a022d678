"""The engine keeps SGLang's rules: who decodes, who leaves when, what a step costs, which schedule runs what."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

import numpy as np
import pytest
from simulated_worlds import FewOrMany, Spy, check_books, finished, flat_cost, setting_of, trace_of

from sglang_dspark.cost import load_profile
from sglang_dspark.errors import InputError
from sglang_dspark.policies import POLICIES, make_policy
from simulator import EngineSettings
from simulator.engine.admission import Memory, Waiting, next_chunk
from simulator.engine.model import EngineModel
from simulator.engine.recorder import StepView
from simulator.engine.retraction import retract
from simulator.engine.run import Assembly
from simulator.results.run import run_once


@pytest.mark.parametrize("schedule", ["overlapped", "synchronous", "no-overlap"])
def test_a_request_whose_last_token_is_sure_leaves_at_once(schedule: str) -> None:
    """Outputs of 4 and 40 tokens, one a step: the host knows beforehand which step is the last."""
    run, steps = finished(setting_of(trace_of([(5, 4), (5, 40)]), schedule=schedule), make_policy("none"))
    sizes = [step.batch for step in steps if step.kind == "decode"]
    alive = [step.running for step in steps if step.kind == "decode"]
    # A step is seen as it ends: the short one is still in the batch at the end of its last step.
    assert sizes == [2] * 3 + [1] * 36
    assert alive == [2] * 2 + [1] * 36 + [0]
    assert run.recorder.verify_steps.tolist() == [3, 39]


@pytest.mark.parametrize(("schedule", "late"), [("overlapped", True), ("synchronous", True), ("no-overlap", False)])
def test_a_request_that_ends_with_several_tokens_leaves_late_when_the_host_runs_behind(
    schedule: str, late: bool
) -> None:
    """Blocks end requests at different steps: those of one token leave at once, others one step late."""
    left: dict[int, int] = {}
    stayed: dict[int, bool] = {}

    def watch(run: Assembly, step: StepView) -> None:
        batch = run.engines[0].batch
        requests = batch.request[: batch.size].tolist()
        for request in [known for known in left if known not in stayed and step.kind == "decode"]:
            stayed[request] = request in requests
        done = (batch.remaining[: batch.size] == 0).nonzero()[0].tolist()
        for request in [requests[row] for row in done]:
            left.setdefault(request, before.get(request, 0))
        before.clear()
        before.update(zip(requests, batch.remaining[: batch.size].tolist(), strict=True))

    before: dict[int, int] = {}
    trace = trace_of([(5, 20 + number) for number in range(40)])
    finished(setting_of(trace, schedule=schedule), make_policy("fixed:k=7"), watch)
    known = {request: wanted for request, wanted in left.items() if request in stayed}
    assert len(known) >= 30 and {1} < set(known.values())
    for request, wanted in known.items():
        assert stayed[request] == (late and wanted > 1), (request, wanted)


@pytest.mark.parametrize(("schedule", "steps_between"), [("overlapped", 2), ("synchronous", 2), ("no-overlap", 1)])
def test_a_closed_loop_fills_a_slot_after_the_steps_that_a_live_server_takes(schedule: str, steps_between: int) -> None:
    """The host chooses a step while the one before it runs, and a client's next request comes after that."""
    setting = setting_of(trace_of([(5, 10), (5, 60), (5, 10)]), schedule=schedule, concurrency=2)
    run, steps = finished(setting, make_policy("none"))
    kinds = [step.kind for step in steps]
    assert kinds.count("prefill") == 2
    last = next(number for number, step in enumerate(steps) if step.end_s == run.recorder.finish_s[0])
    assert kinds.index("prefill", 1) - last == steps_between + 1


def test_a_full_engine_refills_a_slot_one_step_after_a_sure_end() -> None:
    """The batch after that step was chosen while the request still held its slot."""
    setting = setting_of(trace_of([(5, 4), (5, 40), (5, 4)]), schedule="overlapped", max_running_requests=2)
    run, steps = finished(setting, make_policy("none"))
    ended = next(number for number, step in enumerate(steps) if step.end_s == run.recorder.finish_s[0])
    assert [step.kind for step in steps[ended + 1 : ended + 3]] == ["decode", "prefill"]
    assert [step.batch for step in steps[ended : ended + 2]] == [2, 1]


def test_cached_prompt_tokens_are_context_but_no_prefill() -> None:
    plain = trace_of([(1000, 20), (1000, 20)])
    cached = replace(plain, cached_length=np.array([0, 999]))
    runs = [finished(setting_of(trace), make_policy("fixed:k=7"), check_books) for trace in (plain, cached)]
    prefilled = [sum(step.tokens for step in steps if step.kind == "prefill") for _, steps in runs]
    assert prefilled == [2000, 1001]
    held = [max(step.kv for step in steps) for _, steps in runs]
    assert held[0] == held[1] > 2000
    with pytest.raises(InputError, match="cached_length of request 1 is 1000, expected 0 .. 999"):
        replace(plain, cached_length=np.array([0, 1000]))


def test_a_late_request_costs_verified_tokens_but_commits_none() -> None:
    figures = {}
    for schedule in ("overlapped", "no-overlap"):
        setting = setting_of(trace_of([(5, 8)] * 6), schedule=schedule, max_running_requests=2, concurrency=2)
        figures[schedule] = run_once(setting, make_policy("fixed:k=7"))[0]
    late, exact = figures["overlapped"], figures["no-overlap"]
    assert late["total_output_tokens"] == exact["total_output_tokens"] == 48
    assert late["wasted_share"] > exact["wasted_share"] and late["accept_length"] == exact["accept_length"]


def test_prefill_goes_before_decode() -> None:
    run, steps = finished(
        setting_of(trace_of([(10, 50)] * 2 + [(10, 5)] * 3, [0.0, 0.0, 0.1, 0.1, 0.1])), make_policy("none")
    )
    kinds = [step.kind for step in steps]
    arrived = next(number for number, step in enumerate(steps) if step.end_s > 0.1)
    chosen = arrived + 2  # the next step had been chosen before
    assert kinds[0] == "prefill" and kinds[chosen] == "prefill" and kinds.count("prefill") == 2
    assert steps[chosen].tokens == 30


@pytest.mark.parametrize(("slots", "expected"), [(3, 7), (4, 2), (None, 2)])
def test_more_requests_than_captured_slots_verify_everything(slots: int | None, expected: int) -> None:
    setting = setting_of(trace_of([(5, 30)] * 4), flat_cost(slots=slots))
    _, steps = finished(setting, make_policy("fixed:k=2"))
    first = next(step for step in steps if step.kind == "decode")
    assert first.batch == 4 and first.tokens == 4 * (1 + expected)


def test_an_eager_batch_pays_the_eager_curve() -> None:
    cost = load_profile("vllm-b300-dsv4-flash")
    assert cost.eager is not None
    lengths = [(5, 3)] * 3
    for slots, seconds in (
        (2, cost.draft_s(3) + float(cost.eager.at(24))),
        (3, cost.draft_s(3) + float(cost.verify.at(24))),
    ):
        setting = setting_of(trace_of(lengths), replace(cost, captured_requests=slots))
        _, steps = finished(setting, make_policy("fixed:k=7"))
        step = next(step for step in steps if step.kind == "decode")
        assert step.tokens == 24 and step.seconds == pytest.approx(max(seconds, cost.terms["host_s"]))


def test_step_times_by_schedule() -> None:
    cost = flat_cost(0.002, 0.010, 0.030, host_s=0.004, copy_s=0.001)
    setting = setting_of(trace_of([(5, 5)]), cost)
    slow_host = flat_cost(0.002, 0.010, 0.030, host_s=0.040, copy_s=0.001)

    def seconds(model: EngineModel, live: bool) -> float:
        return model.decode_seconds(0.002, 0.010, live=live)

    def model(schedule: str, host: bool = False) -> EngineModel:
        chosen = slow_host if host else cost
        policy = make_policy("fixed")
        return EngineModel(setting.engine, policy, chosen, chosen, None, schedule, setting.server(policy))  # type: ignore[arg-type]

    assert seconds(model("overlapped"), False) == pytest.approx(0.012)
    assert seconds(model("overlapped", True), False) == pytest.approx(0.040)
    assert seconds(model("synchronous"), True) == pytest.approx(0.013)
    assert seconds(model("synchronous", True), True) == pytest.approx(0.043)
    assert seconds(model("no-overlap"), True) == pytest.approx(0.017)
    assert seconds(model("no-overlap"), False) == pytest.approx(0.016)
    assert model("overlapped").prefill_seconds(5, 0) == pytest.approx(0.030)
    assert model("overlapped", True).prefill_seconds(5, 0) == pytest.approx(0.040)
    assert model("no-overlap").prefill_seconds(5, 0) == pytest.approx(0.034)


def test_the_engine_pays_for_the_context_it_has() -> None:
    """To the token, also between the contexts at which policies price their choices."""
    cost = flat_cost(context_token_s=1e-6, draft_context_token_s=3e-7)
    prompts = (100, 190, 333)
    _, steps = finished(setting_of(trace_of([(prompt, 40) for prompt in prompts]), cost), make_policy("none"))
    context = sum(prompts) + 3
    for step in [step for step in steps if step.kind == "decode"][:39]:
        assert step.seconds == pytest.approx(0.009 + 1e-6 * context, rel=1e-12)
        context += 3
    _, steps = finished(setting_of(trace_of([(100, 9)]), cost), make_policy("fixed:k=0"))
    assert steps[1].seconds == pytest.approx(0.010 + 1.3e-6 * 101, rel=1e-12)


def test_no_drafter_pays_no_draft() -> None:
    for text, seconds in (("none", 0.009), ("fixed:k=0", 0.010)):
        figures, _ = run_once(setting_of(trace_of([(5, 9)])), make_policy(text))
        assert figures["step_ms"] == pytest.approx(1e3 * seconds)
        assert figures["verified_tokens_per_step"] == 1 and figures["accept_length"] == 1


LIVE = ("hull", "early-stop", "lookahead", "threshold", "oracle", "argmax-live", "guard:inner=(hull)")


@pytest.mark.parametrize("text", LIVE + ("argmax:lag=1", "guard:lag=1"))
def test_the_overlapped_schedule_refuses_what_it_has_not_in_time(text: str) -> None:
    policy = make_policy(text)
    assert EngineSettings().schedule_for(policy) == "synchronous"
    for schedule in ("synchronous", "no-overlap"):
        assert EngineSettings(schedule=schedule).schedule_for(policy) == schedule
    with pytest.raises(InputError, match="expected schedule synchronous or no-overlap"):
        EngineSettings(schedule="overlapped").schedule_for(policy)


@pytest.mark.parametrize(
    "text", ["none", "fixed", "argmax:lag=2", "argmax:lag=3", "schedule", "goodput", "tetris", "guard"]
)
def test_the_overlapped_schedule_is_the_default_of_the_others(text: str) -> None:
    assert EngineSettings().schedule_for(make_policy(text)) == "overlapped"


def test_every_policy_runs() -> None:
    setting = setting_of(trace_of([(5, 40)] * 12), load_profile("vllm-b300-dsv4-flash"), concurrency=6)
    for name in POLICIES:
        run, _ = finished(setting, make_policy(name))
        assert run.recorder.completed == 12, name


def test_lengths_beyond_the_output_are_cut_and_counted_as_waste() -> None:
    figures, recorder = run_once(setting_of(trace_of([(5, 2)] * 50)), make_policy("fixed:k=7"))
    assert recorder.committed_tokens == 50 and figures["accept_length"] == 1
    assert figures["wasted_share"] >= 1 - 1 / 8


def test_policies_that_verify_more_commit_more_of_the_same_blocks() -> None:
    for policy in (FewOrMany(), Spy(k=2)):
        run, steps = finished(setting_of(trace_of([(5, 60)] * 10)), policy)
        assert run.recorder.completed == 10 and sum(step.committed for step in steps) == 600


def queue_of(*lengths: tuple[int, int]) -> deque[Waiting]:
    return deque(Waiting(number, prompt, 0, output) for number, (prompt, output) in enumerate(lengths))


class NoBatch:
    """An empty decode batch as admission sees it."""

    size = wanted = 0
    remaining = np.zeros(0, dtype=np.int64)


def test_a_chunk_takes_prompts_in_order_and_cuts_the_last() -> None:
    queue, memory = queue_of((60, 5), (60, 5), (60, 5)), Memory(10_000, 16)
    chunk = next_chunk(queue, NoBatch(), memory, 100, 8, closed=False)  # type: ignore[arg-type]
    assert chunk.new_tokens == 100 and [waiting.request for waiting in chunk.completed] == [0]
    assert queue[0].request == 1 and queue[0].done == 40 and memory.context == 100
    # Attention pairs: each prompt reads itself alone.
    assert chunk.pairs == pytest.approx(60 * 30 + 40 * 20)
    assert chunk.new_tokens * (chunk.context_tokens + chunk.new_tokens / 2) == pytest.approx(chunk.pairs)
    chunk = next_chunk(queue, NoBatch(), memory, 100, 8, closed=True)  # type: ignore[arg-type]
    assert chunk.new_tokens == 20 and not chunk.blocked, "closed to new requests, not to a prompt in progress"
    assert chunk.pairs == pytest.approx(20 * (40 + 10))


def test_admission_stops_at_slots_and_at_memory() -> None:
    assert (
        len(next_chunk(queue_of(*[(10, 5)] * 9), NoBatch(), Memory(10_000, 16), 1000, 3, closed=False).completed) == 3
    )  # type: ignore[arg-type]
    chunk = next_chunk(queue_of(*[(10, 5)] * 9), NoBatch(), Memory(3 * 31 + 30, 16), 1000, 8, closed=False)  # type: ignore[arg-type]
    assert len(chunk.completed) == 3 and chunk.blocked


def test_admission_stays_closed_until_a_request_leaves() -> None:
    """SGLang's batch_is_full: the third request would fit once the estimate has decayed, but nobody has left."""
    lengths = [(10, 900), (10, 900), (10, 100)]
    run, steps = finished(setting_of(trace_of(lengths), kv_tokens=1900, schedule="no-overlap"), make_policy("none"))
    joined = next(step.end_s for step in steps[1:] if step.kind == "prefill")
    left = np.sort(run.recorder.finish_s)[0]
    assert joined > left


def test_retraction_takes_the_fewest_generated_then_the_longest_prompt() -> None:
    run, _ = finished(setting_of(trace_of([(5, 9)])), make_policy("none"))
    engine = run.engines[0]
    engine.recorder.input_length = np.array([10, 90, 50, 70])
    engine.recorder.output_length = np.full(4, 8)
    engine.model.source._begin = np.arange(5) * 9  # type: ignore[attr-defined]
    engine.model.source._total = 45  # type: ignore[attr-defined]
    engine.model.source._logit = np.zeros((4, 7), dtype=np.float32)  # type: ignore[attr-defined]
    engine.model.source._run.cache_clear()  # type: ignore[attr-defined]
    engine.recorder.retractions = engine.recorder.verify_steps = np.zeros(4, dtype=np.int64)
    for request, generated in enumerate((3, 2, 2, 2)):
        engine.batch.add(request, 8 - generated, generated, 0, 8)
    for _ in range(3):
        retract(engine)
    assert [waiting.request for waiting in engine.queue] == [1, 3, 2]
    assert [waiting.context for waiting in engine.queue] == [92, 72, 52]
