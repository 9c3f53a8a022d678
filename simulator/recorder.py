"""What a run leaves behind: per-request times, and sums over engine steps."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class StepView:
    """One engine step as it ended. tokens: verified (decode) or prompt (prefill) tokens; kv: tokens in use."""

    kind: str
    end_s: float
    seconds: float
    batch: int
    running: int
    waiting: int
    tokens: int
    kv: int


class Recorder:
    """Collects one run. Per-request arrays are [N] in trace order, seconds; NaN until it happened."""

    def __init__(self, output_length: NDArray[np.int64], on_step: Callable[[StepView], None] | None = None) -> None:
        count = len(output_length)
        self.output_length = output_length
        self.on_step = on_step
        self.sent_s, self.first_token_s, self.finish_s = np.full((3, count), np.nan)
        self.verify_steps = np.zeros(count, dtype=np.int64)
        self.retractions = np.zeros(count, dtype=np.int64)
        self.completed = self.started = 0
        self.decode_steps = 0
        self.prefill_steps = 0
        self.draft_s = self.verify_s = self.decode_s = self.prefill_s = 0.0
        self.verified_tokens = self.committed_tokens = self.request_steps = 0
        self.burst_s, self.burst_count = array("d"), array("l")
        self._previous_s = 0.0
        self._joined_s: list[float] = []

    @property
    def output_tokens(self) -> int:
        """Tokens delivered so far, first tokens included."""
        return self.committed_tokens + self.started

    def sent(self, request: int, now: float) -> None:
        """A request reached the router."""
        self.sent_s[request] = now

    def first_token(self, request: int, now: float) -> None:
        """Its prefill ended."""
        self.first_token_s[request] = now
        self.started += 1
        self._joined_s.append(now)

    def resumed(self, now: float) -> None:
        """A retracted request decodes again."""
        self._joined_s.append(now)

    def left(self, request: int, joined: int) -> None:
        """It left the decode batch that it joined after `joined` steps."""
        self.verify_steps[request] += self.decode_steps - joined

    def retracted(self, request: int) -> None:
        """It lost its KV memory and waits again."""
        self.retractions[request] += 1

    def finished(self, request: int, now: float) -> None:
        """Its last token was committed."""
        self.finish_s[request] = now
        self.completed += 1

    def prefill(self, now: float, seconds: float, tokens: int) -> None:
        """A prefill step ended."""
        self.prefill_steps += 1
        self.prefill_s += seconds

    def decode(
        self, now: float, alive: int, verified: int, committed: int, draft: float, verify: float, seconds: float
    ) -> None:
        """A decode step ended: `committed` of `verified` tokens went to `alive` requests (others had just finished)."""
        self.decode_steps += 1
        self.draft_s += draft
        self.verify_s += verify
        self.decode_s += seconds
        self.verified_tokens += verified
        self.committed_tokens += committed
        self.request_steps += alive
        self._bursts(now, alive)

    def _bursts(self, now: float, alive: int) -> None:
        """Gaps between a request's bursts of tokens: since the last decode step, or since it joined."""
        for joined in self._joined_s:
            self.burst_s.append(now - joined)
            self.burst_count.append(1)
        stayed = alive - len(self._joined_s)
        if stayed > 0:
            self.burst_s.append(now - self._previous_s)
            self.burst_count.append(stayed)
        self._joined_s.clear()
        self._previous_s = now
