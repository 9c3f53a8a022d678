"""The user's own traffic without our plug-in: SGLang's JSON request log, bench_serving's output with details."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sglang_dspark.errors import InputError
from simulator.traces import load_trace


def finished(rid: str, received: float, prompt: int, output: int, **meta: object) -> str:
    """As `RequestLogger.log_finished_request` writes it at level 1, a logger's stamp before it."""
    info = {
        "id": rid,
        "finish_reason": {"type": "length", "length": output},
        "prompt_tokens": prompt,
        "num_retractions": 0,
        "completion_tokens": output,
        "cached_tokens": 0,
        "e2e_latency": 2.5,
        "request_received_ts": received,
        **meta,
    }
    line = {
        "timestamp": "2026-11-30T10:00:05.500000",
        "event": "request.finished",
        "rid": rid,
        "obj": {"sampling_params": {"max_new_tokens": 64, "temperature": 0.0}, "stream": False},
        "out": {"meta_info": {key: value for key, value in info.items() if value is not None}},
    }
    return "[2026-11-30 10:00:05] " + json.dumps(line) + "\n"


RECEIVED = (
    '[2026-11-30 10:00:03] {"timestamp": "2026-11-30T10:00:03", "event": "request.received", "rid": "a", "obj": {}}\n'
)


def test_the_request_log_gives_arrivals_lengths_and_limits(tmp_path: Path) -> None:
    path = tmp_path / "host_0.log"
    text = RECEIVED + finished("b", 1796000002.25, 30, 9) + "a line of something else\n"
    text += finished("HEALTH_CHECK_1", 1796000000.0, 1, 1) + finished("a", 1796000001.0, 20, 64, cached_tokens=16)
    path.write_text(text)
    trace = load_trace(path)
    assert trace.arrival_s.tolist() == [0.0, 1.25] and trace.request_id == ("a", "b")
    assert (trace.input_length.tolist(), trace.output_length.tolist()) == ([20, 30], [64, 9])
    assert trace.max_tokens is not None and trace.max_tokens.tolist() == [64, 64]
    assert trace.cached_length is not None and trace.cached_length.tolist() == [16, 0]
    assert "(sglang-log)" in trace.source


def test_without_a_received_stamp_the_latency_is_taken_off(tmp_path: Path) -> None:
    path = tmp_path / "log"
    text = finished("a", 0, 20, 4, request_received_ts=None, e2e_latency=3.5)
    path.write_text(text + finished("b", 0, 20, 4, request_received_ts=None))
    assert load_trace(path).arrival_s.tolist() == [0.0, 1.0]
    path.write_text(finished("a", 0, 20, 4, request_received_ts=None, e2e_latency=None))
    with pytest.raises(InputError, match="line 1: expected request_received_ts or e2e_latency"):
        load_trace(path)


def test_what_a_log_lacks_is_said(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text(RECEIVED)
    with pytest.raises(InputError, match="got none that tells its tokens"):
        load_trace(path)
    unlimited = finished("a", 5.0, 20, 4).replace("max_new_tokens", "n")
    path.write_text(unlimited + finished("b", 6.0, 9, 4, prompt_tokens=None))
    trace = load_trace(path)
    assert len(trace) == 1 and trace.max_tokens is None
    assert any("max_new_tokens is not logged" in note for note in trace.notes)
    assert any("1 finished requests do not tell their tokens" in note for note in trace.notes)


def bench(**more: object) -> str:
    result = {"backend": "sglang", "completed": 3, "total_output_tokens": 30, "output_throughput": 9.0, "ttfts": [0.1]}
    return json.dumps({**result, **more}) + "\n"


def test_bench_serving_gives_lengths_in_order(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text(bench(input_lens=[9, 8, 7], output_lens=[3, 0, 5]) + bench(input_lens=[6], output_lens=[2]))
    trace = load_trace(path)
    assert not trace.stamped and trace.input_length.tolist() == [9, 7, 6] and trace.output_length.tolist() == [3, 5, 2]
    assert any("send times are not in its file" in note for note in trace.notes)
    assert any("2 runs" in note for note in trace.notes)
    for text, says in (
        (bench(), "input_lens, a list of tokens: run bench_serving with --output-details"),
        (bench(input_lens=[1], output_lens=[1, 2]), "as many output_lens as input_lens"),
        (bench(input_lens=[1.5], output_lens=[1]), "run bench_serving with --output-details"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=says):
            load_trace(path)


def test_what_sglang_s_own_logger_writes_is_read(tmp_path: Path) -> None:
    logging = pytest.importorskip("sglang.srt.utils.request_logger", reason="needs the sglang package (extra `serve`)")
    from sglang.srt.managers.io_struct import GenerateReqInput

    logger = logging.RequestLogger(True, 1, "json", [str(tmp_path)])
    for number, received in enumerate((1796000000.5, 1796000002.0)):
        asked = GenerateReqInput(text="hello", sampling_params={"max_new_tokens": 50}, rid=f"r{number}")
        meta = {"id": f"r{number}", "prompt_tokens": 7 + number, "completion_tokens": 5, "cached_tokens": 0}
        logger.log_received_request(asked)
        logger.log_finished_request(asked, {"text": "x", "meta_info": {**meta, "request_received_ts": received}})
    for handler in [handler for target in logger.targets for handler in target.handlers]:
        handler.close()
    (path,) = tmp_path.glob("*.log")
    trace = load_trace(path)
    assert trace.arrival_s.tolist() == [0.0, 1.5] and trace.input_length.tolist() == [7, 8]
    assert trace.request_id == ("r0", "r1") and trace.max_tokens is not None and trace.max_tokens.tolist() == [50, 50]
