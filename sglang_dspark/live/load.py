"""Requests that keep a server decoding while its steps are measured, begun anew before they end."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np

from sglang_dspark.errors import InputError
from sglang_dspark.live.client import Server, run_closed_loop

_SETTLE_S = 0.3
_START_LIMIT_S = 300.0
_MARGIN = 2.0  # the request that accepts most may grow so much faster than the mean
_LONGEST_LOOK_S = 10.0
_SHORTEST_S = 0.05


@dataclass(frozen=True)
class Seen:
    """The server's counters of timed decode steps: their number, seconds, requests, tokens verified, executed and
    committed."""

    steps: float
    seconds: float
    requests: float
    verified: float
    executed: float
    committed: float

    @classmethod
    def now(cls, server: Server) -> Seen:
        """InputError where the server does not count them."""
        counters = server.dspark()[0]["counters"]
        names = ("timed_steps", "timed_s", "timed_requests", "timed_verified", "timed_executed", "timed_committed")
        missing = [name for name in names if name not in counters]
        if missing:
            raise InputError(f"the server's counters have no {missing[0]}: it runs another version of sglang-dspark")
        return cls(*(float(counters[name]) for name in names))

    def since(self, begin: Seen) -> Seen:
        """What came between."""
        return Seen(*(after - before for after, before in zip(astuple(self), astuple(begin), strict=True)))


class Load:
    """`batch` requests of `context` prompt tokens, each generating `answer` tokens; `with` starts and aborts them.

    At 3 ms a step a request of a thousand tokens is through in less than a second: `ready` starts all of them anew
    before a window that they would not outlast, and shortens a window that no request outlasts.
    """

    def __init__(self, server: Server, batch: int, context: int, answer: int) -> None:
        self.server, self.batch, self.context, self.answer = server, batch, context, answer
        self._rate = 0.0  # tokens a second that a request grows by
        self._run: _Run | None = None
        self._began = Seen.now(server)

    def __enter__(self) -> Load:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def ready(self, window_s: float) -> float:
        """Wait until the whole batch decodes with room left for a window; the seconds that the window may take."""
        life_s = self.answer / (_MARGIN * self._rate) if self._rate else window_s + _SETTLE_S
        seconds = min(window_s, max(life_s - _SETTLE_S, _SHORTEST_S))
        needed = _MARGIN * self._rate * (seconds + _SETTLE_S)
        if self._run is None or self._grown(Seen.now(self.server)) * _MARGIN + needed > self.answer:
            self.restart()
            return seconds
        time.sleep(_SETTLE_S)  # steps under way at a switch belong to nobody
        self._run.check()
        return seconds

    def restart(self) -> None:
        """Abort what runs, start anew, and wait until all of it decodes."""
        self._end()
        self._began = Seen.now(self.server)
        self._run = _Run(self)
        deadline, look_s = time.monotonic() + _START_LIMIT_S, min(_SETTLE_S, 0.1)
        while time.monotonic() < deadline:
            before = Seen.now(self.server)
            time.sleep(look_s)
            self._run.check()
            found = Seen.now(self.server).since(before)
            if found.steps and found.requests == self.batch * found.steps:
                self.saw(found, look_s)
                return
            if not found.steps:
                look_s = min(2 * look_s, _LONGEST_LOOK_S)
            elif self._run.is_through():  # too short to be met at once; a window tells whether they ever are
                return

    def saw(self, found: Seen, seconds: float) -> None:
        """What a stretch of time has shown of how fast requests grow."""
        if found.requests:
            per_step = found.committed / found.requests
            self._rate = per_step * found.steps / max(found.seconds, seconds, 1e-6)

    def grown(self, begin: Seen, end: Seen) -> float:
        """Tokens that a request had grown by in the middle of a window, on average."""
        return min((self._grown(begin) + self._grown(end)) / 2, float(self.answer))

    def _grown(self, now: Seen) -> float:
        return (now.committed - self._began.committed) / self.batch

    def _end(self) -> None:
        if self._run is not None:
            self._run.end()
            self._run = None


class _Run:
    """One set of requests under way."""

    def __init__(self, load: Load) -> None:
        self._server, self._batch = load.server, load.batch
        self._stop, self._tag = threading.Event(), f"profile/{secrets.token_hex(4)}"
        self._failures: list[InputError] = []
        self._answered: set[int] = set()
        self._thread = threading.Thread(target=self._send, args=(list(self._bodies(load)),), daemon=True)
        self._thread.start()

    def _bodies(self, load: Load) -> Iterator[dict[str, Any]]:
        sampling = {"max_new_tokens": load.answer, "ignore_eos": True, "temperature": 1.0}
        rng = np.random.default_rng(0)
        for number in range(load.batch * 8):
            ids = rng.integers(5, 60, size=load.context).tolist()  # ids that every vocabulary has
            yield {"input_ids": ids, "sampling_params": sampling, "rid": f"{self._tag}-{number}"}

    def _send(self, bodies: list[dict[str, Any]]) -> None:
        try:
            run_closed_loop(
                self._server, bodies, self._batch, lambda answer: self._answered.add(answer.number), self._stop
            )
        except InputError as error:
            self._failures.append(error)

    def check(self) -> None:
        """Raise what the requests ran into."""
        if self._failures:
            raise self._failures[0]

    def is_through(self) -> bool:
        """Whether some request has come to its end already."""
        return bool(self._answered)

    def end(self) -> None:
        """Abort all of them."""
        self._stop.set()
        sent = min(len(self._answered) + self._batch, 8 * self._batch)  # bodies are sent in order
        for number in sorted(set(range(sent)) - self._answered):
            self._server.post("/abort_request", {"rid": f"{self._tag}-{number}"})
        self._thread.join(timeout=60.0)
