"""Prefill and KV memory: which waiting requests enter, how much of their prompt a chunk takes, who is retracted.

SGLang 0.5.23: prefill goes before decode; a chunk is a step of its own; requests enter in order while slots, the chunk
and an estimate of the running requests' future tokens allow; when the next decode step does not fit, the request with
the fewest generated tokens is retracted and later prefills prompt and output again.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np

from simulator.engine.batch import DecodeBatch, Ints
from simulator.engine.prefix_cache import PrefixCache

# managers/scheduler_components/new_token_ratio_tracker.py and environ.py:646-649
_RATIO_START, RATIO_LEAST, _RATIO_STEPS, _RETRACT_STEPS = 0.7, 0.7 * 0.14, 600, 20
RATIO_STEP = (_RATIO_START - RATIO_LEAST) / _RATIO_STEPS
_LONGEST_ESTIMATE = 4096  # SGLANG_CLIP_MAX_NEW_TOKENS_ESTIMATION


@dataclass(slots=True)
class Waiting:
    """A request that waits. context: tokens of its prompt (output too if it was retracted); done: already prefilled.

    cached: of the prompt, found in the prefix cache when its prefill begins.
    """

    request: int
    context: int
    generated: int
    remaining: int
    done: int = 0
    cached: int = 0


@dataclass(slots=True)
class Chunk:
    """One prefill step.

    new_tokens: prompt tokens; pairs: (new token, token before it) pairs that attention reads. completed: requests whose
    prompt ends here. blocked: the next request found no memory.
    """

    new_tokens: int = 0
    pairs: float = 0.0
    completed: list[Waiting] = field(default_factory=list)
    blocked: bool = False

    @property
    def context_tokens(self) -> float:
        """What one prompt of `new_tokens` would have to hold already to read as many pairs."""
        return self.pairs / self.new_tokens - self.new_tokens / 2

    def take(self, waiting: Waiting, tokens: int) -> None:
        """Prefill the next `tokens` of a prompt."""
        self.new_tokens += tokens
        self.pairs += tokens * (waiting.done + tokens / 2)
        waiting.done += tokens


RESERVED_DECODE_TOKENS = 512
"""What a decode server keeps free for each request when it lets one in (SGLang's --num-reserved-decode-tokens)."""


class Memory:
    """KV tokens of one replica and SGLang's guess of how much running requests will still need."""

    def __init__(
        self, capacity: int, reserve: int, cache: PrefixCache | None = None, slack: Ints | None = None
    ) -> None:
        """reserve: slots that every decoding request holds beyond its context, whatever is verified.

        slack: [N] tokens that a request may ask for beyond those that it will get: what SGLang knows is the client's
        limit. None: clients ask for what they get and ignore the end of a sequence, so that SGLang expects all of it.
        """
        self.capacity = capacity
        self.reserve = reserve
        self.cache = cache
        self.slack = slack
        self.context = 0  # tokens of running requests and of a prompt in progress, those that they share for each
        self.ratio = _RATIO_START

    def used(self, running: int) -> int:
        """Tokens that `running` decoding requests need, reservations included, shared ones once."""
        used = self.context + running * self.reserve
        return used if self.cache is None else used - self.cache.shared

    def admit(self, waiting: Waiting) -> None:
        """Count what is cached of a prompt as its own, be it to see whether the rest fits."""
        if self.cache is not None:
            waiting.cached = self.cache.admit(waiting.request, waiting.context)
        waiting.done = waiting.cached
        self.context += waiting.done

    def turn_away(self, waiting: Waiting) -> None:
        """Take back `admit`."""
        self.drop(waiting.request, waiting.done)
        waiting.done = 0

    def finish(self, request: int, context: int) -> None:
        """A request ends, which had `context` tokens; a prefix cache keeps them as long as there is room."""
        self.context -= context
        if self.cache is not None:
            self.cache.finish(request, context)

    def drop(self, request: int, context: int) -> None:
        """A request leaves unfinished."""
        self.context -= context
        if self.cache is not None:
            self.cache.drop(request)

    def evict(self, running: int) -> None:
        """Evict what does not fit beside `running` decoding requests."""
        if self.cache is not None:
            self.cache.evict_to(self.capacity - self.used(running))

    def may_ask(self, batch: DecodeBatch) -> Ints:
        """[R] tokens that the running requests may still ask for."""
        remaining = batch.remaining[: batch.size]
        return remaining if self.slack is None else remaining + self.slack[batch.request[: batch.size]]

    def promise(self, waiting: Waiting) -> int:
        """Tokens that are set aside for what a request will generate."""
        slack = 0 if self.slack is None else int(self.slack[waiting.request])
        return min(waiting.remaining + slack, _LONGEST_ESTIMATE) + self.reserve

    def fits(self, batch: DecodeBatch, waiting: Waiting, promised: int = 0) -> bool:
        """Whether a request may enter now; `promised` tokens went to others of the same chunk."""
        wanted = waiting.context - waiting.done + self.promise(waiting)
        free = self.capacity - self.used(batch.size) - promised - wanted
        if free >= batch.size * _LONGEST_ESTIMATE:
            return True  # whatever is expected
        if self.slack is None and batch.wanted <= free:
            return True  # all that is
        ratio = 1.0 if self.slack is None else self.ratio  # managers/schedule_policy.py:785
        return bool(np.minimum(self.may_ask(batch), _LONGEST_ESTIMATE).sum() * ratio <= free)

    def fits_decode_server(self, running: int, waiting: Waiting) -> bool:
        """Whether a decode server takes a request over: every running one and this one keep room to decode on.

        SGLang 0.5.23, disaggregation/decode.py:509, 2058; with nobody running whatever fits is taken.
        """
        reserved = RESERVED_DECODE_TOKENS * (running + 1) if running else self.reserve
        return self.used(running) + waiting.context + reserved <= self.capacity

    def idle(self) -> None:
        """Nothing runs and nothing waits."""
        self.ratio = _RATIO_START

    def decode_step(self) -> None:
        """A decode step begins without retraction."""
        self.ratio = max(self.ratio - RATIO_STEP, RATIO_LEAST)

    def retracted(self, running: int, generated: int, wanted: int) -> None:
        """After a retraction: expect more of the requests that still run (which may ask for `wanted` in all)."""
        self.ratio = min(1.0, (generated + _RETRACT_STEPS * running) / (wanted + 1))


def next_chunk(
    queue: deque[Waiting], batch: DecodeBatch, memory: Memory, size: int, slots: int, *, closed: bool
) -> Chunk:
    """The next prefill step; it has no tokens when nothing can enter.

    size: most tokens of a step; slots: largest number of running requests; closed: nobody new may enter, only a prompt
    in progress goes on. Requests that are completed are taken off the queue; one that is cut stays at its head.
    """
    chunk, promised = Chunk(), 0
    while queue and chunk.new_tokens < size and batch.size + len(chunk.completed) < slots:
        head = queue[0]
        if not head.done:
            if closed:
                break
            memory.admit(head)
            if not memory.fits(batch, head, promised):
                memory.turn_away(head)
                chunk.blocked = True
                break
        taken = min(size - chunk.new_tokens, head.context - head.done)
        chunk.take(head, taken)
        memory.context += taken
        if head.done < head.context:
            break
        chunk.completed.append(queue.popleft())
        promised += memory.promise(head)
    return chunk
