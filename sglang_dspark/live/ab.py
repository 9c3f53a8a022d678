"""A/B on live traffic: two policies alternate in blocks of time, and the paired gain decides.

The figure is committed tokens per second of decode steps, which a server whose load is given by its users can still
win. Pairs run in an order drawn by seed (AB or BA), so that a drifting load does not favour either.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sglang_dspark.errors import InputError
from sglang_dspark.live.client import Server
from sglang_dspark.live.hold import Hold, held
from sglang_dspark.statistics import t_interval

MIN_STEPS = 20
"""A block with fewer timed decode steps says nothing about its policy; its pair is repeated."""

WARM_UP_STEPS = 16
"""Timed decode steps after a switch that count for nobody: what was under way, and what a policy has yet to learn."""

_SETTLE_S = 0.5  # between looks at whether the warm-up is over
_STOP_EARLY_PAIRS = 5
_MOST_IDLE = 5

_LEVEL = 0.95
_EARLY_LEVEL = 0.995
"""To stop early: looking after every pair gives chance many tries."""


@dataclass(frozen=True)
class Block:
    """One stretch under one policy: decode steps, seconds in them, committed tokens, mean batch, tokens a second."""

    policy: str
    steps: int
    seconds: float
    tokens: int
    requests: int

    @property
    def rate(self) -> float:
        """Committed tokens per second of decode steps."""
        return self.tokens / self.seconds


@dataclass(frozen=True)
class Verdict:
    """gain: of B over A, relative, with its 95 % interval low..high. keep: the policy to keep, or None (no difference).

    pairs: as they were run; rates: tokens per decode second of A and B over all pairs; stopped_early: before all pairs.
    """

    a: str
    b: str
    pairs: list[tuple[Block, Block]]
    gain: float
    low: float
    high: float
    keep: str | None
    stopped_early: bool

    @property
    def rates(self) -> tuple[float, float]:
        """Tokens per decode second of A and of B."""
        sums = [(sum(p[i].tokens for p in self.pairs), sum(p[i].seconds for p in self.pairs)) for i in (0, 1)]
        return sums[0][0] / sums[0][1], sums[1][0] / sums[1][1]

    @property
    def noise(self) -> float:
        """Which share of the gain may be noise: half of the 95 % interval over the gain, at most 1."""
        half = (self.high - self.low) / 2
        return min(1.0, half / abs(self.gain)) if self.gain else 1.0

    def sentence(self) -> str:
        """What to do, and how much of what was measured may be noise."""
        if self.keep is None:
            return f"no difference between {self.a} and {self.b} beyond the noise: keep what is there"
        gain, other = (self.gain, self.a) if self.keep == self.b else (1 / (1 + self.gain) - 1, self.b)
        return (
            f"keep {self.keep}: {100 * gain:.1f} % more tokens per decode second than {other}, "
            f"of which {100 * self.noise:.0f} % may be noise"
        )


def compare_live(
    server: Server,
    a: str,
    b: str,
    *,
    pairs: int = 12,
    block_s: float = 10.0,
    seed: int = 0,
    on_block: Callable[[Block], None] = lambda block: None,
    sleep: Callable[[float], None] = time.sleep,
) -> Verdict:
    """Alternate `a` and `b` and compare. The policy that was there before is put back, whatever happens.

    Errors: InputError if the server refuses a policy, has too little traffic to compare on, or was switched by somebody
    else meanwhile, whose policy then stays.
    """
    done: list[tuple[Block, Block]] = []
    order = np.random.default_rng(seed)
    idle = 0
    with held(server) as hold:
        for policy in (a, b):  # refuse early what the server will not run
            hold.switch(policy)
        while len(done) < pairs:
            swapped = bool(order.integers(2))
            found = {policy: _block(hold, policy, block_s, sleep) for policy in ((b, a) if swapped else (a, b))}
            if min(block.steps for block in found.values()) < MIN_STEPS:
                idle += 1
                if idle >= _MOST_IDLE:
                    raise InputError(
                        f"too little traffic: a block needs {MIN_STEPS} timed decode steps, try a longer --block"
                    )
                continue
            for block in (found[a], found[b]):
                on_block(block)
            done.append((found[a], found[b]))
            if len(done) >= _STOP_EARLY_PAIRS and _decided(done):
                break
    gain, low, high = _interval(done, _LEVEL)
    keep = b if low > 0 else a if high < 0 else None
    return Verdict(a, b, done, gain, low, high, keep, len(done) < pairs)


def _block(hold: Hold, policy: str, seconds: float, sleep: Callable[[float], None]) -> Block:
    hold.switch(policy)
    _warm_up(hold.server, seconds, sleep)
    begin = _counters(hold.server)
    sleep(seconds)
    end = _counters(hold.server)
    hold.check()
    steps, spent, tokens, requests = (after - first for first, after in zip(begin, end, strict=True))
    return Block(policy, int(steps), spent, int(tokens), int(requests))


def _warm_up(server: Server, seconds: float, sleep: Callable[[float], None]) -> None:
    """Wait until `WARM_UP_STEPS` have been timed, but no longer than a block (an idle server times none)."""
    first = _counters(server)[0]
    for _ in range(max(1, math.ceil(seconds / _SETTLE_S))):
        sleep(_SETTLE_S)
        if _counters(server)[0] - first >= WARM_UP_STEPS:
            return


def _counters(server: Server) -> tuple[float, float, float, float]:
    """(timed steps, their seconds, committed tokens, requests) over all replicas."""
    names = ("timed_steps", "timed_s", "timed_committed", "timed_requests")
    states = [state["counters"] for state in server.dspark()]
    if any(name not in state for state in states for name in names):
        raise InputError("the server's counters have no timed steps: it runs another version of sglang-dspark")
    steps, seconds, tokens, requests = (sum(float(state[name]) for state in states) for name in names)
    return steps, seconds, tokens, requests


def _interval(pairs: list[tuple[Block, Block]], level: float) -> tuple[float, float, float]:
    """(mean, low, high) of the relative gain of B, from the logarithms of paired ratios."""
    mean, half = t_interval(np.log([second.rate / first.rate for first, second in pairs]), level)
    if math.isnan(half):
        return math.expm1(mean), -1.0, math.inf
    return math.expm1(mean), math.expm1(mean - half), math.expm1(mean + half)


def _decided(pairs: list[tuple[Block, Block]]) -> bool:
    _, low, high = _interval(pairs, _EARLY_LEVEL)
    return low > 0 or high < 0
