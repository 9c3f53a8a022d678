"""Step times learned tier by tier; see `tier_costs` for what it means.

state: `tokens` and `steps` [2, TIERS] int64, `means` [TIERS] float64, of the first `count` tiers, the one met last at
the end.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sglang_dspark.jit import njit
from sglang_dspark.policies.loops.learning import log
from sglang_dspark.policies.tier_costs import COMMON_DOUBT, DOUBT, FARTHEST, GRAIN, MEMORY, TIERS


@njit
def followed_tier(met: Any, means: Any, count: int, tokens: int, ratio: float) -> int:
    """The state after one more step of `tokens`; ratio: measured over believed. The new count."""
    found = 0
    while found < count and met[0, found] != tokens:
        found += 1
    mean, steps = log(ratio), 1
    if found < count:
        steps = min(met[1, found] + 1, MEMORY)
        mean = means[found] + min(max(mean - means[found], -FARTHEST), FARTHEST) / steps
    else:
        count += 1
        if count > TIERS:  # the one met longest ago is forgotten
            found, count = 0, TIERS
    for k in range(found, count - 1):
        met[0, k], met[1, k], means[k] = met[0, k + 1], met[1, k + 1], means[k + 1]
    met[0, count - 1], met[1, count - 1], means[count - 1] = tokens, steps, mean
    return count


@njit
def tier_grains(met: Any, means: Any, count: int, grains: Any, found: Any) -> bool:
    """Corrections by tier, as (tokens, grains of the logarithm) in `grains` [2, TIERS]; without one 0. Whether they are
    others than those that were there. found: [2, TIERS] to work in."""
    total = 0.0
    for k in range(count):
        total += means[k]
    common = total / (count + COMMON_DOUBT)
    for k in range(grains.shape[1]):
        found[0, k] = found[1, k] = 0
    for k in range(count):
        found[0, k] = met[0, k]
        found[1, k] = np.int64(np.rint((means[k] - common) * met[1, k] / (met[1, k] + DOUBT) / GRAIN))
    alike = _covered(found, grains) and _covered(grains, found)
    for k in range(grains.shape[1]):
        grains[0, k], grains[1, k] = found[0, k], found[1, k]
    return not alike


@njit
def _covered(some: Any, others: Any) -> bool:
    """Whether all corrections of `some` are those of `others`."""
    for k in range(some.shape[1]):
        if some[1, k] != 0:
            known = False
            for other in range(others.shape[1]):
                known = known or (others[0, other] == some[0, k] and others[1, other] == some[1, k])
            if not known:
                return False
    return True
