"""The few HTTP calls of an audit: SGLang's /generate with token ids, /server_info and /abort_request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from sglang_dspark.errors import InputError
from sglang_dspark.keys import Keys, refused

TOP_LOGPROBS = 32

SAMPLED: dict[str, Any] = {"temperature": 1.0}
GREEDY: dict[str, Any] = {"temperature": 0.0}
_PLAIN = {
    # Everything that could change the law is named, so that no server-side default does.
    "top_p": 1.0,
    "top_k": -1,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "frequency_penalty": 0.0,
    "presence_penalty": 0.0,
    "ignore_eos": True,
}


@dataclass(frozen=True)
class Reply:
    """One continuation: token ids, verified blocks by their number of draft tokens, and blocks in all (None: not told).

    top: per token the server's most probable tokens, id -> log-probability, when asked for.
    """

    tokens: list[int]
    verified: dict[int, int]
    blocks: int | None
    top: list[dict[int, float]] = field(default_factory=list)


@dataclass(frozen=True)
class ServerState:
    """What /server_info says. gamma, policy and the rest are None where the server has no DSPARK or not our worker."""

    gamma: int | None
    policy: str | None
    lossless: bool | None
    since_step: int | None
    counters: dict[str, Any]
    model: str
    served: dict[str, Any]


class Server:
    """A client for one server; use as an async context manager.

    Errors: InputError with one sentence for everything that goes wrong: an audit neither retries nor skips.
    """

    def __init__(
        self,
        url: str,
        keys: Keys | None = None,
        timeout_s: float = 600.0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise InputError(f"--url {url} is refused, expected http://HOST:PORT or https://HOST:PORT")
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        self.url, self._keys = url.rstrip("/"), keys or Keys()
        self._http = httpx.AsyncClient(
            base_url=self.url, timeout=timeout_s, limits=limits, transport=transport, trust_env=False
        )

    async def __aenter__(self) -> Server:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def generate(
        self, prompt: Sequence[int], length: int, sampling: dict[str, Any], *, rid: str | None = None, top: bool = False
    ) -> Reply:
        """A continuation of exactly `length` tokens; an end-of-text token is a token like any other."""
        body: dict[str, Any] = {
            "input_ids": list(prompt),
            "sampling_params": {**_PLAIN, **sampling, "max_new_tokens": length},
        }
        if rid is not None:
            body["rid"] = rid
        if top:
            body |= {"return_logprob": True, "top_logprobs_num": TOP_LOGPROBS}
        return _reply(await self._call("POST", "/generate", body), length, top)

    async def state(self) -> ServerState:
        """What the server says about itself now."""
        return _state(await self._call("GET", "/server_info"))

    async def abort(self, rid: str) -> None:
        """Stop a request; the server may have finished it."""
        await self._call("POST", "/abort_request", {"rid": rid})

    async def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        try:
            response = await self._http.request(method, path, json=body, headers=self._keys.headers(path))
        except httpx.TimeoutException as error:
            raise InputError(f"{self.url}{path} did not answer in time ({type(error).__name__})") from error
        except httpx.HTTPError as error:
            raise InputError(f"{self.url}{path} cannot be reached: {error or type(error).__name__}") from error
        if response.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            raise InputError(f"{self.url}{path} answered {response.status_code}: {refused(path)}")
        if response.status_code != httpx.codes.OK:
            raise InputError(f"{self.url}{path} answered {response.status_code}: {response.text[:300].strip()}")
        if path == "/abort_request":
            return None
        try:
            return response.json()
        except ValueError as error:
            raise InputError(f"{self.url}{path} answered no JSON: {response.text[:80]!r}") from error


def _reply(answer: Any, length: int, top: bool) -> Reply:
    try:
        tokens, meta = answer["output_ids"], answer["meta_info"]
        reason = meta.get("finish_reason") or {}
        if reason.get("type") == "abort":
            raise InputError(f"the server aborted a request: {reason.get('message', 'no reason given')}")
        # SGLang counts the anchor into the verify length of a block.
        verified = {size - 1: n for size, n in enumerate(meta.get("spec_cap_lens_histogram") or []) if n and size}
        ranked = [{entry[1]: entry[0] for entry in entries} for entries in meta["output_top_logprobs"]] if top else []
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise InputError(f"the server's answer to /generate lacks {error}: is it SGLang's native endpoint?") from error
    if len(tokens) != length or (top and len(ranked) != length):
        raise InputError(f"the server returned {len(tokens)} tokens where {length} were asked for (context full?)")
    return Reply([int(token) for token in tokens], verified, meta.get("spec_verify_ct"), ranked)


def _state(answer: Any) -> ServerState:
    if not isinstance(answer, dict) or "model_path" not in answer:
        raise InputError("the server's answer to /server_info names no model_path: is it an SGLang server?")
    states = answer.get("internal_states") or [{}]
    ours = states[0].get("dspark") or {}
    gamma = ours.get("gamma")
    if gamma is None and (answer.get("speculative_algorithm") or "").upper() == "DSPARK":
        drafted = answer.get("speculative_num_draft_tokens")
        gamma = None if drafted is None else int(drafted) - 1
    served = {key: ours[key] for key in ("class", "schedule", "mode", "profile", "explore") if key in ours}
    return ServerState(
        gamma=gamma,
        policy=ours.get("policy"),
        lossless=ours.get("lossless"),
        since_step=ours.get("since_step"),
        counters=ours.get("counters") or {},
        model=str(answer["model_path"]),
        served=served,
    )
