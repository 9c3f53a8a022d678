"""What several tests of the live engine share."""

import numpy as np

from sglang_dspark.cost import TERMS, StepCost
from sglang_dspark.cost.curves import Curve


def flat_cost(diagonal: bool = False) -> StepCost:
    """Ten milliseconds for one token, fifty for 512, and nothing for drafting."""
    curve = Curve(np.array([1.0, 512.0]), np.array([0.01, 0.05]))
    free, terms = Curve(np.array([1.0]), np.array([0.0])), dict.fromkeys(TERMS, 0.0)
    return StepCost("made", "1-d", free, curve, diagonal=diagonal, terms=terms)
