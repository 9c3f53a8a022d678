"""A small client of a running SGLang server: JSON over HTTP with the standard library, threads for concurrency."""

from __future__ import annotations

import http.client
import json
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sglang_dspark.errors import InputError
from sglang_dspark.keys import Keys, refused

POLICY_PATH = "/dspark/policy"

_CONTROL_TIMEOUT_S = 60.0
_GENERATE_TIMEOUT_S = 1800.0


class Unreachable(InputError):
    """The server does not answer, or not yet."""


@dataclass(frozen=True)
class Answer:
    """One generated answer. meta: SGLang's meta_info; sent_s, done_s: time.perf_counter()."""

    number: int
    text: str
    meta: dict[str, Any]
    sent_s: float
    done_s: float


@dataclass
class Server:
    """A server at `url`, with its keys if it has any."""

    url: str
    keys: Keys = field(default_factory=Keys.given)

    def get(self, path: str) -> Any:
        """The decoded answer of a GET; InputError says what went wrong, `Unreachable` that nothing answered."""
        return self.decode(path, self.get_bytes(path))

    def get_bytes(self, path: str) -> bytes:
        """The answer of a GET as it came, for `decode`."""
        return self._request(path, None, _CONTROL_TIMEOUT_S)

    def post(self, path: str, body: dict[str, Any], timeout_s: float = _CONTROL_TIMEOUT_S) -> Any:
        """The decoded answer of a POST."""
        return self.decode(path, self._request(path, body, timeout_s))

    def decode(self, path: str, answer: bytes) -> Any:
        """An answer as JSON, None where it is empty."""
        try:
            return json.loads(answer) if answer.strip() else None
        except ValueError as error:
            raise InputError(f"{self._target(path)} did not answer with JSON: {error}") from error

    def states(self) -> list[dict[str, Any]]:
        """`internal_states` of /server_info, one a replica."""
        info = self.get("/server_info")
        states = info.get("internal_states") if isinstance(info, dict) else None
        if not isinstance(states, list) or not states:
            raise InputError(f"{self.url}/server_info shows no internal_states, expected an SGLang server")
        return states

    def dspark(self) -> list[dict[str, Any]]:
        """What our worker shows in every replica's state; InputError if the server does not run it."""
        found = [state["dspark"] for state in self.states() if "dspark" in state]
        if not found:
            raise InputError(f"{self.url} does not run the DSpark policies: start it with a --speculative-dspark flag")
        return found

    def policy(self) -> str:
        """The policy that decides now."""
        return str(self.get(POLICY_PATH)["policy"])

    def decides(self) -> tuple[str, tuple[int, ...]]:
        """The policy that decides now, and the decode step from which it does, by rank: no two switches look alike."""
        answer = self.get(POLICY_PATH)
        return str(answer["policy"]), tuple(int(rank["since_step"]) for rank in answer.get("ranks", ()))

    def switch(self, policy: str) -> None:
        """Make `policy` decide from the next step on."""
        self.post(POLICY_PATH, {"policy": policy})

    def generate(self, body: dict[str, Any]) -> dict[str, Any]:
        """One /generate call, not streamed."""
        answer = self.post("/generate", body, _GENERATE_TIMEOUT_S)
        if not isinstance(answer, dict) or "meta_info" not in answer:
            raise InputError(f"{self.url}/generate answered without meta_info, expected an SGLang server")
        return answer

    def _target(self, path: str) -> str:
        return self.url.rstrip("/") + path

    def _request(self, path: str, body: dict[str, Any] | None, timeout_s: float) -> bytes:
        target = self._target(path)
        headers = {"Content-Type": "application/json", **self.keys.headers(path)}
        data = None if body is None else json.dumps(body).encode()
        try:
            request = urllib.request.Request(target, data=data, headers=headers)
            with urllib.request.urlopen(request, timeout=timeout_s) as response:
                answer: bytes = response.read()
                return answer
        except urllib.error.HTTPError as error:
            kind = Unreachable if error.code == 503 else InputError
            raise kind(f"{target} answered {error.code}: {_sentence(error, path)}") from error
        except (OSError, http.client.HTTPException) as error:
            raise Unreachable(f"{target} cannot be used: {getattr(error, 'reason', error)}") from error
        except ValueError as error:
            raise InputError(f"{target} cannot be used: {error}") from error


def run_closed_loop(
    server: Server,
    bodies: Sequence[dict[str, Any]],
    concurrency: int,
    on_answer: Callable[[Answer], None] = lambda answer: None,
    stop: threading.Event | None = None,
) -> list[Answer]:
    """Send /generate bodies with `concurrency` in flight, in order; answers come back in the order of the bodies.

    stop: when set, nothing more is sent. The first failure ends the loop and is raised (InputError).
    """
    waiting = iter(enumerate(bodies))
    lock, answers, failures = threading.Lock(), dict[int, Answer](), list[Exception]()

    def work() -> None:
        while not failures and not (stop is not None and stop.is_set()):
            with lock:
                number, body = next(waiting, (-1, {}))
            if number < 0:
                return
            sent = time.perf_counter()
            try:
                got = server.generate(body)
            except InputError as error:
                failures.append(error)
                return
            answer = Answer(number, str(got.get("text", "")), got["meta_info"], sent, time.perf_counter())
            with lock:
                answers[number] = answer
                on_answer(answer)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(concurrency, max(len(bodies), 1)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return [answers[number] for number in sorted(answers)]


def read_prompts(path: Path, limit: int | None = None) -> list[list[str]]:
    """Turns of every line of a DeepSpec prompt file ({"turns": [...]}); InputError names file and line."""
    out: list[list[str]] = []
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"prompts {path}: {getattr(error, 'strerror', None) or error}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            turns = json.loads(line)["turns"]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f'prompts {path}, line {number}: expected {{"turns": [...]}}') from error
        if not isinstance(turns, list) or not turns or not all(isinstance(turn, str) and turn for turn in turns):
            raise InputError(f'prompts {path}, line {number}: expected {{"turns": [...]}} with texts')
        out.append(turns)
        if limit is not None and len(out) >= limit:
            break
    if not out:
        raise InputError(f"prompts {path} holds no prompt, expected one a line")
    return out


def _sentence(error: urllib.error.HTTPError, path: str) -> str:
    if error.code in (401, 403):
        return refused(path)
    if error.code == 404 and path == POLICY_PATH:
        return "this server runs without the DSpark flags: start it with --speculative-dspark-policy"
    try:
        answer = json.load(error)
        found = answer.get("error", answer)
        return str(found.get("message", found) if isinstance(found, dict) else found)
    except ValueError:
        return "this server does not know it" if error.code == 404 else str(error.reason)
