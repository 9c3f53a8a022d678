"""Prefill and KV memory: which waiting requests enter, how much of their prompt a chunk takes, who is retracted.

SGLang 0.5.23: prefill goes before decode; a chunk is a step of its own; requests enter in order while slots, the chunk
and an estimate of the running requests' future tokens allow; when the next decode step does not fit, the request with
the fewest generated tokens is retracted and later prefills prompt and output again.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np

from simulator.batch import DecodeBatch

# managers/scheduler_components/new_token_ratio_tracker.py and environ.py:646-649
_RATIO_START, _RATIO_LEAST, _RATIO_STEPS, _RETRACT_STEPS = 0.7, 0.7 * 0.14, 600, 20
_LONGEST_ESTIMATE = 4096  # SGLANG_CLIP_MAX_NEW_TOKENS_ESTIMATION


@dataclass(slots=True)
class Waiting:
    """A request that waits. context: tokens to prefill (output too if it was retracted); done: already prefilled."""

    request: int
    context: int
    generated: int
    remaining: int
    done: int = 0


@dataclass(slots=True)
class Chunk:
    """One prefill step: new tokens, tokens that its requests already hold, and the requests that it completes."""

    new_tokens: int
    held_tokens: int
    completed: list[Waiting] = field(default_factory=list)


class Memory:
    """KV tokens of one replica and SGLang's guess of how much running requests will still need."""

    def __init__(self, capacity: int, reserve: int) -> None:
        """reserve: slots that every decoding request holds beyond its context, whatever is verified."""
        self.capacity = capacity
        self.reserve = reserve
        self.context = 0  # tokens of running requests and of a prompt in progress
        self._ratio = _RATIO_START

    def used(self, running: int) -> int:
        """Tokens in use with `running` decoding requests, reservations included."""
        return self.context + running * self.reserve

    def fits(self, batch: DecodeBatch, waiting: Waiting, promised: int = 0) -> bool:
        """Whether a request may enter now; `promised` tokens went to others of the same chunk."""
        expected = np.minimum(batch.remaining[: batch.size], _LONGEST_ESTIMATE).sum() * self._ratio
        wanted = waiting.context - waiting.done + min(waiting.remaining, _LONGEST_ESTIMATE) + self.reserve
        return self.used(batch.size) + expected + promised + wanted <= self.capacity

    def decode_step(self) -> None:
        """A decode step went by without retraction."""
        self._ratio = max(self._ratio - (_RATIO_START - _RATIO_LEAST) / _RATIO_STEPS, _RATIO_LEAST)

    def retracted(self, batch: DecodeBatch, generated: int, total: int) -> None:
        """After a retraction: expect more of the requests that still run."""
        self._ratio = min(1.0, (generated + _RETRACT_STEPS * batch.size) / (total + 1))


def next_chunk(
    queue: deque[Waiting], batch: DecodeBatch, memory: Memory, size: int, most: int, slots: int
) -> Chunk | None:
    """The next prefill step, or None when nothing can enter.

    size: tokens of a chunk; most: prompt tokens of a step; slots: largest number of running requests. Requests that are
    completed are taken off the queue; one that is cut stays at its head.
    """
    if not queue or (batch.size >= slots and not queue[0].done):
        return None
    chunk, budget, promised = Chunk(0, 0), min(size, most), 0
    while queue and budget > 0 and batch.size + len(chunk.completed) < slots:
        head = queue[0]
        if not head.done and not memory.fits(batch, head, promised):
            break
        taken = min(budget, head.context - head.done)
        chunk.new_tokens += taken
        chunk.held_tokens += head.done
        head.done += taken
        budget -= taken
        memory.context += taken
        if head.done < head.context:
            break
        chunk.completed.append(queue.popleft())
        promised += min(head.remaining, _LONGEST_ESTIMATE) + memory.reserve
    return chunk if chunk.new_tokens else None
