"""What a policy cannot do without, found out by running it once."""

from __future__ import annotations

from typing import Any

import numpy as np

from sglang_dspark.jit import numpy_only
from sglang_dspark.policies.base import Policy
from sglang_dspark.policies.classes import Unrestricted
from sglang_dspark.policies.fallback import NotAFault
from sglang_dspark.policies.state import LiveBlock, Past


class NoPrices:
    """Stands for the prices of a server without a profile: any use of them is an error, by default the rule's."""

    def __init__(self, error: type[Exception] = LookupError) -> None:
        self._error = error

    def __getattr__(self, name: str) -> Any:
        raise self._error(f"{name} of a server without a profile")


class PriceNeeded(NotAFault, RuntimeError):
    """A policy looked at prices where there are none."""


def needs_prices(policy: Policy) -> bool:
    """Whether the policy looks at step times at all."""
    if knows_depth(policy):
        return True
    past = Past(1, 64, NoPrices(PriceNeeded), carry=policy.start(64))  # type: ignore[arg-type]
    try:
        with numpy_only():  # whoever reads a policy need not load compiled code
            policy.decide(past, LiveBlock.of(np.full((1, 64), 0.5, dtype=np.float32)))
    except PriceNeeded:
        return True
    return False


def knows_depth(policy: Policy) -> bool:
    """Whether the policy is shown how much of a block will be accepted: the simulator's alone."""
    return isinstance(policy, Unrestricted) and policy.knows_depth
