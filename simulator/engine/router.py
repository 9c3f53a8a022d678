"""Requests on their way in: open loop by the trace's stamps, or closed loop at a concurrency; one or more replicas."""

from __future__ import annotations

from collections.abc import Generator
from math import inf

import simpy

from simulator.engine.admission import Waiting
from simulator.engine.clock import Clock
from simulator.engine.recorder import Recorder
from simulator.engine.replica import Engine
from simulator.traces import Trace


class Router:
    """Hands every request of the trace to a replica, exactly once."""

    def __init__(
        self,
        env: Clock,
        trace: Trace,
        recorder: Recorder,
        kv_tokens: int,
        reserve: int,
        elsewhere_s: float | None = None,
    ) -> None:
        """elsewhere_s: seconds until a prefill server has given the first token; None: the replicas prefill."""
        self.env, self.trace, self.recorder = env, trace, recorder
        self._elsewhere_s = elsewhere_s
        self.engines: list[Engine] = []
        self.next_arrival_s = inf
        self.failed = 0
        self.done = env.event()
        self._next = 0
        self._turn = 0
        self.full = 0  # closed loop: requests of the first full batch
        self._least_loaded = False
        self._closed = False
        # SGLang refuses what can never fit; such a request counts as failed.
        self._too_long = (trace.input_length + trace.output_length + reserve > kv_tokens).tolist()
        cached = [0] * len(trace) if trace.cached_length is None else trace.cached_length.tolist()
        self._lengths = list(zip(trace.input_length.tolist(), trace.output_length.tolist(), cached, strict=True))

    def start(self, engines: list[Engine], router: str, concurrency: int | None, slots: int) -> None:
        """Begin sending. slots: running requests that all replicas hold together."""
        self.engines, self._least_loaded = engines, router == "least-loaded"
        self._closed = concurrency is not None
        if concurrency is None:
            self.next_arrival_s = float(self.trace.arrival_s[0])
            self.env.process(self._by_the_clock())
            return
        self.full = min(concurrency, slots, len(self.trace))
        for _ in range(concurrency):
            self._send_next()
        self._check_done()

    def on_finish(self, request: int) -> None:
        """Called for every request that ends; in closed loop the next one is sent."""
        if self._closed:
            self._send_next()
        self._check_done()

    @property
    def answers_finishes(self) -> bool:
        """See `Outside`."""
        return self._closed

    @property
    def looks_at_no_loads(self) -> bool:
        """See `Outside`: a closed loop over several replicas sends to the one what the other has finished."""
        return len(self.engines) == 1 or not (self._closed or self._least_loaded)

    def _by_the_clock(self) -> Generator[simpy.Event, None, None]:
        stamps = self.trace.arrival_s.tolist()
        for arrival_s, following_s in zip(stamps, [*stamps[1:], inf], strict=True):
            if arrival_s > self.env.now:
                yield self.env.at(arrival_s, first=True)
            self.next_arrival_s = following_s
            self._send()
            self._check_done()

    def _send_next(self) -> None:
        """Closed loop: the next request that an engine takes, if any is left."""
        while self._next < len(self.trace) and not self._send():
            pass

    def _send(self) -> bool:
        """Whether a replica took the next request; one that can never fit counts as failed."""
        request = self._next
        self._next += 1
        self.recorder.sent(request, self.env.now)
        if self._too_long[request]:
            self.failed += 1
            return False
        context, remaining, cached = self._lengths[request]
        if self._elsewhere_s is not None:
            self.env.process(self._prefilled_elsewhere(request, context, remaining))
            return True
        self._pick().submit(Waiting(request, context, 0, remaining, cached=cached))
        return True

    def _prefilled_elsewhere(self, request: int, context: int, remaining: int) -> Generator[simpy.Event, None, None]:
        """A prefill server gives the first token, and with it the KV of the prompt comes."""
        assert self._elsewhere_s is not None
        yield self.env.timeout(self._elsewhere_s)
        self.recorder.prefilled(request, self.env.now, first=True)
        if remaining == 1:
            self.recorder.entered(request, self.env.now)
            self.recorder.finished(request, self.env.now)
            self.on_finish(request)
            return
        self._pick().submit(Waiting(request, context + 1, 1, remaining - 1))

    def _pick(self) -> Engine:
        if self._least_loaded:
            return min(self.engines, key=lambda engine: engine.load)
        engine = self.engines[self._turn % len(self.engines)]
        self._turn += 1
        return engine

    def _check_done(self) -> None:
        if self.recorder.completed + self.failed == len(self.trace) and not self.done.triggered:
            self.done.succeed()
