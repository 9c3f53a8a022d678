"""What a run leaves behind: per-request times, and sums over engine steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sglang_dspark.policies.arithmetic import Ints
from simulator.engine.bursts import Bursts


@dataclass(frozen=True, slots=True)
class StepView:
    """One engine step as it ended.

    batch: requests in the decode batch, running: those of them that still want tokens. tokens: verified (decode) or
    prompt (prefill) tokens, committed: output tokens that the step gave. kv: tokens of KV memory held during it.
    cached: further ones that a prefix cache holds and nobody who runs needs, None without a cache.
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
    cached: int | None = None


@dataclass(frozen=True, slots=True)
class DecodeView:
    """One decode step request by request, as it ended. Rows whose request had ended before it want no token.

    request, wanted, lengths, accepted: [R] trace index, tokens still wanted before the step, verified draft tokens, and
    those of them that survived. units: [R, gamma] survivals as the policy saw them. depth: [R] draft tokens that the
    target would have accepted, verified or not.
    """

    request: Ints
    wanted: Ints
    lengths: Ints
    accepted: Ints
    units: Ints
    depth: Ints


class Tally:
    """Sums over the steps of one replica, kept apart so that they do not hang on who stepped first."""

    def __init__(self, gamma: int) -> None:
        self.bursts = Bursts(gamma + 1)
        self.decode_steps = 0
        self.verified_tokens = self.committed_tokens = self.request_steps = self.rows = 0
        self.steps_beyond_probes = 0  # that the profile was not measured for
        self.draft_s = self.verify_s = self.decode_s = self.prefill_s = 0.0

    def decode(
        self, rows: int, alive: int, verified: int, committed: int, draft: float, verify: float, seconds: float
    ) -> None:
        """A decode step ended: `committed` of `verified` tokens went to `alive` of `rows` requests, some had ended."""
        self.decode_steps += 1
        self.verified_tokens += verified
        self.committed_tokens += committed
        self.request_steps += alive
        self.rows += rows
        self.draft_s += draft
        self.verify_s += verify
        self.decode_s += seconds


def _sum(name: str) -> Any:
    return property(
        lambda recorder: sum(getattr(tally, name) for tally in recorder.tallies), doc=f"See `Tally`: {name}."
    )


class Recorder:
    """Collects one run. Per-request arrays are [N] in trace order, seconds; NaN until it happened."""

    def __init__(
        self,
        input_length: NDArray[np.int64],
        output_length: NDArray[np.int64],
        gamma: int,
        on_step: Callable[[StepView], None] | None = None,
        on_tokens: Callable[[int, float, int], None] | None = None,
        on_decode: Callable[[DecodeView], None] | None = None,
    ) -> None:
        """on_step sees every engine step, on_decode every decode step request by request, on_tokens (request, seconds,
        tokens) every chunk that a client gets."""
        count = len(output_length)
        self.input_length, self.output_length = input_length, output_length
        self.on_step, self.on_tokens, self.on_decode = on_step, on_tokens, on_decode
        self.sent_s, self.first_token_s, self.entered_s, self.finish_s = np.full((4, count), np.nan)
        self.verify_steps = np.zeros(count, dtype=np.int64)
        self.retractions = np.zeros(count, dtype=np.int64)
        self.completed = 0
        self.prefill_steps = 0
        self.fallbacks = 0  # times that the policy raised and its class's fallback stood in
        self.cached_tokens = 0  # prompt tokens that a request's first prefill found in the prefix cache
        self.prefill_outputs = 0  # tokens that prefills gave: first ones, and those of resumed requests
        self.tallies: list[Tally] = []  # by replica
        self._gamma = gamma

    decode_steps, verified_tokens, committed_tokens = map(_sum, ("decode_steps", "verified_tokens", "committed_tokens"))
    request_steps, rows, steps_beyond_probes = map(_sum, ("request_steps", "rows", "steps_beyond_probes"))
    draft_s, verify_s, decode_s, prefill_s = map(_sum, ("draft_s", "verify_s", "decode_s", "prefill_s"))

    def tally(self) -> Tally:
        """Where a further replica keeps its sums."""
        self.tallies.append(Tally(self._gamma))
        return self.tallies[-1]

    @property
    def bursts(self) -> Bursts:
        """See `Bursts`."""
        return Bursts.together([tally.bursts for tally in self.tallies])

    @property
    def output_tokens(self) -> int:
        """Tokens delivered so far."""
        return self.committed_tokens + self.prefill_outputs

    def sent(self, request: int, now: float) -> None:
        """A request reached the router."""
        self.sent_s[request] = now

    def prefilled(self, request: int, now: float, *, first: bool, cached: int = 0) -> None:
        """Its prefill ended and gave a token; `first`: the request's first one. cached: tokens not prefilled."""
        self.prefill_outputs += 1
        if first:
            self.first_token_s[request] = now
            self.cached_tokens += cached
        if self.on_tokens is not None:
            self.on_tokens(request, now, 1)

    def entered(self, request: int, now: float) -> None:
        """A replica lets it decode (again); the first time counts."""
        if self.entered_s[request] != self.entered_s[request]:  # NaN
            self.entered_s[request] = now

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

    def prefill(self, seconds: float, tally: Tally) -> None:
        """A prefill step ended."""
        self.prefill_steps += 1
        tally.prefill_s += seconds
