"""Correcting believed step times by the measured ones of earlier steps, tier by tier.

Comparing tiers is all that a scheduler does with step times: a belief that is off by one factor everywhere ranks them
rightly, one that is off tier by tier does not. What is learned is therefore the ratio of measured to believed time of
each executed tier, relative to the mean of all tiers met, so that a tier never met keeps its believed place.

Measured times of ended steps are past information, so the correction is as lossless as the belief itself.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from sglang_dspark.cost import StepPrices
from sglang_dspark.policies.arithmetic import Ints
from sglang_dspark.policies.elementary import log_of
from sglang_dspark.policies.state import StepTiming

MEMORY = 50
"""Steps in a tier after which the mean of its ratios forgets."""
TIERS = 32
"""Tiers that are remembered, the ones met last."""
FARTHEST = 0.7  # of one step's logarithm from the mean so far: a hiccup of the host is no price
DOUBT = 1.0  # steps that the believed place of a tier weighs
COMMON_DOUBT = 0.1  # tiers that "no common factor" weighs
GRAIN = 1 / 128  # of a logarithm: corrections change by 0.8 %, so that corrected prices can be kept

State = tuple[tuple[int, float, int], ...]
"""(executed tokens, mean logarithm of measured over believed seconds, steps) by tier, the one met last at the end."""
START: State = ()


def executed_tokens(prices: StepPrices, num_requests: int) -> Ints:
    """[n] int64: the tier that every admitted count is executed in, by its tokens (anchors included).

    Without a graph every count has a price of its own; there eight sizes an octave are told apart.
    """
    tokens = num_requests + prices.tier_top
    eager = np.arange(tokens.size) > prices.last_captured
    grain = np.left_shift(1, np.maximum(np.log2(np.maximum(tokens, 1)).astype(np.int64) - 3, 0))
    return np.where(eager, -(-tokens // grain) * grain, tokens)


def timing_of(prices: StepPrices, num_requests: int, admitted: int, measured_s: float) -> StepTiming:
    """An ended step's time beside the believed one; admitted: draft tokens, all requests together."""
    tokens = int(executed_of(prices, num_requests)[admitted])
    return StepTiming(tokens, prices.step_s(admitted), measured_s)


def followed(state: State, timing: StepTiming) -> State:
    """The state after one more measured step."""
    found = next((entry for entry in state if entry[0] == timing.tokens), None)
    ratio = log_of(timing.measured_s / timing.believed_s)
    if found is None:
        entry = (timing.tokens, ratio, 1)
    else:
        _, mean, steps = found
        steps = min(steps + 1, MEMORY)
        entry = (timing.tokens, mean + min(max(ratio - mean, -FARTHEST), FARTHEST) / steps, steps)
    kept = tuple(other for other in state if other is not found)[-(TIERS - 1) :]
    return (*kept, entry)


def corrections(state: State) -> tuple[tuple[int, int], ...]:
    """(executed tokens, correction in grains of the logarithm) of the tiers that need one, in order."""
    total = 0.0
    for _, mean, _ in state:  # one after the other: Python's own sum of floats is not the same in all its versions
        total += mean
    common = total / (len(state) + COMMON_DOUBT)
    found = ((tier, round((mean - common) * steps / (steps + DOUBT) / GRAIN)) for tier, mean, steps in state)
    return tuple(sorted((tier, grains) for tier, grains in found if grains))


@lru_cache(maxsize=128)
def corrected(prices: StepPrices, num_requests: int, by_tier: tuple[tuple[int, int], ...]) -> StepPrices:
    """Prices with the corrections of `corrections`; kept, as they change seldom."""
    executed, factor = executed_of(prices, num_requests), np.ones(prices.seconds.size)
    for tokens, grains in by_tier:
        factor[executed == tokens] = math.exp(grains * GRAIN)
    floor_seconds = factor / prices.floor_inverse
    return StepPrices(prices.seconds * factor, floor_seconds, prices.tier_top, prices.last_captured, prices.draft_s)


@lru_cache(maxsize=128)
def executed_of(prices: StepPrices, num_requests: int) -> Ints:
    """`executed_tokens`, kept."""
    return executed_tokens(prices, num_requests)
