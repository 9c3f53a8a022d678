"""A switch on trial: the server compares what it measures with what it measured before, and goes back by itself.

Tokens a second at like load: steps are put together in blocks of `BLOCK` of one size class of the batch (powers of 2),
and a class counts where both policies have blocks in it, by the time that the new one spent there. Only measured past
steps are looked at, so a trial is as lossless as the switch itself (no torch, no sglang).
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from sglang_dspark.policies import Policy
from sglang_dspark.serving.base.steps import StepRecord
from sglang_dspark.serving.base.trial_plan import TrialPlan

BLOCK = 16
"""Decode steps of one block."""
KEPT = 64
"""Blocks of a size class that are remembered."""
WARM_UP = 16
"""Steps after a switch that are left out."""
_EARLY, _LATE = 5.0, 3.0  # standard errors behind that end a trial at once (it is looked at often), and at its end
_LEAST_BLOCKS = 6

Verdict = Literal["running", "kept", "reverted"]
TrialOutcome = Literal["kept", "reverted", "replaced"]
"""How trials end; replaced: by another switch."""


@dataclass
class Ledger:
    """An observer: rates and times per output token of the present policy, by size class. Restarted by a switch."""

    since_step: int = 0
    blocks: dict[int, deque[tuple[float, float, float]]] = field(default_factory=dict)
    """By size class: (tokens a second, seconds, seconds per output token of one request) of each block."""
    _open: dict[int, list[float]] = field(default_factory=dict)

    def on_step(self, record: StepRecord) -> bool:
        """Take a step in; whether a block was completed by it."""
        if record.step_s is None or record.step < self.since_step + (WARM_UP if self.since_step else 0):
            return False
        rows = record.batch.num_requests
        tally = self._open.setdefault(rows.bit_length(), [0.0, 0.0, 0.0, 0.0])
        tokens = rows + int(record.accepted.sum())
        for index, value in enumerate((1.0, tokens, record.step_s, rows * record.step_s)):
            tally[index] += value
        if tally[0] < BLOCK:
            return False
        _, tokens_, seconds, request_seconds = self._open.pop(rows.bit_length())
        kept = self.blocks.setdefault(rows.bit_length(), deque(maxlen=KEPT))
        kept.append((tokens_ / seconds, seconds, request_seconds / tokens_))
        return True

    def tpot_ms(self) -> float:
        """Mean time per output token of all blocks, weighted by their time; 0 without blocks."""
        pairs = [(seconds, tpot) for blocks in self.blocks.values() for _, seconds, tpot in blocks]
        total = sum(seconds for seconds, _ in pairs)
        return 1e3 * sum(seconds * tpot for seconds, tpot in pairs) / total if total else 0.0


@dataclass(frozen=True)
class Comparison:
    """gain: relative difference in tokens a second at like load, error: its standard error; blocks: of the new policy
    that had a counterpart."""

    gain: float
    error: float
    blocks: int


def compared(before: Ledger, after: Ledger) -> Comparison:
    """What the policy after the switch gains, over the size classes that both have met."""
    gain = variance = weight = 0.0
    blocks = 0
    for size in before.blocks.keys() & after.blocks.keys():
        old, new = ([rate for rate, _, _ in ledger.blocks[size]] for ledger in (before, after))
        if len(old) < 2 or len(new) < 2:
            continue
        share = sum(seconds for _, seconds, _ in after.blocks[size])
        (old_mean, old_error), (new_mean, new_error) = _mean(old), _mean(new)
        ratio = new_mean / old_mean
        gain += share * (ratio - 1.0)
        variance += (share * ratio) ** 2 * ((old_error / old_mean) ** 2 + (new_error / new_mean) ** 2)
        weight += share
        blocks += len(new)
    return Comparison(gain / weight, math.sqrt(variance) / weight, blocks) if weight else Comparison(0.0, math.inf, 0)


class Trial:
    """One trial on rank 0. `due` says when to go back; the engine then does it on every rank at one step."""

    def __init__(
        self,
        plan: TrialPlan,
        policy: str,
        previous: Policy,
        previous_text: str,
        before: Ledger,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.plan, self.policy, self.previous = plan, policy, previous
        self.previous_text = previous_text
        self.verdict: Verdict = "running"
        self.reason = ""
        self.returned = False
        self.found = Comparison(0.0, math.inf, 0)
        self._before, self._now, self._began = before, now, now()

    def look(self, after: Ledger) -> None:
        """A block of the new policy was completed."""
        if self.verdict != "running":
            return
        self.found = compared(self._before, after)
        over = self._now() - self._began >= self.plan.seconds
        behind = -self.found.gain / self.found.error if self.found.error > 0 else math.inf * -self.found.gain
        if self.found.blocks >= _LEAST_BLOCKS and behind > (_LATE if over else _EARLY):
            self._end("reverted", "it is behind beyond the noise")
        elif self._too_slow(after):
            self._end("reverted", f"{after.tpot_ms():.1f} ms per output token exceed {self.plan.tpot_ms:g} ms")
        elif over:
            self._end("kept", "it is not behind" if self.found.blocks else "no like load was met")

    def fell_back(self) -> None:
        """The policy raised."""
        if self.verdict == "running":
            self._end("reverted", "it raised, and a fallback decided")

    @property
    def due(self) -> bool:
        """Whether the engine should go back with the next step."""
        return self.verdict == "reverted" and not self.returned

    def _too_slow(self, after: Ledger) -> bool:
        limit = self.plan.tpot_ms
        enough = sum(map(len, after.blocks.values())) >= _LEAST_BLOCKS
        return limit is not None and enough and after.tpot_ms() > limit >= self._before.tpot_ms()

    def _end(self, verdict: Verdict, reason: str) -> None:
        self.verdict, self.reason = verdict, reason

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "policy": self.policy,
            "previous": self.previous_text,
            "verdict": self.verdict,
            "reason": self.reason,
            "left_s": max(0.0, self.plan.seconds - (self._now() - self._began)) if self.verdict == "running" else 0.0,
            "gain": self.found.gain if self.found.blocks else None,
            "gain_error": self.found.error if self.found.blocks else None,
            "blocks": self.found.blocks,
            "tpot_ms": self.plan.tpot_ms,
        }

    def sentence(self) -> str:
        """How it ended, for the log."""
        measured = f" ({100 * self.found.gain:+.1f} +- {100 * self.found.error:.1f} %)" if self.found.blocks else ""
        after = f"back to {self.previous_text}" if self.verdict == "reverted" else "it stays"
        return f"trial of {self.policy}{measured}: {self.reason}; {after}"


def _mean(values: list[float]) -> tuple[float, float]:
    """Mean and its standard error."""
    mean = sum(values) / len(values)
    spread = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, math.sqrt(spread / len(values))
