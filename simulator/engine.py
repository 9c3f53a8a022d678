"""One engine replica: a SimPy process with one event per engine step.

It models SGLang's loop (design.md 5): prefill before decode; a decode step drafts, chooses verify lengths, verifies and
commits; requests that finished leave one step late when overlapped; a batch larger than the captured slots runs eager
and verifies everything, whatever the policy says.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

import numpy as np
import simpy

from sglang_dspark.cost import StepCost
from sglang_dspark.policies import Decision, LiveBlock, Outcome, Past, Policy, SurvivalRing
from simulator.acceptance import AcceptanceSource
from simulator.admission import Chunk, Memory, Waiting, next_chunk
from simulator.batch import DecodeBatch
from simulator.recorder import Recorder, StepView
from simulator.settings import OVERLAPPED_LAG, EngineSettings


@dataclass(frozen=True)
class EngineModel:
    """Everything that is the same for all replicas of one run.

    cost: what steps cost. belief: what the policy believes they cost. schedule: one of `SCHEDULES`.
    """

    settings: EngineSettings
    policy: Policy
    cost: StepCost
    belief: StepCost
    source: AcceptanceSource
    schedule: str

    @property
    def gamma(self) -> int:
        return self.source.gamma

    @property
    def kv_tokens(self) -> int:
        """KV capacity of a replica."""
        return self.settings.kv_tokens or int(self.cost.terms["kv_tokens"])

    @property
    def kv_reserve(self) -> int:
        """Slots held by a decoding request: two blocks, SGLang's double buffer (mem_cache/allocation_sizing.py:64)."""
        return 2 * (self.gamma + 1) if self.policy.drafts else 1


