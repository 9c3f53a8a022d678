"""Confidences without a head: what was accepted at each position so far, as vLLM's estimator learns it (#52228).

vLLM also reads the draft's own probability of each token, which no published figure lets one simulate: here all
requests of a step are reported alike. A report depends on outcomes of earlier steps only, so it is past information.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sglang_dspark.policies import LiveBlock, survival_units
from sglang_dspark.policies.arithmetic import Ints

PRIOR = 0.8
PRIOR_WEIGHT = 50.0
"""Acceptance before the first outcome, and of how many drafted tokens it counts (vLLM's damping)."""

WINDOW = 100
"""Steps over which outcomes are averaged (vLLM refits every 100)."""


class OnlineEstimate:
    """Running conditional acceptance by position of one engine.

    Outcomes fade by 1 / `WINDOW` a step and the prior does not, so that a position which a policy no longer verifies
    goes back to the prior and is tried again.
    """

    def __init__(self, gamma: int) -> None:
        self._tried, self._accepted = np.zeros((2, gamma))
        self._position = np.arange(1, gamma + 1)

    @property
    def conditional(self) -> NDArray[np.float32]:
        """The estimate by position, [gamma]."""
        estimate = (self._accepted + PRIOR_WEIGHT * PRIOR) / (self._tried + PRIOR_WEIGHT)
        return estimate.astype(np.float32)

    def report(self, live: LiveBlock) -> LiveBlock:
        """The same blocks with the estimate as every request's confidences."""
        confidence = np.tile(self.conditional, (len(live.units), 1))
        return LiveBlock(survival_units(confidence), confidence)

    def learn(self, lengths: Ints, accepted: Ints) -> None:
        """How a step ended: verified and accepted draft tokens, [R] each.

        Censored: a position tells something where it was verified and everything before it was accepted.
        """
        keep = 1.0 - 1.0 / WINDOW
        reached = (lengths[:, None] >= self._position) & (accepted[:, None] >= self._position - 1)
        self._tried = keep * self._tried + reached.sum(axis=0)
        self._accepted = keep * self._accepted + (accepted[:, None] >= self._position).sum(axis=0)
