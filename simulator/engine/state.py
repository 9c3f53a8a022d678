"""What one engine replica holds, and what it knows of those who send requests."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from math import inf
from typing import Protocol

import simpy

from simulator.engine.admission import Memory, Waiting
from simulator.engine.batch import DecodeBatch
from simulator.engine.bursts import Gaps
from simulator.engine.clock import Clock
from simulator.engine.decoding import Decoder
from simulator.engine.departures import Departures
from simulator.engine.loops.layout import cut, new_room
from simulator.engine.model import EngineModel
from simulator.engine.prefix_cache import PrefixCache
from simulator.engine.recorder import Recorder


class Outside(Protocol):
    """Those who send requests, as a replica sees them."""

    next_arrival_s: float
    """When the next request comes by the clock; infinite if none does."""

    @property
    def answers_finishes(self) -> bool:
        """Whether the end of a request makes them send another."""

    @property
    def looks_at_no_loads(self) -> bool:
        """Whether what a replica does between two arrivals is nobody's business until it is over."""


class Replica:
    """Queue, batch, memory and past of one replica; `Engine` is what it does with them."""

    def __init__(
        self,
        env: Clock,
        model: EngineModel,
        recorder: Recorder,
        on_finish: Callable[[int], None],
        replica: int = 0,
        outside: Outside | None = None,
    ) -> None:
        """outside: what it knows of those who send requests; None: nothing."""
        self.env, self.model, self.recorder, self.replica = env, model, recorder, replica
        self.on_finish = on_finish
        policy = model.policy
        self._limit, self._free_slots = model.server.max_running_requests, model.server.free_slots
        self._outside = outside
        self.arrays = new_room(self._limit, model.gamma, policy.max_lag, confidence=policy.reads_confidence)
        self.room = room = cut(*self.arrays)
        self.batch = DecodeBatch(room, model.source)
        self._overlap = model.schedule != "no-overlap"
        cache = None if model.prompts is None else PrefixCache(model.prompts, overlap=self._overlap)
        self.memory = Memory(model.kv_tokens, model.kv_reserve, cache, model.slack)
        self.queue: deque[Waiting] = deque()
        self._inbox: deque[tuple[float, Waiting]] = deque()  # (time, request): came since the host last looked
        self.looked_s = 0.0
        self.entering = 0  # requests in a prefill step under way that ends their prompt
        self.tally = recorder.tally()
        self.gaps = Gaps(self.tally.bursts, room.joined_slots, room.joined_s)
        self.decoder = Decoder(model, recorder, room)
        self._closed = False  # SGLang's batch_is_full: nobody new enters until a request leaves
        self.leaving = Departures(room.left, self._overlap)
        self.steps = self.decode_steps = 0
        self._wake: simpy.Event | None = None

    @property
    def load(self) -> int:
        """Requests that run or wait."""
        return self.batch.size - len(self.leaving) + self.entering + self.waiting

    @property
    def waiting(self) -> int:
        """Requests that wait, those that the host has not seen yet included."""
        return len(self.queue) + len(self._inbox)

    def horizon(self) -> tuple[float, bool, bool]:
        """(when somebody outside may do something, whether the host sees it only at the step after, whether nobody can
        enter until a request leaves): what compiled steps must heed."""
        outside, elsewhere = self._outside, self.model.settings.prefill_elsewhere_s is not None
        own = outside is not None and outside.looks_at_no_loads and not elsewhere
        cut_off = bool(self.queue) and self.queue[0].done > 0
        full = self._limit - self.batch.size < self._free_slots or (self._closed and self.memory.cache is None)
        blocked = own and full and not cut_off
        if self.waiting:
            return -inf, False, blocked
        if own:
            assert outside is not None
            return outside.next_arrival_s, self._overlap, blocked
        return self.env.peek(), False, False

    @property
    def answers_finishes(self) -> bool:
        """Whether the end of a request makes somebody send another."""
        return self._outside is None or self._outside.answers_finishes

    def reopen(self) -> None:
        """A request left: somebody may enter again."""
        self._closed = False
