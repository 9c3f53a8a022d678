"""SurvivalRing against a list of dicts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from sglang_dspark.policies import SCALE, SurvivalRing

SLOTS, GAMMA = 5, 3


class RingModel(RuleBasedStateMachine):
    """Every publish is a dict slot -> (owner, survivals); a slot that sat a step out keeps what it had."""

    @initialize(depth=st.integers(1, 4))
    def start(self, depth: int) -> None:
        self.depth = depth
        self.ring = SurvivalRing(SLOTS, GAMMA, depth)
        self.owners = [1] * SLOTS
        self.published: list[dict[int, tuple[int, list[int]]]] = [{}]

    @rule(slots=st.sets(st.integers(0, SLOTS - 1)), seed=st.integers(0, 2**31))
    def publish(self, slots: set[int], seed: int) -> None:
        chosen = sorted(slots)
        units = np.random.default_rng(seed).integers(0, SCALE + 1, size=(len(chosen), GAMMA))
        owners = np.array([self.owners[slot] for slot in chosen], dtype=np.int64)
        self.ring.publish(np.array(chosen, dtype=np.int64), owners, units)
        newest = dict(self.published[-1])
        newest.update({slot: (self.owners[slot], row.tolist()) for slot, row in zip(chosen, units, strict=True)})
        self.published.append(newest)

    @rule(slot=st.integers(0, SLOTS - 1))
    def hand_on(self, slot: int) -> None:
        self.owners[slot] += 1

    @invariant()
    def looks_the_same(self) -> None:
        if not hasattr(self, "ring"):
            return
        slots = np.arange(SLOTS)
        for lag in range(1, self.depth + 1):
            then = self.published[-lag] if lag <= len(self.published) else {}
            units, published = self.ring.look(slots, np.array(self.owners), lag)
            for slot in range(SLOTS):
                owner, row = then.get(slot, (0, []))
                known = owner == self.owners[slot]
                assert published[slot] == known
                assert units[slot].tolist() == (row if known else [SCALE] * GAMMA)

    @invariant()
    def answers_are_copies(self) -> None:
        if hasattr(self, "ring"):
            units, _ = self.ring.look(np.arange(SLOTS), np.array(self.owners), 1)
            units[:] = -1
            again, _ = self.ring.look(np.arange(SLOTS), np.array(self.owners), 1)
            assert (again >= 0).all()


TestRing = RingModel.TestCase
TestRing.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)


@pytest.mark.parametrize("lag", [0, -1, 3])
def test_a_lag_outside_the_ring_is_an_error(lag: int) -> None:
    with pytest.raises(ValueError, match="keeps 1..2 publishes"):
        SurvivalRing(1, 1, 2).look(np.array([0]), np.array([1]), lag)