class Engine:
    """A replica. `submit` hands it a request; it reports first and last tokens as they come."""

    def __init__(
        self,
        env: simpy.Environment,
        model: EngineModel,
        recorder: Recorder,
        on_first_token: Callable[[], None],
        on_finish: Callable[[int], None],
    ) -> None:
        self.env, self.model, self.recorder = env, model, recorder
        self.on_first_token, self.on_finish = on_first_token, on_finish
        settings, policy = model.settings, model.policy
        # An overlapped batch may still hold requests that have just finished.
        capacity = settings.max_running_requests
        self.batch = DecodeBatch(capacity, model.source, confidence=policy.reads_confidence)
        self.memory = Memory(model.kv_tokens, model.kv_reserve)
        self.queue: deque[Waiting] = deque()
        self._ring = SurvivalRing(capacity, model.gamma, policy.max_lag) if policy.max_lag else None
        self._carry = policy.start(model.gamma)
        self._outcomes: deque[Outcome] = deque()
        self._overlapped = model.schedule == "overlapped"
        self._late_leave = model.schedule != "no-overlap"
        self._slots = model.cost.captured_requests or (1 << 30)
        self._leaving = 0  # finished requests that are still in the batch
        self._steps = 0
        self._wake: simpy.Event | None = None

    @property
    def load(self) -> int:
        """Requests that run or wait."""
        return self.batch.size + len(self.queue)

    def submit(self, waiting: Waiting) -> None:
        """Queue a request and wake an idle engine."""
        self.queue.append(waiting)
        if self._wake is not None:
            self._wake.succeed()
            self._wake = None

    def run(self) -> Generator[simpy.Event, Any, None]:
        """The engine loop."""
        while True:
            chunk = self._next_prefill()
            if chunk is not None:
                yield from self._prefill(chunk)
            elif self.batch.size:
                yield from self._decode()
            else:
                self._wake = self.env.event()
                yield self._wake

    def _next_prefill(self) -> Chunk | None:
        if not self.queue:
            return None
        settings = self.model.settings
        self._let_go()
        return next_chunk(
            self.queue, self.batch, self.memory,
            settings.chunked_prefill_size, settings.max_prefill_tokens, settings.max_running_requests,
        )  # fmt: skip

    def _prefill(self, chunk: Chunk) -> Generator[simpy.Event, Any, None]:
        self._steps += 1
        model = self.model
        seconds = model.cost.prefill_s(chunk.new_tokens, chunk.held_tokens)
        seconds = self._step_seconds(0.0, seconds, live=False)
        yield self.env.timeout(seconds)
        now = self.env.now
        self._let_go()  # the host has seen the step before by now
        for waiting in chunk.completed:
            self._start(waiting, now)
        self.recorder.prefill(now, seconds, chunk.new_tokens)
        self._watch("prefill", seconds, chunk.new_tokens)

    def _start(self, waiting: Waiting, now: float) -> None:
        """The last prompt chunk gives the first token (unless the request had been retracted)."""
        generated, remaining = waiting.generated, waiting.remaining
        if generated == 0:
            generated, remaining = 1, remaining - 1
            self.recorder.first_token(waiting.request, now)
            self.on_first_token()
        else:
            self.recorder.resumed(now)
        if remaining == 0:
            self.memory.context -= waiting.context
            self._finish(waiting.request, now)
            return
        self.memory.context += 1 if waiting.generated == 0 else 0
        context = waiting.context + (1 if waiting.generated == 0 else 0)
        self.batch.add(waiting.request, remaining, context, generated, self.recorder.decode_steps)

    def _decode(self) -> Generator[simpy.Event, Any, None]:
        self._let_go()
        self._make_room()
        batch = self.batch
        if batch.size == 0:
            return
        self._steps += 1
        batch.refill()
        size, model = batch.size, self.model
        prices = model.cost.prices(size, model.gamma, self.memory.context)
        rows = batch.row[:size]
        depth = batch.blocks.depth[rows]
        if size > self._slots:
            decision = self._verify_all(size)
            draft = prices.draft_s
            verify = float(model.cost.verify_s(size, size + decision.total, self.memory.context, eager=True))
        else:
            decision = self._decide(size, rows, depth)
            draft = prices.draft_s
            verify = float(prices.seconds[decision.total]) - draft
        draft = draft if model.policy.drafts else 0.0
        seconds = self._step_seconds(draft, verify, live=model.policy.live)
        yield self.env.timeout(seconds)
        self._commit(decision, depth, draft, verify, seconds)

    def _decide(self, size: int, rows: np.ndarray, depth: np.ndarray) -> Decision:
        model, batch = self.model, self.batch
        policy, blocks = model.policy, batch.blocks
        units = blocks.units[rows]
        live = LiveBlock(units, None if blocks.confidence is None else blocks.confidence[rows], depth)
        ring = self._ring
        lagged = None
        if ring is not None:
            slots, generation = batch.slot[:size], batch.generation[:size]

            def lagged(lag: int) -> Any:
                return ring.look(slots, generation, lag)

        prices = model.belief.prices(size, model.gamma, self.memory.context)
        decision = policy.decide(Past(size, model.gamma, prices, lagged, self._carry, len(self.queue)), live)
        if ring is not None:
            ring.publish(slots, generation, units)
        if policy.learns:
            self._learn(Outcome(units, decision.lengths, np.minimum(decision.lengths, depth)))
        return decision

    def _learn(self, outcome: Outcome) -> None:
        """Outcomes reach the host with the lag of the schedule."""
        self._outcomes.append(outcome)
        if len(self._outcomes) >= (OVERLAPPED_LAG if self._overlapped else 1):
            self._carry = self.model.policy.learn(self._carry, self._outcomes.popleft())

    def _verify_all(self, size: int) -> Decision:
        gamma = self.model.gamma if self.model.policy.drafts else 0
        return Decision(np.full(size, gamma, dtype=np.int64), size * gamma)

    def _step_seconds(self, draft: float, verify: float, *, live: bool) -> float:
        """Overlapped: the host works while the GPU does. Synchronous: the verify launch waits for the survivals."""
        terms = self.model.cost.terms
        host, copy = terms["host_s"], terms["copy_s"] if live else 0.0
        if self.model.schedule == "overlapped":
            return max(draft + verify, host)
        if self.model.schedule == "synchronous":
            return draft + terms["copy_s"] + max(verify, host)
        return draft + copy + verify + host

    def _commit(self, decision: Decision, depth: np.ndarray, draft: float, verify: float, seconds: float) -> None:
        batch, now = self.batch, self.env.now
        size = batch.size
        remaining = batch.remaining[:size]
        committed = np.minimum(decision.lengths, depth)
        committed += 1
        np.minimum(committed, remaining, out=committed)
        total = int(committed.sum())
        self.recorder.decode(now, size - self._leaving, size + decision.total, total, draft, verify, seconds)
        batch.row[:size] += committed
        batch.context[:size] += committed
        remaining -= committed
        self.memory.context += total
        self.memory.decode_step()
        if remaining.min() == 0:
            done = np.flatnonzero((remaining == 0) & (committed > 0))
            batch.left[done] = self._steps
            self._leaving += done.size
            for index in done.tolist():
                self.recorder.left(int(batch.request[index]), int(batch.joined[index]))
                self._finish(int(batch.request[index]), now)
        self._watch("decode", seconds, size + decision.total)

    def _finish(self, request: int, now: float) -> None:
        self.recorder.finished(request, now)
        self.on_finish(request)

    def _let_go(self) -> None:
        """Finished requests leave the batch and free their memory, one step late when the host runs a step behind."""
        if not self._leaving:
            return
        batch, known = self.batch, self._steps - self._late_leave
        gone = (batch.remaining[: batch.size] == 0) & (batch.left[: batch.size] <= known)
        for index in np.flatnonzero(gone)[::-1].tolist():
            self.memory.context -= int(batch.context[index])
            batch.remove(index)
            self._leaving -= 1

    def _make_room(self) -> None:
        """Retract until the next decode step fits, fewest generated tokens first; one request always stays."""
        batch, memory = self.batch, self.memory
        while memory.used(batch.size) > memory.capacity:
            if batch.size <= 1:
                self._drop_chunk()
                return
            generated = self.recorder.output_length[batch.request[: batch.size]] - batch.remaining[: batch.size]
            prompt = batch.context[: batch.size] - generated
            index = int(np.lexsort((-prompt, generated))[0])
            request, context, done = int(batch.request[index]), int(batch.context[index]), int(generated[index])
            remaining = int(batch.remaining[index])
            memory.context -= context
            if remaining:
                self.recorder.left(request, int(batch.joined[index]))
                self.recorder.retracted(request)
                self.queue.append(Waiting(request, context, done, remaining))
            else:
                self._leaving -= 1
            batch.remove(index)
            memory.retracted(
                batch, int(generated.sum()) - done, int((generated + batch.remaining[: len(generated)]).sum())
            )

    def _drop_chunk(self) -> None:
        """A prompt in progress gives its memory back to the last running request and starts over."""
        head = self.queue[0]
        self.memory.context -= head.done
        head.done = 0

    def _watch(self, kind: str, seconds: float, tokens: int) -> None:
        if self.recorder.on_step is not None:
            batch = self.batch
            running = int((batch.remaining[: batch.size] > 0).sum())
            kv = self.memory.used(batch.size)
            self.recorder.on_step(
                StepView(kind, self.env.now, seconds, batch.size, running, len(self.queue), tokens, kv)
            )
