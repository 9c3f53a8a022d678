"""The simulated server is the one that SGLang would set up: limits, graphs, KV memory, and what is told of them."""

from __future__ import annotations

import json
from dataclasses import replace
from importlib.resources import files
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from command_line import PROFILE, call
from hypothesis import given
from hypothesis import strategies as st
from simulated_worlds import finished, flat_cost, setting_of, trace_of

from sglang_dspark.cost import StepCost, load_profile
from sglang_dspark.errors import InputError
from sglang_dspark.policies import make_policy
from simulator import EngineSettings, simulate
from simulator.engine.run import assemble
from simulator.engine.server import Server
from simulator.inputs import Engine, Load, prepare
from simulator.results.run import run_once
from simulator.results.servers import queueing
from simulator.traces import example_trace, first_requests

FIXED, HULL, NONE = map(make_policy, ("fixed:k=7", "hull", "none"))
B300 = load_profile(PROFILE)
QWEN = replace(B300, meta={"model": "Qwen3-8B", "hardware": "NVIDIA H100", "gpu_memory_gib": 79.6, "tp_size": 1})
SPEC_48 = (*range(1, 9), *range(10, 33, 2), 40, 44, 48)


def server_of(cost: StepCost = QWEN, policy=FIXED, concurrency: int | None = None, graphs=None, **engine) -> Server:
    machine = {name: engine.pop(name) for name in ("gpu_memory_gib", "tp") if name in engine}
    setting = prepare(
        Load(trace_of([(9, 9)] * 4), concurrency=concurrency),
        Engine(cost, graphs=graphs, settings=EngineSettings(**engine), **machine),
    )
    return setting.server(policy)


def test_the_defaults_of_an_8b_model_at_80_gb() -> None:
    dspark, plain = server_of(), server_of(policy=NONE)
    assert (dspark.max_running_requests, dspark.chunked_prefill_size, dspark.batches) == (48, 8192, SPEC_48)
    assert dspark.on_graphs(QWEN).last_captured == 48 * 8
    # Without speculation there is no limit but memory's, another list, and one token a request.
    assert (plain.max_running_requests, plain.width, plain.asked_limit) == (2048, 1, None)
    assert plain.batches == (1, 2, 4, 8, 12, *range(16, 257, 8))


def test_the_defaults_of_deepseek_v4_on_b300() -> None:
    for policy in (FIXED, NONE):
        server = server_of(B300, policy)
        assert (server.max_running_requests, server.chunked_prefill_size) == (256, 16384)
        assert server.batches is not None and server.batches[-1] == 256


def test_what_nobody_knows_is_as_sglang_has_it_then() -> None:
    unknown = replace(QWEN, meta={})
    server = server_of(unknown, max_running_requests=500)
    assert server.chunked_prefill_size == 4096 and server.batches is not None and server.batches[-1] == 160
    assert server_of(unknown, gpu_memory_gib=24, tp=4).batches == SPEC_48
    assert server_of(unknown, gpu_memory_gib=15).batches == tuple(range(1, 9))


def test_a_default_limit_gives_way_and_a_given_one_does_not() -> None:
    raised = server_of(concurrency=64)
    assert (raised.max_running_requests, raised.default_limit, raised.flag) == (64, 48, "--max-running-requests 64")
    assert raised.batches is not None and raised.batches[-1] == 64
    assert server_of(concurrency=48).flag == "" == server_of(B300, concurrency=200).flag
    given = server_of(concurrency=64, max_running_requests=48)
    assert (given.max_running_requests, given.default_limit, given.flag) == (48, None, "")
    # Two replicas share what is in flight; the ranks of one server share its limit too.
    assert server_of(concurrency=101, replicas=2).flag == "--max-running-requests 51"
    assert server_of(concurrency=101, replicas=2, dp_attention=True).flag == "--max-running-requests 102"


