"""SGLang's own `/server_info` records in our schema."""

import msgspec
import numpy as np
import pytest

from sglang_dspark.errors import InputError
from sglang_dspark.records import ROUNDED, fault
from sglang_dspark.records.upstream import upstream_header, upstream_infos, upstream_steps


def request(slot=3, **fields):
    return {
        "req_pool_index": slot,
        "prefix_len": 512,
        "verify_len": 4,
        "acc_len": 3,
        "correct_drafts": 2,
        "cap_trim": 0,
        "bonus_token": 42,
        "draft_tokens": [1] * 7,
        "rid": "abc",
        "confidence": [0.9123] * 7,
        "survival": [0.5] * 7,
        **fields,
    }


def server_info(mode="compact", **fields):
    step = {
        "forward_ct": 101,
        "bs": 2,
        "mode": mode,
        "budget": 15,
        "lag_steps": 2,
        "num_verify_tokens": 24,
        "verify_tokens_graph_key": 24,
        "predicted_step_ms": 9.8,
        "step_cpu_ms": 10.1,
        "draft_gpu_ms": 1.25,
        "reqs": [request(), request(5, verify_len=8, correct_drafts=7, acc_len=8)],
    }
    info = {
        "mode": mode,
        "gamma": 7,
        "verify_num_draft_tokens": 8,
        "components": ["core", "reqs"],
        "simulate_acc_len": None,
        "records": [step, {**step, "forward_ct": 102}, {"forward_ct": 103}],
        **fields,
    }
    return {"internal_states": [{"dspark_info_record": info, "load": 1}], "version": "0.5.23"}


def test_steps_are_converted_and_valid():
    [info] = upstream_infos(server_info())
    assert upstream_header(info, {}).fidelity == ROUNDED
    steps = list(upstream_steps(info, rank=0))
    assert [step.step for step in steps] == [101, 102]
    assert fault(steps[0], 7) is None
    assert steps[0].lengths.tolist() == [3, 7] and steps[0].accepted.tolist() == [2, 7]
    assert steps[0].depth is None and steps[0].uncapped_depth(7).tolist() == [2, 7]
    assert steps[0].step_s == pytest.approx(0.0101) and steps[0].graph_tokens == 24
    assert [step.step for step in upstream_steps(info, rank=0, after=101)] == [102]


def test_cap_accept_shows_the_whole_depth():
    info = server_info("cap-accept")
    info["internal_states"][0]["dspark_info_record"]["records"][0]["reqs"][0]["cap_trim"] = 4
    info["internal_states"][0]["dspark_info_record"]["records"][0]["reqs"][0]["correct_drafts"] = 3
    [step, _] = upstream_steps(upstream_infos(info)[0], rank=0)
    assert step.depth.tolist() == [7, 7] and step.uncensored(7)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ({"internal_states": [{}]}, "SGLANG_DSPARK_DEBUG_DUMP=all"),
        ({"nothing": 1}, "not SGLang 0.5.23's"),
        (server_info(components=["core"]), "records no requests"),
        (server_info(simulate_acc_len=3.0), "simulates its acceptance"),
    ],
)
def test_servers_without_usable_records_are_refused(answer, words):
    with pytest.raises(InputError, match=words):
        upstream_infos(answer)


def test_the_names_are_still_sglang_s():
    pytest.importorskip("torch", reason="SGLang's record classes need torch")
    pytest.importorskip("sglang", reason="the extra `serve` is not installed")
    from sglang.srt.speculative.dspark_components.dspark_observability import DecodeStepRecord, ReqDetail

    from sglang_dspark.records import upstream

    for ours, theirs in [(upstream._Request, ReqDetail), (upstream._Step, DecodeStepRecord)]:
        assert set(ours.__struct_fields__) <= set(theirs.__struct_fields__)
    detail = ReqDetail(
        req_pool_index=1,
        prefix_len=5,
        verify_len=3,
        acc_len=2,
        correct_drafts=1,
        cap_trim=0,
        bonus_token=1,
        draft_tokens=[1, 2],
        rid="a",
        confidence=[0.5, 0.25],
    )
    theirs = msgspec.to_builtins(DecodeStepRecord(forward_ct=1, bs=1, mode="compact", reqs=[detail]))
    info = {"mode": "compact", "gamma": 2, "components": ["reqs"], "simulate_acc_len": None, "records": [theirs]}
    [step] = upstream_steps(upstream_infos({"internal_states": [{"dspark_info_record": info}]})[0], rank=0)
    np.testing.assert_array_equal(step.confidence, np.array([[0.5, 0.25]], dtype=np.float32))
