"""One engine replica: a SimPy process with one event per engine step.

It models SGLang's loop (design.md 5): prefill before decode; a decode step drafts, chooses verify lengths, verifies and
commits; a batch larger than the captured slots runs eager and verifies everything, whatever the policy says. The
overlap loop (managers/scheduler.py:2061) chooses a step while the one before it runs: it knows neither what that one
finishes, unless one more token is all that a request wanted (_reqs_finishing_inflight), nor who came meanwhile.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import simpy

from sglang_dspark.policies import Decision, LiveBlock, Outcome, Past, SurvivalRing
from sglang_dspark.policies.arithmetic import Ints
from simulator.blocks.online import OnlineEstimate
from simulator.engine.admission import Chunk, Memory, Waiting, next_chunk
from simulator.engine.batch import DecodeBatch
from simulator.engine.bursts import Gaps
from simulator.engine.departures import Departures
from simulator.engine.model import EngineModel
from simulator.engine.prefix_cache import PrefixCache
from simulator.engine.recorder import Recorder, StepView
from simulator.engine.settings import OVERLAPPED_LAG


@dataclass(slots=True)
class Step:
    """A decode step under way. kv: tokens of memory held during it; accepted: [R] draft tokens that survive."""

    decision: Decision
    accepted: Ints
    draft_s: float
    verify_s: float
    seconds: float
    kv: int


class Engine:
    """A replica. `submit` hands it a request; it reports first and last tokens as they come."""

    def __init__(
        self,
        env: simpy.Environment,
        model: EngineModel,
        recorder: Recorder,
        on_finish: Callable[[int], None],
        replica: int = 0,
    ) -> None:
        self.env, self.model, self.recorder, self.replica = env, model, recorder, replica
        self.on_finish = on_finish
        policy = model.policy
        self._limit = model.server.max_running_requests
        capacity = self._limit
        self.batch = DecodeBatch(capacity, model.source, confidence=policy.reads_confidence)
        self._overlap = model.schedule != "no-overlap"
        cache = None if model.prompts is None else PrefixCache(model.prompts, overlap=self._overlap)
        self.memory = Memory(model.kv_tokens, model.kv_reserve, cache, model.slack)
        self.queue: deque[Waiting] = deque()
        self._inbox: deque[tuple[float, Waiting]] = deque()  # (time, request): came since the host last looked
        self._looked_s = 0.0
        self.entering = 0  # requests in a prefill step under way that ends their prompt
        self._gaps = Gaps(recorder.bursts)
        self._ring = SurvivalRing(capacity, model.gamma, policy.max_lag) if policy.max_lag else None
        self._carry = policy.start(model.gamma)
        self._online = OnlineEstimate(model.gamma) if model.online else None
        self._outcomes: deque[Outcome] = deque()
        self._outcome_lag = OVERLAPPED_LAG if model.schedule == "overlapped" else 1
        self._slots = model.cost.captured_requests or (1 << 30)
        self._closed = False  # SGLang's batch_is_full: nobody new enters until a request leaves
        self._leaving = Departures(self._overlap)
        self._steps = self._decode_steps = 0
        self._wake: simpy.Event | None = None

    @property
    def load(self) -> int:
        """Requests that run or wait."""
        return self.batch.size - len(self._leaving) + self.entering + self.waiting

    @property
    def waiting(self) -> int:
        """Requests that wait, those that the host has not seen yet included."""
        return len(self.queue) + len(self._inbox)

    def submit(self, waiting: Waiting) -> None:
        """Hand over a request and wake an idle engine."""
        self._inbox.append((self.env.now, waiting))
        if self._wake is not None:
            if not self._wake.triggered:
                self._wake.succeed()
            self._wake = None

    def sleep(self, wake: simpy.Event) -> None:
        """Nothing to do until a request comes, which then triggers `wake` (ranks of one group share it)."""
        self.memory.idle()
        self._wake = wake

    def run(self) -> Generator[simpy.Event, Any, None]:
        """The engine loop."""
        timeout = self.env.timeout
        while True:
            chunk = self.prefill_next()
            if chunk is not None:
                seconds = self.model.prefill_seconds(chunk.new_tokens, chunk.context_tokens)
                yield timeout(seconds)
                self.end_prefill(chunk, seconds)
            elif self.batch.size:
                step = self.begin_decode()
                yield timeout(step.seconds)
                self.end_decode(step)
            else:
                wake = self.env.event()
                self.sleep(wake)
                yield wake

    def prefill_next(self) -> Chunk | None:
        """The prefill step that goes next, or None; requests that the host knows to be finished leave first."""
        if self.memory.cache is not None:
            self.memory.cache.see(self._steps)
        if self._leaving:
            self._leave(self._leaving.take_known(self._steps))
        if self.model.settings.prefill_elsewhere_s is not None:
            self._leave(self._leaving.take_foreseen())
            self._take_over()
            return None
        chunk = self._choose()
        if chunk is None and self._leaving:
            self._leave(self._leaving.take_foreseen())
            if not self.batch.size:
                return self._choose()  # nothing to decode either: the host looks again
        return chunk

    def _take_over(self) -> None:
        """A decode server: requests whose KV has come join the batch, no step of their own; retracted ones first."""
        self._receive()
        while self.queue and self.batch.size < self._limit:
            head = self.queue[0]
            if not self.memory.fits_decode_server(self.batch.size, head):
                return
            self.queue.popleft()
            self.recorder.entered(head.request, self.env.now)
            self.memory.context += head.context
            slot = self.batch.add(head.request, head.remaining, head.generated, self._decode_steps)
            self._gaps.joined(slot, self._gaps.last_token(head.request, self.recorder.first_token_s))

    def _choose(self) -> Chunk | None:
        self._receive()
        if not self.queue:
            return None
        batch = self.batch
        if batch.size == 0:
            self._closed = False
        if self.memory.cache is not None:
            self._begin_pass(self.memory.cache)
        size = min(self.model.server.chunked_prefill_size, self.model.settings.max_prefill_tokens)
        chunk = next_chunk(self.queue, batch, self.memory, size, self._limit, closed=self._closed)
        self.memory.evict(batch.size)
        self._closed = self._closed or chunk.blocked
        self.entering = len(chunk.completed)
        return chunk if chunk.new_tokens else None

    def _begin_pass(self, cache: PrefixCache) -> None:
        """What the cache learns when a prefill is about to be chosen: a cut prompt, and who waits."""
        head, cut = self.queue[0], int(self.queue[0].done > 0)
        if cut:
            cache.cut(head.request, head.done)
        if cut or not self._closed and self.batch.size < self._limit:
            cache.refresh(waiting.request for waiting in islice(self.queue, cut, None))

    def _receive(self) -> None:
        """Queue the requests that had come when the host chose this step; an idle host waits for them and looks again.

        A client that answers a finished request with the next one needs a moment: it is never seen at that instant.
        """
        looked_s = self._looked_s if self._overlap else self.env.now
        self._looked_s = self.env.now
        idle = not self.batch.size and not self.queue
        while self._inbox and (idle or self._inbox[0][0] < looked_s):
            self.queue.append(self._inbox.popleft()[1])

    def end_prefill(self, chunk: Chunk, seconds: float) -> None:
        self._steps += 1
        self.entering = 0
        if self.queue and self.queue[0].done:
            self._closed = False  # SGLang takes the cut request out of the prefill batch, which reopens admission
        for waiting in chunk.completed:
            self._start(waiting, self.env.now)
        self.recorder.prefill(seconds)
        if self.recorder.on_step is not None:
            kv = self.memory.used(self.batch.size)
            self._watch("prefill", seconds, chunk.new_tokens, len(chunk.completed), kv)

    def _start(self, waiting: Waiting, now: float) -> None:
        """The last prompt chunk gives a token: the first one, or a further one of a request that had been retracted."""
        request, generated, remaining = waiting.request, waiting.generated + 1, waiting.remaining - 1
        self.recorder.prefilled(request, now, first=generated == 1, cached=waiting.cached)
        self.recorder.entered(request, now)
        if generated > 1:
            self._gaps.resumed(request, now)
        self.memory.context += 1
        if remaining:
            slot = self.batch.add(request, remaining, generated, self._decode_steps)
            self._gaps.joined(slot, now)
            if self.memory.cache is not None:
                self.memory.cache.prefilled(request, self._steps)
            return
        self.memory.finish(request, waiting.context + 1)
        self._finish(request, now)

    def begin_decode(self) -> Step:
        """Draft, decide, verify: everything that is settled when the step starts."""
        self._make_room()
        self.memory.evict(self.batch.size)
        self.batch.refill()
        batch, model, memory = self.batch, self.model, self.memory
        size, context = batch.size, memory.context
        rows = batch.row[:size]
        blocks = batch.blocks
        confidence = None if blocks.confidence is None else blocks.confidence.take(rows, axis=0)
        depth = blocks.depth.take(rows)
        live = LiveBlock(blocks.units.take(rows, axis=0), confidence, depth)
        if self._online is not None:
            live = self._online.report(live)
        eager = size > self._slots
        decision = self._decide(live, eager)
        self.recorder.steps_beyond_probes += model.cost.beyond_probes(size, size + decision.total)
        draft, verify = model.cost.decode_s(size, model.gamma, decision.total, context)
        if eager:
            verify = float(model.cost.verify_s(size, size + decision.total, context, eager=True))
        if model.cost.terms["width_context_s"]:
            verify += model.width_context_s(decision.lengths, self._contexts())
        if not model.policy.drafts:
            draft = 0.0
        accepted = np.minimum(decision.lengths, depth)
        if self._online is not None:
            self._online.learn(decision.lengths, accepted)
        if model.policy.learns:
            self._learn(Outcome(live.units, decision.lengths, accepted))
        seconds = model.decode_seconds(draft, verify, live=model.policy.live and not eager)
        return Step(decision, accepted, draft, verify, seconds, memory.used(size))

    def _contexts(self) -> Ints:
        """[R] tokens that each running request holds."""
        batch, recorder = self.batch, self.recorder
        requests = batch.request[: batch.size]
        total = recorder.input_length[requests] + recorder.output_length[requests]
        return np.asarray(total - batch.remaining[: batch.size])

    def _decide(self, live: LiveBlock, eager: bool) -> Decision:
        """The policy's decision; eager batches verify everything. Both publish this step's survivals."""
        model, batch, ring, size = self.model, self.batch, self._ring, self.batch.size
        slots, generation = batch.slot[:size], batch.generation[:size]
        if eager:
            gamma = model.gamma if model.policy.drafts else 0
            decision = Decision(np.full(size, gamma, dtype=np.int64), size * gamma)
        else:
            prices = model.belief.prices(size, model.gamma, self.memory.context)
            lagged = None if ring is None else partial(ring.look, slots, generation)
            past = Past(size, model.gamma, prices, lagged, self._carry, len(self.queue))
            decision = model.policy.decide(past, live)
        if ring is not None:
            ring.publish(slots, generation, live.units)
        return decision

    def _learn(self, outcome: Outcome) -> None:
        """Outcomes reach the host with the lag of the schedule."""
        self._outcomes.append(outcome)
        if len(self._outcomes) >= self._outcome_lag:
            self._carry = self.model.policy.learn(self._carry, self._outcomes.popleft())

    def end_decode(self, step: Step) -> None:
        batch, recorder = self.batch, self.recorder
        size = batch.size
        alive = size - len(self._leaving)
        self._steps += 1
        self._decode_steps += 1
        remaining = batch.remaining[:size]
        committed = step.accepted + 1
        np.minimum(committed, remaining, out=committed)
        total = int(np.add.reduce(committed))
        verified = size + step.decision.total
        recorder.decode(size, alive, verified, total, step.draft_s, step.verify_s, step.seconds)
        self._gaps.decode(self.env.now, committed, batch.index_of)
        if recorder.on_tokens is not None:
            self._show_tokens(committed)
        batch.row[:size] += committed
        remaining -= committed
        self.memory.context += total
        if np.count_nonzero(remaining) != alive:
            self._end_requests(((remaining == 0) & (committed > 0)).nonzero()[0].tolist(), committed)
        if recorder.on_step is not None:
            self._watch("decode", step.seconds, verified, total, step.kv)

    def _show_tokens(self, committed: Ints) -> None:
        """Every request's chunk of this decode step."""
        assert self.recorder.on_tokens is not None
        for request, tokens in zip(self.batch.request.tolist(), committed.tolist(), strict=False):
            if tokens:
                self.recorder.on_tokens(request, self.env.now, tokens)

    def _end_requests(self, rows: list[int], committed: Ints) -> None:
        """Who wanted one token was sure to end: the host knew it when it chose the next step."""
        batch = self.batch
        for index in rows:
            request, slot = int(batch.request[index]), int(batch.slot[index])
            self._leaving.add(slot, self._steps, sure=bool(committed[index] == 1))
            self.recorder.left(request, self._decode_steps - int(batch.joined[index]))
            self._finish(request, self.env.now)

    def _finish(self, request: int, now: float) -> None:
        self.recorder.finished(request, now)
        self.on_finish(request)

    def _leave(self, slots: list[int]) -> None:
        """Finished requests leave the batch and free their memory."""
        batch, recorder = self.batch, self.recorder
        for slot in slots:
            index = batch.index_of[slot]
            request = int(batch.request[index])
            self.memory.finish(request, int(recorder.input_length[request] + recorder.output_length[request]))
            batch.remove(index)
            self._closed = False

    def _make_room(self) -> None:
        """Retract until the next decode step fits; the last request always fits, or the router had refused it."""
        batch, memory = self.batch, self.memory
        if memory.used(batch.size) <= memory.capacity:
            memory.decode_step()
            return
        while memory.used(batch.size) > memory.capacity and batch.size > 1:
            self._retract()
        wanted = self.recorder.output_length[batch.request[: batch.size]]
        generated = int((wanted - batch.remaining[: batch.size]).sum())
        memory.retracted(batch.size, generated, generated + int(memory.may_ask(batch).sum()))
        self._closed = False

    def _retract(self) -> None:
        """The request with the fewest generated tokens, of those the longest prompt, waits again with all it has."""
        batch, recorder = self.batch, self.recorder
        requests, remaining = batch.request[: batch.size], batch.remaining[: batch.size]
        generated = recorder.output_length[requests] - remaining
        prompt = recorder.input_length[requests]
        index = int(np.lexsort((-prompt, generated))[0])
        request, context, left = int(requests[index]), int(prompt[index] + generated[index]), int(remaining[index])
        self.memory.drop(request, context)
        if left:
            recorder.left(request, self._decode_steps - int(batch.joined[index]))
            recorder.retracted(request)
            self._gaps.retracted(request, int(batch.slot[index]))
            waiting = Waiting(request, context, int(generated[index]), left)
            if self.model.settings.prefill_elsewhere_s is None:
                self.queue.append(waiting)
            else:
                self.queue.appendleft(waiting)  # its KV waits on the host, and nobody new enters before it
        else:
            self._leaving.forget(int(batch.slot[index]))
        batch.remove(index)

    def _watch(self, kind: str, seconds: float, tokens: int, committed: int, kv: int) -> None:
        recorder, batch, waiting = self.recorder, self.batch, self.waiting
        assert recorder.on_step is not None
        running = batch.size - len(self._leaving)
        cached = None if self.memory.cache is None else self.memory.cache.idle
        recorder.on_step(
            StepView(
                kind, self.env.now, seconds, batch.size, running, waiting, tokens, committed, kv, self.replica, cached
            )
        )
