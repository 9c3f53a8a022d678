"""One engine replica: a SimPy process with one event a step, or a run of decode steps (`stepping`).

It models SGLang's loop (design.md 5): prefill before decode; a decode step drafts, chooses verify lengths, verifies and
commits; a batch larger than the captured slots runs eager and verifies everything, whatever the policy says. The
overlap loop (managers/scheduler.py:2061) chooses a step while the one before it runs: it knows neither what that one
finishes, unless one more token is all that a request wanted (_reqs_finishing_inflight), nor who came meanwhile.
"""

from __future__ import annotations

from collections.abc import Generator
from itertools import islice
from typing import Any

import numpy as np
import simpy

from sglang_dspark.policies.arithmetic import Ints
from simulator.engine.admission import Chunk, Waiting, next_chunk
from simulator.engine.decoding import Drafted, Step
from simulator.engine.loops.layout import COMMITTED, SECONDS, TOTAL
from simulator.engine.prefix_cache import PrefixCache
from simulator.engine.recorder import DecodeView, StepView
from simulator.engine.retraction import make_room
from simulator.engine.state import Replica
from simulator.engine.stepping import Stepper


class Engine(Replica):
    """A replica at work. `submit` hands it a request; it reports first and last tokens as they come."""

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
        timeout, stepper = self.env.timeout, Stepper.of(self)
        while True:
            chunk = self.prefill_next()
            if chunk is not None:
                seconds = self.model.prefill_seconds(chunk.new_tokens, chunk.context_tokens)
                yield timeout(seconds)
                self.end_prefill(chunk, seconds)
            elif self.batch.size and stepper is not None and self.batch.size <= self.decoder.slots:
                self._prepare()
                yield self.env.at(stepper.begin())
                self._end_run(stepper)
            elif self.batch.size:
                step = self.begin_decode() if stepper is None else stepper.lend(self.begin_decode)
                yield timeout(step.seconds)
                self.end_decode(step)
            else:
                wake = self.env.event()
                self.sleep(wake)
                yield wake

    def prefill_next(self) -> Chunk | None:
        """The prefill step that goes next, or None; requests that the host knows to be finished leave first."""
        if self.memory.cache is not None:
            self.memory.cache.see(self.steps)
        if self.leaving:
            self._leave(self.leaving.take_known(self.steps))
        if self.model.settings.prefill_elsewhere_s is not None:
            self._leave(self.leaving.take_foreseen())
            self._take_over()
            return None
        chunk = self._choose()
        if chunk is None and self.leaving:
            self._leave(self.leaving.take_foreseen())
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
            slot = self.batch.add(
                head.request, head.remaining, head.generated, self.decode_steps, head.context + head.remaining
            )
            self.gaps.joined(slot, self.gaps.last_token(head.request, self.recorder.first_token_s))

    def _choose(self) -> Chunk | None:
        self._receive()
        if not self.queue:
            return None
        batch = self.batch
        if batch.size == 0:
            self._closed = False
        if batch.size and not self.queue[0].done and self._limit - batch.size < self._free_slots:
            return None  # not yet, even if one could enter: SGLang prefills several together
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
        looked_s = self.looked_s if self._overlap else self.env.now
        self.looked_s = self.env.now
        idle = not self.batch.size and not self.queue
        while self._inbox and (idle or self._inbox[0][0] < looked_s):
            self.queue.append(self._inbox.popleft()[1])

    def end_prefill(self, chunk: Chunk, seconds: float) -> None:
        self.steps += 1
        self.entering = 0
        if self.queue and self.queue[0].done:
            self._closed = False  # SGLang takes the cut request out of the prefill batch, which reopens admission
        for waiting in chunk.completed:
            self._start(waiting, self.env.now)
        self.recorder.prefill(seconds, self.tally)
        if self.recorder.on_step is not None:
            kv = self.memory.used(self.batch.size)
            self._watch("prefill", seconds, chunk.new_tokens, len(chunk.completed), kv)

    def _start(self, waiting: Waiting, now: float) -> None:
        """The last prompt chunk gives a token: the first one, or a further one of a request that had been retracted."""
        request, generated, remaining = waiting.request, waiting.generated + 1, waiting.remaining - 1
        self.recorder.prefilled(request, now, first=generated == 1, cached=waiting.cached)
        self.recorder.entered(request, now)
        if generated > 1:
            self.gaps.resumed(request, now)
        self.memory.context += 1
        if remaining:
            whole = waiting.context + waiting.remaining
            slot = self.batch.add(request, remaining, generated, self.decode_steps, whole)
            self.gaps.joined(slot, now)
            if self.memory.cache is not None:
                self.memory.cache.prefilled(request, self.steps)
            return
        self.memory.finish(request, waiting.context + 1)
        self._finish(request, now)

    def begin_decode(self) -> Step:
        """Draft, decide, verify: everything that is settled when the step starts."""
        return self.execute(self.decide())

    def decide(self) -> Drafted:
        """The first half of `begin_decode`: what this replica would verify by itself."""
        self._prepare()
        self.batch.refill()
        kv = self.memory.used(self.batch.size)
        return self.decoder.decide(self.batch, self.memory.context, len(self.queue), kv)

    def _prepare(self) -> None:
        """Memory for the next decode step."""
        make_room(self)
        self.memory.evict(self.batch.size)

    def execute(self, drafted: Drafted) -> Step:
        """The second half of `begin_decode`."""
        step = self.decoder.execute(self.batch, drafted)
        self.tally.steps_beyond_probes += step.beyond_probes
        return step

    def end_decode(self, step: Step) -> None:
        batch, recorder = self.batch, self.recorder
        size = batch.size
        alive = size - len(self.leaving)
        self.steps += 1
        self.decode_steps += 1
        remaining = batch.remaining[:size]
        committed = step.accepted + 1
        np.minimum(committed, remaining, out=committed)
        total = int(np.add.reduce(committed))
        verified = size + step.decision.total
        self.tally.decode(size, alive, verified, total, step.draft_s, step.verify_s, step.seconds)
        self.gaps.decode(self.env.now, committed, batch.index_of)
        if recorder.on_tokens is not None:
            self._show_tokens(committed)
        if recorder.on_decode is not None:
            wanted, lengths = remaining.copy(), step.decision.lengths
            recorder.on_decode(
                DecodeView(batch.request[:size].copy(), wanted, lengths, step.accepted, step.live.units, step.depth)
            )
        batch.row[:size] += committed
        remaining -= committed
        batch.wanted -= total
        self.memory.context += total
        if np.count_nonzero(remaining) != alive:
            self._end_requests(((remaining == 0) & (committed > 0)).nonzero()[0].tolist(), committed)
        if recorder.on_step is not None:
            self._watch("decode", step.seconds, verified, total, step.kv)

    def _end_run(self, stepper: Stepper) -> None:
        """`end_decode` of compiled steps."""
        batch, recorder, room, size = self.batch, self.recorder, self.room, self.batch.size
        kv = self.memory.used(size)
        verified, committed = (size + room.n[TOTAL], room.n[COMMITTED]) if recorder.on_step is not None else (0, 0)
        if recorder.on_tokens is not None:
            self._show_tokens(room.committed[:size])
        if recorder.on_decode is not None:
            depth, units = batch.blocks.depth.take(batch.row[:size]), batch.blocks.units.take(batch.row[:size], axis=0)
            request, wanted = batch.request[:size].copy(), batch.remaining[:size].copy()
            lengths, accepted = room.lengths[:size].copy(), room.accepted[:size].copy()
            recorder.on_decode(DecodeView(request, wanted, lengths, accepted, units, depth))
        for request, at_s in stepper.end():
            self._finish(request, at_s)
        if recorder.on_step is not None:
            self._watch("decode", room.f.item(SECONDS), int(verified), int(committed), kv)

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
            self.leaving.add(slot, self.steps, sure=bool(committed[index] == 1))
            self.recorder.left(request, self.decode_steps - int(batch.joined[index]))
            self._finish(request, self.env.now)

    def _finish(self, request: int, now: float) -> None:
        self.recorder.finished(request, now)
        self.on_finish(request)

    def _leave(self, slots: list[int]) -> None:
        """Finished requests leave the batch and free their memory."""
        batch = self.batch
        for slot in slots:
            index = batch.index_of.item(slot)
            self.memory.finish(batch.request.item(index), batch.whole.item(index))
            batch.remove(index)
            self._closed = False

    def _watch(self, kind: str, seconds: float, tokens: int, committed: int, kv: int) -> None:
        recorder, batch, waiting = self.recorder, self.batch, self.waiting
        assert recorder.on_step is not None
        running = batch.size - len(self.leaving)
        cached = None if self.memory.cache is None else self.memory.cache.idle
        recorder.on_step(
            StepView(
                kind, self.env.now, seconds, batch.size, running, waiting, tokens, committed, kv, self.replica, cached
            )
        )
