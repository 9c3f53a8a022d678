"""What a run leaves behind: per-request times, and sums over engine steps."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class StepView:
    """One engine step as it ended.

    batch: requests in the decode batch, running: those of them that still want tokens. tokens: verified (decode) or
    prompt (prefill) tokens, committed: output tokens that the step gave. kv: tokens of KV memory held during it.
    """

    kind: str
    end_s: float
    seconds: float
    batch: int
    running: int
    waiting: int
    tokens: int
    committed: int
    kv: int
    replica: int = 0


class Recorder:
    """Collects one run. Per-request arrays are [N] in trace order, seconds; NaN until it happened."""

    def __init__(
        self,
        input_length: NDArray[np.int64],
        output_length: NDArray[np.int64],
        on_step: Callable[[StepView], None] | None = None,
    ) -> None:
        count = len(output_length)
        self.input_length, self.output_length = input_length, output_length
        self.on_step = on_step
        self.sent_s, self.first_token_s, self.finish_s = np.full((3, count), np.nan)
        self.verify_steps = np.zeros(count, dtype=np.int64)
        self.retractions = np.zeros(count, dtype=np.int64)
        self.completed = 0
        self.decode_steps = self.prefill_steps = 0
        self.draft_s = self.verify_s = self.decode_s = self.prefill_s = 0.0
        self.prefill_outputs = 0  # tokens that prefills gave: first ones, and those of resumed requests
        self.verified_tokens = self.committed_tokens = self.request_steps = 0
        self.burst_s, self.burst_count = array("d"), array("q")

    @property
    def output_tokens(self) -> int:
        """Tokens delivered so far."""
        return self.committed_tokens + self.prefill_outputs

    def sent(self, request: int, now: float) -> None:
        """A request reached the router."""
        self.sent_s[request] = now

    def prefilled(self, request: int, now: float, *, first: bool) -> None:
        """Its prefill ended and gave a token; `first`: the request's first one."""
        self.prefill_outputs += 1
        if first:
            self.first_token_s[request] = now

    def left(self, request: int, steps: int) -> None:
        """It left the decode batch after `steps` verify steps."""
        self.verify_steps[request] += steps

    def retracted(self, request: int) -> None:
        """It lost its KV memory and waits again."""
        self.retractions[request] += 1

    def finished(self, request: int, now: float) -> None:
        """Its last token was committed."""
        self.finish_s[request] = now
        self.completed += 1

    def prefill(self, seconds: float) -> None:
        """A prefill step ended."""
        self.prefill_steps += 1
        self.prefill_s += seconds

    def decode(self, alive: int, verified: int, committed: int, draft: float, verify: float, seconds: float) -> None:
        """A decode step ended: `committed` of `verified` tokens went to `alive` requests (others had just finished)."""
        self.decode_steps += 1
        self.draft_s += draft
        self.verify_s += verify
        self.decode_s += seconds
        self.verified_tokens += verified
        self.committed_tokens += committed
        self.request_steps += alive

    def burst(self, gap: float, requests: int) -> None:
        """So many requests got tokens `gap` seconds after their tokens before."""
        self.burst_s.append(gap)
        self.burst_count.append(requests)


class Gaps:
    """Gaps between a request's bursts of tokens on one replica: since its last decode step, or since it joined."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._previous_s = 0.0
        self._joined_s: dict[int, float] = {}

    def joined(self, request: int, now: float) -> None:
        """A prefill gave it a token, and it decodes next."""
        self._joined_s[request] = now

    def retracted(self, request: int) -> None:
        """It is gone before its next burst."""
        self._joined_s.pop(request, None)

    def decode(self, now: float, alive: int) -> None:
        """All `alive` requests of the batch got tokens."""
        for joined in self._joined_s.values():
            self._recorder.burst(now - joined, 1)
        stayed = alive - len(self._joined_s)
        if stayed:
            self._recorder.burst(now - self._previous_s, stayed)
        self._joined_s.clear()
        self._previous_s = now
