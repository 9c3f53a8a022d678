"""One decode step for the explorer: a batch of drafted blocks, and what was known before it was drawn."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sglang_dspark.policies import (
    KnownBlock,
    LiveBlock,
    Outcome,
    Past,
    Policy,
    SurvivalRing,
    Unrestricted,
    learned,
    started,
)
from sglang_dspark.policies.arithmetic import Ints
from simulator.blocks.acceptance import BlockTable, StatisticalAcceptance
from simulator.blocks.online import OnlineEstimate
from simulator.engine.run import Setting, step_costs

HISTORY = 32
"""Earlier steps of the batch; all of them verified everything, so that every policy has the same past."""


@dataclass(frozen=True)
class Batch:
    """The blocks of R requests in one step. depth: [R] draft tokens that the target accepts.

    history: what was published and found out in the steps before, oldest first.
    """

    live: LiveBlock
    depth: Ints
    history: tuple[Outcome, ...]

    @property
    def size(self) -> int:
        """R."""
        return len(self.depth)

    @property
    def gamma(self) -> int:
        """Draft block size."""
        return self.live.units.shape[1]

    def past(self, setting: Setting, policy: Policy) -> Past:
        """What the policy knows before this step's draft is drawn."""
        carry, _ = started(policy, self.gamma)
        slots, owners = np.arange(self.size), np.ones(self.size, dtype=np.int64)
        ring = SurvivalRing(self.size, self.gamma, policy.max_lag) if policy.max_lag else None
        for outcome in self.history:
            if ring is not None:
                ring.publish(slots, owners, outcome.survival)
            carry, _ = learned(policy, carry, outcome) if policy.learns else (carry, None)
        _, belief = step_costs(setting, policy)
        prices = belief.prices(self.size, self.gamma, self.size * mean_context(setting))
        return Past(self.size, self.gamma, prices, None if ring is None else partial(ring.look, slots, owners), carry)

    def shown_to(self, policy: Policy) -> LiveBlock:
        """The block as this policy may see it."""
        if isinstance(policy, Unrestricted) and policy.knows_depth:
            return KnownBlock(self.live.units, self.live.confidence, 0, self.depth)
        return self.live


def draw_batch(setting: Setting, domain: int, size: int) -> Batch:
    """`size` requests of one domain, each in the middle of its answer."""
    gamma = setting.drafter.gamma
    length = np.full(size, (HISTORY + 2) * (gamma + 1), dtype=np.int64)
    source = StatisticalAcceptance(setting.drafter, setting.confidence, np.full(size, domain), length, setting.seed)
    online = OnlineEstimate(gamma) if setting.confidence.online else None
    anchor = np.ones(size, dtype=np.int64)
    history: list[Outcome] = []
    while True:
        live, depth = _blocks(source, anchor)
        live = live if online is None else online.report(live)
        if len(history) == HISTORY:
            return Batch(live, depth, tuple(history))
        lengths = np.full(size, gamma, dtype=np.int64)
        history.append(Outcome(live.units, lengths, depth))
        if online is not None:
            online.learn(lengths, depth)
        anchor = anchor + depth + 1


def mean_context(setting: Setting) -> int:
    """Tokens that a request holds half way through its answer."""
    return int(setting.trace.input_length.mean() + setting.trace.output_length.mean() / 2)


def _blocks(source: StatisticalAcceptance, anchor: NDArray[Any]) -> tuple[LiveBlock, Ints]:
    table = BlockTable.empty(len(anchor), source.gamma, confidence=True)
    for request, first in enumerate(anchor.tolist()):
        source.fill(request, first, table.rows(request, request + 1))
    return LiveBlock(table.units, table.confidence), table.depth
