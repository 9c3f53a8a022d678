"""What several tests of the live engine share."""

import numpy as np

from sglang_dspark.cost import StepCost
from sglang_dspark.cost.curves import Curve

TERMS = {"context_token_s": 0.0, "draft_context_token_s": 0.0}


def flat_cost(diagonal: bool = False) -> StepCost:
    """Ten milliseconds for one token, fifty for 512, and nothing for drafting."""
    curve = Curve(np.array([1.0, 512.0]), np.array([0.01, 0.05]))
    return StepCost("made", "1-d", Curve(np.array([1.0]), np.array([0.0])), curve, diagonal=diagonal, terms=TERMS)
