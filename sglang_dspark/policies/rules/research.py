"""Policies for research: they see what no lossless rule may see. The live engine refuses them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sglang_dspark.policies.arithmetic import SCALE, Ints, allocate
from sglang_dspark.policies.classes import Unrestricted, best_budget
from sglang_dspark.policies.state import KnownBlock, LiveBlock, Past


@dataclass(frozen=True)
class ArgmaxLive(Unrestricted):
    """Global argmax on this step's survivals: the paper's Appendix A counterexample, biased by up to 0.25."""

    name: ClassVar[str] = "argmax-live"
    reads_confidence: ClassVar[bool] = False

    def choose(self, past: Past, live: LiveBlock) -> Ints:
        budget = best_budget(past, live.units, past.prices.inverse, 0, past.gamma)
        return allocate(live.units, budget, caps=past.caps)


@dataclass(frozen=True)
class Oracle(Unrestricted):
    """Knows which draft tokens will be accepted and verifies the most profitable of them; simulator only."""

    name: ClassVar[str] = "oracle"
    reads_confidence: ClassVar[bool] = False
    knows_depth: ClassVar[bool] = True

    def choose(self, past: Past, live: LiveBlock) -> Ints:
        assert isinstance(live, KnownBlock), "oracle needs the true accepted depth, which the simulator alone knows"
        known = np.where(np.arange(past.gamma)[None, :] < live.depth[:, None], SCALE, 0).astype(np.int64)
        budget = best_budget(past, known, past.prices.inverse, 0, past.gamma, least=1)
        return allocate(known, budget, caps=past.caps)