def test_ranks_of_one_server_share_its_limit_its_chunk_and_its_tp() -> None:
    server = server_of(QWEN, replicas=4, dp_attention=True, tp=8)
    assert (server.max_running_requests, server.chunked_prefill_size) == (48 // 4, 8192 // 4)
    assert server.batches == (*range(1, 9), 10, 12)  # two ranks of a replica share 8 tokens a request: all divide
    plain = server_of(QWEN, NONE, replicas=4, dp_attention=True, tp=8, max_running_requests=13)
    assert plain.batches == (2, 4, 8, 12, 14)  # of one token a request only even sizes do


def test_a_draft_takes_its_share_of_the_kv_memory() -> None:
    shared = QWEN.with_terms(kv_tokens=100_000, draft_kv_share=0.2)
    assert (server_of(shared).kv_tokens, server_of(shared, NONE).kv_tokens) == (80_000, 100_000)
    # A flag or records give what a server with the draft reports.
    told = {"cost": shared, "kv_tokens": 80_000}
    assert (server_of(**told).kv_tokens, server_of(policy=NONE, **told).kv_tokens) == (80_000, 100_000)
    assert server_of(QWEN).kv_tokens == server_of(QWEN, NONE).kv_tokens


def test_graphs_as_asked() -> None:
    assert server_of(graphs="profile").batches is None
    assert server_of(graphs=(1, 2, 4, 8, 64)).batches == (1, 2, 4, 8, 48)  # cut to the request pool, as SGLang does
    cpu = replace(QWEN, meta={"hardware": "cpu (x86_64)"})
    assert server_of(cpu).batches is None
    recorded = replace(QWEN, meta={"graphs": "recorded"})
    assert server_of(recorded).batches is None and server_of(recorded, graphs="sglang").batches is not None
    for wrong in ((), (0, 1), (2, 1), (1, 1), (1.5,), "vllm"):
        with pytest.raises(InputError, match="graphs '.*' is refused"):
            server_of(graphs=wrong)


@given(
    st.floats(8, 300),
    st.integers(1, 16),
    st.one_of(st.none(), st.integers(1, 600)),
    st.one_of(st.none(), st.integers(1, 600)),
)
def test_a_whole_block_always_fits_up_to_the_largest_captured_batch(
    gib: float, tp: int, limit: int | None, concurrency: int | None
) -> None:
    server = server_of(gpu_memory_gib=gib, tp=tp, concurrency=concurrency, max_running_requests=limit)
    assert server.batches is not None
    cost = server.on_graphs(QWEN)
    most = server.batches[-1]
    assert most <= server.max_running_requests and cost.captured_requests == most
    assert cost.last_captured == most * 8
    assert set(cost.executed_tokens(8.0 * np.arange(1, most + 1))) == {8.0 * size for size in server.batches}


def test_engine_and_policies_are_on_the_same_graphs() -> None:
    setting = prepare(Load(first_requests(example_trace(), 60), concurrency=9), B300)
    model = assemble(setting, HULL).model
    assert model.belief is model.cost and model.cost.last_captured == 2048
    # Nine requests draft in the graph of ten, and whole blocks of nine verify in its 80 tokens.
    figures = run_once(setting, FIXED)[0]
    at_ten = 1e3 * (B300.draft_s(10), float(B300.verify_s(10, 80)))[1]
    assert figures["draft_ms_per_step"] <= 1e3 * B300.draft_s(10) + 1e-9
    assert figures["verify_ms_per_step"] <= at_ten + 1e-9
    own = prepare(Load(first_requests(example_trace(), 60), concurrency=9), Engine(B300, graphs="profile"))
    assert run_once(own, FIXED)[0]["draft_ms_per_step"] < figures["draft_ms_per_step"]


def many(count: int = 700) -> list[tuple[int, int]]:
    return [(10, 30)] * count


@pytest.mark.parametrize(("cost", "in_flight"), [(B300, 40), (B300, 100), (B300, 200), (QWEN, 64), (QWEN, 200)])
def test_what_is_in_flight_runs(cost: StepCost, in_flight: int) -> None:
    """No further flag: neither 48 nor the profile's 192 whole blocks are a wall."""
    setting = prepare(
        Load(trace_of(many()), concurrency=in_flight), cost.with_terms(prefill_base_s=0.0, prefill_token_s=0.0)
    )
    largest = 0

    def watch(run, step) -> None:
        nonlocal largest
        largest = max(largest, step.batch)

    finished(setting, FIXED, watch)
    assert largest == in_flight


def test_at_192_sglang_has_graphs_where_vllm_has_none() -> None:
    trace = trace_of([(10, 60)] * 900)
    gain = {}
    for graphs in ("sglang", "profile"):
        found = simulate(
            Load(trace, concurrency=192),
            Engine(PROFILE, graphs=graphs),
            ["fixed:k=7", "argmax:lag=2"],
            replications=1,
            jobs=1,
        )
        gain[graphs] = found.results[1].difference["output_throughput"].mean
    assert -0.05 < gain["sglang"] < 0.15 and gain["profile"] > 0.6


@pytest.mark.parametrize(("limit", "awaited"), [(7, 1), (8, 2), (20, 4)])
def test_prompts_beside_running_requests_wait_for_several_free_slots(limit: int, awaited: int) -> None:
    """SGLang prefills several together for DSPARK; a server without a draft takes whom it can."""
    trace = trace_of([(10, 20 + number % 13) for number in range(4 * limit)])
    least = {}
    for policy, expected in ((FIXED, awaited), (NONE, 1)):
        setting = setting_of(trace, max_running_requests=limit, concurrency=2 * limit)
        assert setting.server(policy).free_slots == expected
        _, steps = finished(setting, policy)
        entered = [
            step.committed for first, step in pairwise(steps) if (first.kind, step.kind) == ("decode", "prefill")
        ]
        least[policy.name] = min(entered[: len(entered) // 2])  # later the trace runs out of requests
    assert least["fixed"] >= awaited and least["none"] == 1


def test_a_given_limit_queues_loudly() -> None:
    setting = prepare(
        Load(trace_of(many(100)), concurrency=64), Engine(QWEN, settings=EngineSettings(max_running_requests=48))
    )
    (line,) = queueing(setting, [FIXED])
    assert line == (
        "WARNING: 64 requests are in flight but only 48 run, the others queue: max running requests is 48 a replica, "
        "as given"
    )
    _, steps = finished(setting, FIXED)
    assert max(step.batch for step in steps) == 48
    assert queueing(replace(setting, concurrency=48), [FIXED]) == ()
    assert queueing(replace(setting, engine=EngineSettings()), [FIXED]) == ()


def written(tmp_path: Path, **meta: object) -> str:
    """The shipped profile of another model and machine."""
    shipped = json.loads(files("dspark_profiles").joinpath(f"{PROFILE}.json").read_text())
    shipped["meta"] = {"how": "by hand", **meta}
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(shipped))
    return str(path)


def test_the_report_says_it(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    base = ("--trace", "example", "--limit", "80", "--replications", "1", "--jobs", "1", "--concurrency", "64")
    both = ("--policy", "fixed:k=7", "--policy", "none")
    profile = written(tmp_path, model="Qwen3-8B", gpu_memory_gib=79.6)
    out = " ".join(call(capsys, *base, *both, "--wide", "--profile", profile).out.split())
    assert "server flag: --max-running-requests 64 (DSPARK: 64 requests are in flight, SGLang's own limit is 48)" in out
    assert "engine (DSPARK): max running requests 64, chunked prefill 8192" in out
    assert "engine (policy none): max running requests 2048" in out
    assert "CUDA graphs of DSPARK: 27 batch sizes up to 64 requests, 512 tokens (SGLang's list: 79.6 GiB a GPU " in out
    assert "(profile), TP unknown, taken as 1)" in out
    assert "raised to the requests in flight; 48 is SGLang's for DSPARK" in out
    assert "as bench_serving sends it" in out and "draft_kv_share = 0" in out
    loud = call(
        capsys, *base, "--only", "--policy", "fixed:k=7", "--profile", profile, "--max-running-requests", "48"
    ).out
    assert "WARNING: 64 requests are in flight but only 48 run" in " ".join(loud.split()) and "server flag" not in loud
    setting = call(capsys, *base, *both, "--profile", profile, "--json").report["setting"]
    assert setting["server_flags"] == {"DSPARK": "--max-running-requests 64"} and setting["graphs"] == "sglang"
    assert setting["servers"]["policy none"]["captured_batches"][:5] == [1, 2, 4, 8, 12]


def running(trace, **engine) -> int:
    """The most requests that decode together in a memory of 1,000 tokens, where drafts reserve 16 each."""
    _, steps = finished(setting_of(trace, flat_cost(), kv_tokens=1000, **engine), FIXED)
    return max(step.batch for step in steps)


def test_admission_sets_aside_what_the_client_asks_for() -> None:
    """Prompts of 100 and answers of 100 tokens: four fit (216 each), or fewer where clients may ask for more."""
    trace = trace_of([(100, 100)] * 4)
    assert running(trace) == 4
    # 0.7 of what running requests may ask for is expected: (100 + 300) + 16, and 0.7 x 300 for each that runs.
    asking = replace(trace, max_tokens=np.full(4, 300))
    alone = [step.batch for step in finished(setting_of(asking, flat_cost(), kv_tokens=1000), FIXED)[1]]
    assert max(alone) < 4
    # What no memory can hold is cut to what it can, so that a request alone always enters.
    assert running(replace(trace, max_tokens=np.full(4, 100_000))) == 1


def test_admission_estimates_at_most_4096_tokens_of_a_request() -> None:
    trace = trace_of([(10, 10)] * 6)

    def most(max_tokens: int) -> int:
        setting = setting_of(replace(trace, max_tokens=np.full(6, max_tokens)), flat_cost(), kv_tokens=13_000)
        return max(step.batch for step in finished(setting, FIXED)[1])

    assert most(10) == 6 and most(4096) == most(100_000) < 6


def test_max_tokens_replaces_the_traces_and_is_no_less_than_an_answer() -> None:
    trace = replace(trace_of([(10, 10), (10, 30)]), max_tokens=np.array([50, 60]))
    setting = prepare(Load(trace, max_tokens=40), B300)
    assert setting.trace.max_tokens is not None and setting.trace.max_tokens.tolist() == [40, 40]
    with pytest.raises(InputError, match="max_tokens is 29, expected at least the 30 tokens of the longest answer"):
        prepare(Load(trace, max_tokens=29), B300)
    told = simulate(trace, B300, [FIXED], replications=1, jobs=1)
    assert "max_tokens" not in {one.key for one in told.assumptions}
