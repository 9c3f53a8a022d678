"""Random decisions, for the contract of policies, the exact audit and tests: blocks, pasts, outcomes, step costs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sglang_dspark.cost import MeasuredDraft, MeasuredVerify, SpsAdditiveCostTable, StepCost, Tiered, model_from_table
from sglang_dspark.errors import InputError
from sglang_dspark.policies.arithmetic import SCALE, Ints, survival_units
from sglang_dspark.policies.base import Policy
from sglang_dspark.policies.fallback import NotAFault
from sglang_dspark.policies.state import KnownBlock, LiveBlock, Outcome, Past, StepTiming

LARGEST_GAMMA = 16
LARGEST_BATCH = 256
PALETTE = np.array([1.0, 0.9, 0.5, 0.2], dtype=np.float32)
"""Confidences of the blocks that a random cost follows."""
_LISTED = 40  # up to so many token counts any may be captured; beyond, so many of them at most


class ContractViolation(NotAFault, AssertionError):
    """A policy broke the contract; the message names the policy, the check and the case."""


@dataclass(frozen=True)
class Case:
    """One decision: lagged[lag - 1] is what was published lag steps ago, [R, gamma] units and [R] published.

    caps: see `Past`.
    """

    cost: StepCost
    confidence: NDArray[np.float32]
    lagged: tuple[tuple[Ints, NDArray[np.bool_]], ...]
    carry: Any
    waiting: int
    caps: Ints | None = None

    @property
    def units(self) -> Ints:
        return survival_units(self.confidence)

    def past(self, policy: Policy) -> Past:
        """The past of this case; asking for a lag beyond `max_lag` is a violation."""

        def lagged(lag: int) -> tuple[Ints, NDArray[np.bool_]]:
            if not 1 <= lag <= policy.max_lag:
                raise ContractViolation(f"'{policy.name}' asks for lag {lag} but its max_lag is {policy.max_lag}")
            return self.lagged[lag - 1]

        requests, gamma = self.confidence.shape
        return Past(requests, gamma, self.cost.prices(requests, gamma), lagged, self.carry, self.waiting, self.caps)

    def live(self) -> LiveBlock:
        """The block as every rule may see it."""
        return LiveBlock.of(self.confidence.copy())

    def known(self) -> KnownBlock:
        """The block with its depth, all of it: for research."""
        block = self.live()
        return KnownBlock(block.units, block.confidence, 0, np.full(len(block.units), self.confidence.shape[1]))


def random_cases(policy: Policy, rng: np.random.Generator, count: int) -> Iterator[Case]:
    """Decisions of every shape that the policy accepts: R = 0 and 1, gamma = 1, all ones, all zeros, ties, and every
    tenth a batch of up to 256, where an array form could behave otherwise."""
    gammas = [gamma for gamma in range(1, LARGEST_GAMMA + 1) if _accepts(policy, gamma)]
    if not gammas:
        raise ContractViolation(f"policy '{policy.name}' accepts no block size in 1..{LARGEST_GAMMA}")
    for number in range(count):
        gamma = gammas[0] if number % 5 == 0 else int(rng.choice(gammas))
        if number < 6:
            requests = number % 3
        elif number % 10 == 9:
            requests = int(np.exp(rng.uniform(np.log(20), np.log(LARGEST_BATCH + 1))))
        else:
            requests = int(rng.integers(1, 20))
        yield random_case(policy, rng, requests, gamma)


def random_case(policy: Policy, rng: np.random.Generator, requests: int, gamma: int) -> Case:
    """One decision for `requests` blocks of `gamma`."""
    lagged = []
    for _ in range(policy.max_lag):
        units = survival_units(random_confidence(rng, requests, gamma))
        published = rng.random(requests) < 0.8
        units[~published] = SCALE
        units.setflags(write=False)
        lagged.append((units, published))
    carry = policy.start(gamma)
    for _ in range(int(rng.integers(0, 4))):
        carry = policy.learn(carry, random_outcome(rng, requests, gamma))
    confidence = random_confidence(rng, requests, gamma)
    cost = random_cost(rng, max(requests, 1), gamma)
    caps = rng.integers(0, gamma + 1, size=requests) if rng.random() < 0.2 else None
    return Case(cost, confidence, tuple(lagged), carry, int(rng.integers(0, 5)), caps)


def random_confidence(rng: np.random.Generator, requests: int, gamma: int) -> NDArray[np.float32]:
    """[R, gamma] float32: any of spread out, tied, saturated, all ones, all zeros, vanishing."""
    shape = (requests, gamma)
    kind = int(rng.integers(0, 6))
    if kind == 0:
        return np.full(shape, rng.integers(0, 2), dtype=np.float32)
    if kind == 1:
        return rng.choice([0.5, 1.0], size=shape).astype(np.float32)
    if kind == 2:
        return rng.choice([1.0, 0.9, 0.3, 0.0], size=shape).astype(np.float32)
    if kind == 3:
        return (rng.random(shape) ** 6).astype(np.float32)
    return rng.beta(2.0, 1.0, size=shape).astype(np.float32)


def random_outcome(rng: np.random.Generator, requests: int, gamma: int) -> Outcome:
    """How an earlier step may have ended."""
    lengths = rng.integers(0, gamma + 1, size=requests)
    measured = StepTiming(int(rng.integers(1, 64)), 0.01, 0.01 * float(rng.lognormal(0, 0.2)))
    timing = measured if rng.random() < 0.8 else None
    survival = survival_units(random_confidence(rng, requests, gamma))
    return Outcome(survival, lengths, rng.integers(0, lengths + 1), timing)


def random_cost(
    rng: np.random.Generator, requests: int, gamma: int, palette: NDArray[np.float32] = PALETTE
) -> StepCost:
    """A staircase over 1..R (1 + gamma) tokens with captured sizes, often with an eager cliff past the last one.

    Half of them follow tau of a random block made of `palette`: Theta is then nearly flat, so that decisions hang on
    the survivals and a leak has the most to show.
    """
    most = requests * (1 + gamma)
    least = requests if rng.random() < 0.9 else 1
    last = int(rng.integers(least, most + 1)) if rng.random() < 0.4 else most
    if last <= _LISTED:
        density = rng.choice([0.3, 0.6, 0.9])
        captured = [size for size in range(1, last) if rng.random() < density] + [last]
    else:
        captured = sorted({last, *rng.integers(1, last, size=int(rng.integers(1, _LISTED))).tolist()})
    probes = sorted({1, last, *captured, most + 1})
    draft = rng.uniform(0.01, 0.2) * np.arange(1, requests + 1)
    if rng.random() < 0.5:
        verify = rng.uniform(0.3, 1.0) + np.cumsum(rng.choice([0.0, 0.0, 0.1, 0.3, 0.6], size=len(probes)))
        verify += rng.uniform(-0.01, 0.01, len(probes))
    else:
        survival = np.cumprod(rng.choice(palette, size=(requests, gamma)), axis=1)
        tau = requests + np.concatenate([[0.0], np.cumsum(np.sort(survival, axis=None)[::-1])])
        total = np.interp(probes, requests + np.arange(tau.size), tau) * rng.uniform(0.9, 1.1, len(probes))
        verify = np.maximum(total - draft[-1], 0.1)
    eager = None
    if last < most and rng.random() < 0.7:
        cliff = float(verify.max() * rng.uniform(1.0, 3.0))
        eager = MeasuredVerify([last + 1, most + 1], [cliff, cliff * 1.1])
    by_requests: list[Any] = draft.tolist()
    theta: list[float] = (verify - verify.min()).tolist()
    tiered = Tiered(
        MeasuredDraft(list(range(1, requests + 1)), by_requests),
        MeasuredVerify(probes, verify.tolist()),
        captured,
        requests,
        eager,
    )
    table = SpsAdditiveCostTable(1.0, list(range(1, requests + 1)), by_requests, probes, theta, tiered=tiered)
    return model_from_table(table, "random staircase")


def _accepts(policy: Policy, gamma: int) -> bool:
    try:
        policy.check(gamma)
    except InputError:
        return False
    return True
