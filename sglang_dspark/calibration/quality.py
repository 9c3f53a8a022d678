"""How a drafter and its confidences do on blocks of one data set: the paper's Table 1 and Figures 2, 5 and 6."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sglang_dspark.calibration.metrics import area_under_curve, expected_calibration_error

THRESHOLDS = tuple(round(0.05 * step, 2) for step in range(20))


@dataclass(frozen=True)
class ThresholdPoint:
    """One point of Figure 5: verify until the first confidence below `threshold`.

    accept_length: tokens a step, bonus included. rejected: verified draft tokens a step that were not accepted.
    acceptance_rate: accept_length / (accept_length + rejected), as in the paper.
    """

    threshold: float
    accept_length: float
    rejected: float
    acceptance_rate: float


@dataclass(frozen=True)
class Quality:
    """Of N full blocks. Lists run over positions 1..gamma.

    accept_length: mean depth + 1. conditional: acceptance given that the positions before were accepted (Figure 2).
    survival: share of blocks accepted up to there. predicted: mean predicted survival. ece, auc: of the survivals
    (Figure 6). sweep: Figure 5. Without confidences the last four are empty.
    """

    blocks: int
    accept_length: float
    conditional: list[float]
    survival: list[float]
    predicted: list[float]
    ece: list[float]
    auc: list[float]
    sweep: list[ThresholdPoint]


def quality(depth: NDArray[np.int64], confidence: NDArray[np.float32] | None, gamma: int) -> Quality:
    """Quality of blocks with accepted depth [N] and confidences [N, gamma] (None without a confidence head)."""
    positions = range(gamma)
    reached = [float((depth >= position).mean()) for position in range(gamma + 1)]
    conditional = [reached[p + 1] / reached[p] if reached[p] else float("nan") for p in positions]
    predicted: list[float] = []
    ece: list[float] = []
    auc: list[float] = []
    sweep: list[ThresholdPoint] = []
    if confidence is not None:
        product = np.multiply.accumulate(confidence.astype(np.float64), axis=1)
        predicted = [float(product[:, p].mean()) for p in positions]
        ece = [expected_calibration_error(product[:, p], (depth > p).astype(np.float64)) for p in positions]
        auc = [area_under_curve(product[:, p], (depth > p).astype(np.float64)) for p in positions]
        sweep = [_threshold(depth, confidence, threshold) for threshold in THRESHOLDS]
    mean = float(depth.mean()) + 1.0
    return Quality(len(depth), mean, conditional, reached[1:], predicted, ece, auc, sweep)


def _threshold(depth: NDArray[np.int64], confidence: NDArray[np.float32], threshold: float) -> ThresholdPoint:
    lengths = np.logical_and.accumulate(confidence >= np.float32(threshold), axis=1).sum(axis=1)
    accepted = np.minimum(depth, lengths)
    tokens, rejected = float(accepted.mean()) + 1.0, float((lengths - accepted).mean())
    return ThresholdPoint(threshold, tokens, rejected, tokens / (tokens + rejected))
