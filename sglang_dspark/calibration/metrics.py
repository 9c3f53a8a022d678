"""How good confidences are: calibration error, reliability bins, discrimination. All of survivals, per position."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

NUM_BINS = 15
"""Equal-width bins, as in the paper and in SGLang's fitting tool."""

_EPSILON = 1e-8


@dataclass(frozen=True)
class Reliability:
    """Bins of predicted survival: mean predicted, mean observed, and weight of each bin, [NUM_BINS] (NaN if empty)."""

    predicted: Floats
    observed: Floats
    weight: Floats


def bin_sums(predicted: Floats, survived: Floats, weight: Floats) -> Floats:
    """[3, NUM_BINS]: per bin the sums of weight, weighted prediction and weighted outcome. Inputs are [N]."""
    index = np.minimum((np.clip(predicted, _EPSILON, 1 - _EPSILON) * NUM_BINS).astype(np.int64), NUM_BINS - 1)
    sums = [np.bincount(index, weights=values, minlength=NUM_BINS) for values in (weight, weight * predicted)]
    return np.stack([*sums, np.bincount(index, weights=weight * survived, minlength=NUM_BINS)])


def ece_of_sums(sums: Floats) -> Floats:
    """Expected calibration error from `bin_sums`: [..., 3, NUM_BINS] gives [...]."""
    total = sums[..., 0, :].sum(axis=-1)
    return np.asarray(np.abs(sums[..., 1, :] - sums[..., 2, :]).sum(axis=-1) / np.maximum(total, _EPSILON))


def expected_calibration_error(predicted: Floats, survived: Floats, weight: Floats | None = None) -> float:
    """Mean |predicted - observed| over equal-width bins, weighted by their share. Inputs are [N]."""
    weight = np.ones(len(predicted)) if weight is None else weight
    return float(ece_of_sums(bin_sums(predicted, survived.astype(np.float64), weight)))


def reliability(predicted: Floats, survived: Floats, weight: Floats | None = None) -> Reliability:
    """The reliability diagram's bins. Inputs are [N]."""
    weight = np.ones(len(predicted)) if weight is None else weight
    count, mean, seen = bin_sums(predicted, survived.astype(np.float64), weight)
    filled = np.where(count > 0, count, np.nan)
    return Reliability(mean / filled, seen / filled, count)


def area_under_curve(predicted: Floats, survived: Floats) -> float:
    """The chance that a survivor was predicted higher than a non-survivor, ties half; NaN if one kind is missing."""
    positives = int(survived.sum())
    negatives = len(survived) - positives
    if positives == 0 or negatives == 0:
        return float("nan")
    _, inverse, counts = np.unique(predicted, return_inverse=True, return_counts=True)
    rank = np.cumsum(counts) - (counts - 1) / 2.0
    above = rank[inverse][survived.astype(bool)].sum() - positives * (positives + 1) / 2
    return float(above / (positives * negatives))
