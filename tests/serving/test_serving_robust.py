"""Clients that vanish, odd requests, a full KV pool: the right result or a clear error, and the server goes on."""

from __future__ import annotations

import json
import time

import pytest

pytest.importorskip("sglang", reason="needs the extra `serve`")

import httpx  # noqa: E402
from live_server import LiveServer, write_profile  # noqa: E402

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

POLICIES = ("hull", "argmax:lag=2")


@pytest.fixture(params=POLICIES)
def switched(request, server):
    """The shared server under a live and under a budget policy; it must still work afterwards."""
    server.switch(request.param)
    yield server
    server.works()


def running_requests(server: LiveServer) -> int:
    return int(server.http.get("/v1/loads").json()["loads"][0]["num_running_reqs"])


def test_a_client_that_is_killed_mid_stream(switched, prompts) -> None:
    body = {"text": prompts[0], "stream": True, "sampling_params": {"max_new_tokens": 1500, "ignore_eos": True}}
    for _ in range(3):
        with httpx.stream("POST", f"{switched.url}/generate", json=body, timeout=60) as stream:
            lines = stream.iter_lines()
            assert next(lines).startswith("data:")
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and running_requests(switched):
        time.sleep(0.2)
    assert running_requests(switched) == 0, "an abandoned request keeps running"


def test_aborting_requests(switched, prompts) -> None:
    import threading

    results = []

    def ask() -> None:
        answer = switched.http.post(
            "/generate",
            json={
                "text": prompts[1],
                "rid": "to-abort",
                "sampling_params": {"max_new_tokens": 1500, "ignore_eos": True},
            },
        )
        results.append(answer.json())

    thread = threading.Thread(target=ask)
    thread.start()
    time.sleep(1.0)
    assert switched.http.post("/abort_request", json={"rid": "to-abort"}).status_code == 200
    thread.join(timeout=30)
    assert results and results[0]["meta_info"]["finish_reason"]["type"] == "abort"


def test_a_prompt_longer_than_the_context(switched) -> None:
    answer = switched.http.post("/generate", json={"input_ids": [5] * 3000, "sampling_params": {"max_new_tokens": 4}})
    assert answer.status_code == 400 and "longer" in answer.text


@pytest.mark.parametrize("tokens", [0, 1, 2])
def test_few_or_no_tokens(switched, prompts, tokens: int) -> None:
    answer = switched.generate(prompts[0], tokens, ignore_eos=True)
    assert answer["meta_info"]["completion_tokens"] == tokens


def test_an_empty_prompt_or_batch(switched) -> None:
    for body in ({"input_ids": []}, {"text": []}, {"text": ""}):
        answer = switched.http.post("/generate", json={**body, "sampling_params": {"max_new_tokens": 2}})
        assert answer.status_code == (200 if body == {"text": []} else 400), body


def test_a_stop_string_inside_an_accepted_block(switched, prompts) -> None:
    """The text ends at the stop string even when the block went on behind it."""
    switched.switch("fixed:k=7")
    for prompt in prompts[:6]:
        whole = switched.generate(prompt, 64, ignore_eos=True)["text"]
        stop = whole[len(whole) // 2 : len(whole) // 2 + 3]
        if not stop.strip():
            continue
        cut = switched.generate(prompt, 64, ignore_eos=True, stop=[stop])
        assert cut["text"] == whole[: whole.index(stop)]
        assert cut["meta_info"]["finish_reason"] == {"type": "stop", "matched": stop}


def test_logprobs_are_the_targets(switched, prompts, reference) -> None:
    import torch

    prompt = reference.tokens(prompts[0])[:50]
    answer = switched.generate(prompt, 24, ignore_eos=True, return_logprob=True, top_logprobs_num=2)
    given = [row[0] for row in answer["meta_info"]["output_token_logprobs"]]
    output = answer["output_ids"]
    with torch.inference_mode():
        logits = reference.model(torch.tensor([prompt + output])).logits[0, len(prompt) - 1 : -1]
    expected = logits.log_softmax(-1).gather(1, torch.tensor(output)[:, None])[:, 0]
    assert torch.allclose(torch.tensor(given), expected, atol=2e-3)


def test_json_schema_output(switched) -> None:
    schema = {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}, "n": {"type": "integer", "minimum": 0, "maximum": 9}},
        "required": ["ok", "n"],
        "additionalProperties": False,
    }
    for temperature in (0.0, 1.0):
        text = switched.generate("{", 64, temperature, json_schema=json.dumps(schema))["text"]
        value = json.loads(text)
        assert isinstance(value["ok"], bool) and 0 <= value["n"] <= 9


def test_mixed_sampling_in_one_batch(switched, prompts) -> None:
    from concurrent.futures import ThreadPoolExecutor

    kinds = [{"temperature": 0.0}, {"temperature": 1.0}, {"temperature": 0.7, "top_p": 0.9}, {"top_k": 5}]
    kinds += [{"min_p": 0.1}, {"repetition_penalty": 1.2}, {"frequency_penalty": 0.5}]
    with ThreadPoolExecutor(16) as pool:
        jobs = [
            pool.submit(
                switched.generate, prompts[i], 24, **{"temperature": 0.9, **kinds[i % len(kinds)]}, ignore_eos=True
            )
            for i in range(21)
        ]
        assert [job.result()["meta_info"]["completion_tokens"] for job in jobs] == [24] * 21


def test_radix_cache_and_chunked_prefill(demo_pair, tmp_path, reference, prompts) -> None:
    """A long prompt in chunks, a shared prefix from the cache, and a pool that is too small for everybody."""
    profile = write_profile(tmp_path / "made.json")
    flags = ("--speculative-dspark-profile", str(profile), "--chunked-prefill-size", "128")
    # Room for about three of the requests below: the rest must be retracted and prefilled again.
    small = ("--max-total-tokens", "1200", "--max-running-requests", "8", "--schedule-conservativeness", "0.05")
    with LiveServer(demo_pair, tmp_path / "small.log", *flags, *small) as server:
        long = reference.tokens("".join(prompts[:12]))[:500]
        first = server.generate(long, 20, ignore_eos=True)
        again = server.generate(long, 20, ignore_eos=True)
        assert again["meta_info"]["cached_tokens"] >= 400
        assert reference.judge(long, first["output_ids"]) in ("equal", "tie")
        inputs = [reference.tokens(prompt)[:40] for prompt in prompts[:8]]
        # With ignore_eos SGLang reserves the whole length and admits only what fits: nothing would be retracted.
        answers = server.generate_all(inputs, concurrency=8, tokens=330)
        for answer in answers:
            reason = answer["meta_info"]["finish_reason"]["type"]
            assert reason == "stop" or answer["meta_info"]["completion_tokens"] == 330, answer["meta_info"]
        verdicts = [reference.judge(ids, answer["output_ids"]) for ids, answer in zip(inputs, answers, strict=True)]
        assert "different" not in verdicts, verdicts
        assert sum(answer["meta_info"]["num_retractions"] for answer in answers) > 0, "the pool was not too small"
        server.works()
