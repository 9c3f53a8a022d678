"""The audit's HTTP client against a fake server: what it asks, what it takes from answers, and how it can fail."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

httpx = pytest.importorskip("httpx", reason="the audit's client needs httpx (extra `audit`)")

from sglang_dspark.audit.live.client import GREEDY, SAMPLED, Server  # noqa: E402
from sglang_dspark.audit.live.prompts import Prompt  # noqa: E402
from sglang_dspark.audit.live.sampling import Collected, collect  # noqa: E402
from sglang_dspark.audit.live.settings import AuditSettings  # noqa: E402
from sglang_dspark.errors import InputError  # noqa: E402
from sglang_dspark.keys import Keys  # noqa: E402

Answer = Callable[["httpx.Request"], "httpx.Response"]
SETTINGS = AuditSettings(samples=100, concurrency=4, background=2, control=2, greedy_tokens=5)
PROMPTS = [Prompt("p:1", (1, 2, 3)), Prompt("p:2", (4,))]


class FakeServer:
    """Answers like SGLang 0.5.23 with our worker; `fail` replaces the answer to chosen requests."""

    def __init__(self, fail: Callable[[str, dict[str, Any], int], httpx.Response | None] | None = None) -> None:
        self.fail = fail
        self.bodies: list[dict[str, Any]] = []
        self.aborted: list[str] = []
        self.running: set[str] = set()
        self.beside: list[int] = []
        self.since_step = 0

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        path, body = request.url.path, json.loads(request.content or b"{}")
        failed = self.fail(path, body, len(self.bodies)) if self.fail else None
        if failed is not None:
            return failed
        if path == "/server_info":
            ours = {"gamma": 7, "policy": "hull", "lossless": True, "since_step": self.since_step, "counters": {}}
            return httpx.Response(200, json={"model_path": "m", "internal_states": [{"dspark": ours}]})
        if path == "/abort_request":
            self.aborted.append(body["rid"])
            return httpx.Response(200)
        return await self.generate(body)

    async def generate(self, body: dict[str, Any]) -> httpx.Response:
        self.bodies.append(body)
        length = body["sampling_params"]["max_new_tokens"]
        if "rid" in body:
            self.running.add(body["rid"])
            try:
                await asyncio.sleep(3600)
            finally:
                self.running.discard(body["rid"])
        self.beside.append(len(self.running))
        await asyncio.sleep(0)
        meta: dict[str, Any] = {
            "finish_reason": {"type": "length"},
            "spec_verify_ct": 4,
            "spec_cap_lens_histogram": [0, 1, 0, 2, 0, 0, 0, 0, 1],
        }
        if body.get("return_logprob"):
            meta["output_top_logprobs"] = [[[-0.5, 3, None], [-1.0, 4, None]]] * length
        return httpx.Response(200, json={"output_ids": list(range(length)), "meta_info": meta})


def server(fake: Any, **arguments: Any) -> Server:
    return Server("http://fake:1/", transport=httpx.MockTransport(fake), **arguments)


def gather(fake: Any, inspect: Callable[[Any], None] = lambda control: None) -> Collected:
    async def run() -> Collected:
        async with server(fake) as client:
            return await collect(client, PROMPTS, PROMPTS, SETTINGS, inspect, lambda stage, done, total: None)

    return asyncio.run(asyncio.wait_for(run(), 60))


def test_everything_is_asked_beside_the_background() -> None:
    fake = FakeServer()
    found = gather(fake)
    assert [samples.shape for samples in found.samples] == [(100, 7), (100, 7)]
    assert [len(tokens) for tokens in found.greedy] == [5, 5] and [len(replies) for replies in found.control] == [2, 2]
    assert set(fake.beside) == {2}, "both background requests run beside every audited one"
    assert len(fake.aborted) == 2 and not fake.running
    sampled = [body["sampling_params"] for body in fake.bodies if body["sampling_params"]["max_new_tokens"] == 7]
    assert len(sampled) == 2 * (100 + 2)
    for parameters in sampled:
        assert parameters["temperature"] == 1.0 and parameters["top_p"] == 1.0 and parameters["top_k"] == -1
        assert parameters["ignore_eos"] is True and parameters["repetition_penalty"] == 1.0


def test_cut_share_counts_blocks_below_gamma() -> None:
    found = gather(FakeServer())
    # The histogram counts anchors in: one block of 0 draft tokens, two of 2, one whole block of gamma = 7.
    assert found.verified == {0: 200, 2: 400, 7: 200} and found.blocks == 800
    assert found.cut_share == 0.75


def test_a_reply_is_read() -> None:
    async def ask() -> Any:
        async with server(FakeServer()) as client:
            return await client.generate((1,), 3, GREEDY, top=True), await client.state()

    reply, state = asyncio.run(ask())
    assert reply.tokens == [0, 1, 2] and reply.blocks == 4 and reply.top[2] == {3: -0.5, 4: -1.0}
    assert (state.gamma, state.policy, state.model) == (7, "hull", "m")


def test_a_server_without_our_worker() -> None:
    answer = {"model_path": "m", "speculative_algorithm": "DSPARK", "speculative_num_draft_tokens": 5}

    async def ask() -> Any:
        async with server(lambda request: httpx.Response(200, json=answer)) as client:
            return await client.state()

    state = asyncio.run(ask())
    assert state.gamma == 4 and state.policy is None


def test_the_api_key_is_sent() -> None:
    seen = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers.get("authorization"))
        return httpx.Response(200, json={"model_path": "m"})

    async def ask() -> None:
        async with server(answer, keys=Keys("secret")) as client:
            await client.state()

    asyncio.run(ask())
    assert seen == ["Bearer secret"]


def raise_refused(request: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("connection refused")


def raise_timeout(request: httpx.Request) -> httpx.Response:
    raise httpx.ReadTimeout("slow")


OK_META = {"finish_reason": {"type": "length"}}


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (raise_refused, "cannot be reached"),
        (raise_timeout, "did not answer in time"),
        (lambda request: httpx.Response(401, text="bad key"), "answered 401: the API key was refused"),
        (lambda request: httpx.Response(503, text="queue full"), "answered 503"),
        (lambda request: httpx.Response(200, text="<html>"), "answered no JSON"),
        (lambda request: httpx.Response(200, json={"choices": []}), "lacks 'output_ids'"),
        (lambda request: httpx.Response(200, json=[1]), "native endpoint"),
        (lambda request: httpx.Response(200, json={"output_ids": [1], "meta_info": OK_META}), "returned 1 tokens"),
        (
            lambda request: httpx.Response(
                200, json={"output_ids": [], "meta_info": {"finish_reason": {"type": "abort", "message": "too long"}}}
            ),
            "aborted a request: too long",
        ),
    ],
)
def test_a_bad_answer_is_one_sentence(answer: Answer, message: str) -> None:
    async def ask() -> None:
        async with server(answer) as client:
            await client.generate((1,), 3, SAMPLED)

    with pytest.raises(InputError, match=message):
        asyncio.run(ask())


def test_something_else_answers_server_info() -> None:
    async def ask() -> None:
        async with server(lambda request: httpx.Response(200, json={"hello": 1})) as client:
            await client.state()

    with pytest.raises(InputError, match="is it an SGLang server"):
        asyncio.run(ask())


def test_a_url_without_a_scheme_is_refused() -> None:
    with pytest.raises(InputError, match="--url localhost:30000"):
        Server("localhost:30000")


def test_the_first_failure_ends_the_audit() -> None:
    fake = FakeServer(lambda path, body, asked: httpx.Response(500, text="boom") if asked == 60 else None)
    with pytest.raises(InputError, match="answered 500: boom"):
        gather(fake)
    assert len(fake.bodies) < 100 and not fake.running


def test_a_failing_background_is_not_silent() -> None:
    def fail(path: str, body: dict[str, Any], asked: int) -> httpx.Response | None:
        return httpx.Response(500, text="no room") if "rid" in body else None

    with pytest.raises(InputError, match="background request failed.*no room"):
        gather(FakeServer(fail))


def test_a_switch_meanwhile_is_refused() -> None:
    fake = FakeServer()

    def switch(control: Any) -> None:
        fake.since_step = 10

    with pytest.raises(InputError, match="switched"):
        gather(fake, switch)


def test_inspection_can_end_it_before_the_long_part() -> None:
    fake = FakeServer()

    def refuse(control: Any) -> None:
        raise InputError("another model")

    with pytest.raises(InputError, match="another model"):
        gather(fake, refuse)
    short = [body for body in fake.bodies if body["sampling_params"]["max_new_tokens"] == 7]
    assert short and all("return_logprob" in body for body in short)


@pytest.mark.parametrize(
    ("field", "value"), [("samples", 5), ("alpha", 0.9), ("tokens", 0), ("background", -1), ("detect", float("nan"))]
)
def test_settings_out_of_range(field: str, value: float) -> None:
    with pytest.raises(InputError, match=f"--{field} {value}"):
        AuditSettings(**{field: value})
