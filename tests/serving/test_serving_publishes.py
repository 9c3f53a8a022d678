"""Lag is counted in publishes, a missing one makes the step late, and slots that were handed on are unpublished."""

from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sglang_dspark.policies import SCALE
from sglang_dspark.serving.feedback.publishes import Published, Publishes

SLOTS, GAMMA = 4, 2


@dataclass
class FakeCopy:
    """A publish whose arrival the test decides: the fake of a device event."""

    value: float
    arrived: bool = True
    generation: int = 1
    fetched: list[float] = field(default_factory=list)

    def ready(self) -> bool:
        return self.arrived

    def fetch(self) -> Published:
        slots = np.arange(2, dtype=np.int64)
        confidence = np.full((2, GAMMA), self.value, dtype=np.float32)
        zeros = np.zeros(2, dtype=np.int64)
        self.fetched.append(self.value)
        return Published(slots, np.full(2, self.generation), confidence, zeros, zeros, zeros)


def first_survival(publishes: Publishes, lag: int, generation: int = 1) -> tuple[int, bool]:
    units, published = publishes.look(np.array([0]), np.array([generation]), lag)
    return int(units[0, 0]), bool(published[0])


def test_overlapped_sees_the_publish_before_last() -> None:
    publishes = Publishes(SLOTS, GAMMA, 2, waits=False)
    assert first_survival(publishes, 2) == (SCALE, False)
    for step in range(1, 8):
        publishes.issue(FakeCopy(step / 16))
        arrived, late = publishes.catch_up()
        assert not late and len(arrived) == (step > 1)
        expected = (SCALE * (step - 1) // 16, True) if step > 1 else (SCALE, False)
        assert first_survival(publishes, 2) == expected
        assert first_survival(publishes, 3) == ((SCALE * (step - 2) // 16, True) if step > 2 else (SCALE, False))


def test_a_late_copy_makes_the_step_late_and_is_caught_up_in_order() -> None:
    publishes = Publishes(SLOTS, GAMMA, 2, waits=False)
    copies = [FakeCopy(0.25), FakeCopy(0.5, arrived=False), FakeCopy(0.75), FakeCopy(1.0)]
    publishes.issue(copies[0])
    publishes.issue(copies[1])
    assert publishes.catch_up()[1] is False
    publishes.issue(copies[2])
    arrived, late = publishes.catch_up()
    assert late and arrived == [] and copies[1].fetched == []
    copies[1].arrived = True
    publishes.issue(copies[3])
    arrived, late = publishes.catch_up()
    assert not late and [copy.fetched for copy in copies] == [[0.25], [0.5], [0.75], []]
    assert first_survival(publishes, 2) == (SCALE * 3 // 4, True)


def test_synchronous_waits_instead() -> None:
    publishes = Publishes(SLOTS, GAMMA, 1, waits=True)
    publishes.issue(FakeCopy(0.5, arrived=False))
    arrived, late = publishes.catch_up()
    assert not late and len(arrived) == 1 and first_survival(publishes, 1) == (SCALE // 2, True)


def test_a_new_owner_has_published_nothing() -> None:
    publishes = Publishes(SLOTS, GAMMA, 1, waits=True)
    publishes.issue(FakeCopy(0.5, generation=3))
    publishes.catch_up()
    assert first_survival(publishes, 1, generation=3) == (SCALE // 2, True)
    assert first_survival(publishes, 1, generation=4) == (SCALE, False)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=30), st.integers(1, 3))
def test_drained_or_not_the_same_lag_means_the_same_publish(drains: list[bool], visible: int) -> None:
    """However often an idle engine drains, lag l looks at the l-th last publish, as long as it may be seen."""
    publishes = Publishes(SLOTS, GAMMA, visible, waits=True)
    for step, drained in enumerate(drains, start=1):
        publishes.issue(FakeCopy(step / 64))
        publishes.drain() if drained else publishes.catch_up()
        for lag in range(visible, 5):
            seen = step - lag + 1
            assert first_survival(publishes, lag) == ((SCALE * seen // 64, True) if seen > 0 else (SCALE, False))


def test_a_lag_that_is_not_kept_is_an_error() -> None:
    with pytest.raises(ValueError, match="lag"):
        Publishes(SLOTS, GAMMA, 2, waits=False).look(np.array([0]), np.array([1]), 9)
