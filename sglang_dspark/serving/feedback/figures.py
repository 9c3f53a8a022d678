"""What a step says about its policy's beliefs: expected against accepted tokens, by position, and calibration."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sglang_dspark.calibration.metrics import NUM_BINS, bin_sums, ece_of_sums
from sglang_dspark.policies import SCALE, LiveBlock
from sglang_dspark.policies.arithmetic import Ints
from sglang_dspark.policies.calibration import corrected_block
from sglang_dspark.serving.base.steps import StepRecord

Floats = NDArray[np.float64]

WINDOW = 4096
"""Outcomes of one finding about calibration."""


@dataclass(frozen=True, slots=True)
class StepFigures:
    """Of one step, as the policy saw its confidences (corrected where it corrects them).

    verified, accepted: [gamma] requests whose token at that position was; expected: [gamma] how many were to be
    accepted, by survival. block_expected: the same over whole blocks. certain: confidences of exactly 0 or 1.
    outcomes: [3, NUM_BINS] `bin_sums` of the confidence of every token that was tried (verified, and everything before
    it accepted) and of whether it was accepted.
    """

    verified: Ints
    accepted: Ints
    expected: Floats
    block_expected: float
    certain: int
    outcomes: Floats


def figures_of(record: StepRecord) -> StepFigures:
    """The figures of a step whose values are on the host; computed once."""
    if record.figures is None:
        record.figures = _figures(record)
    found: StepFigures = record.figures
    return found


def _figures(record: StepRecord) -> StepFigures:
    block = corrected_block(LiveBlock.of(record.confidence), record.correction)
    assert block.confidence is not None
    survival = block.units / SCALE
    position = np.arange(record.confidence.shape[1])
    verified = position < record.lengths[:, None]
    accepted = position < record.accepted[:, None]
    tried = verified & (position <= record.accepted[:, None])
    outcomes = bin_sums(
        block.confidence[tried].astype(np.float64), accepted[tried].astype(np.float64), np.ones(int(tried.sum()))
    )
    certain = int(np.count_nonzero((record.confidence <= 0) | (record.confidence >= 1)))
    expected = np.where(verified, survival, 0.0).sum(axis=0)
    sums = verified.sum(axis=0), accepted.sum(axis=0), expected
    return StepFigures(*sums, float(survival.sum()), certain, outcomes)


@dataclass
class CalibrationMeter:
    """Whether confidences mean what they say, over the last `WINDOW` outcomes or more.

    error: expected calibration error; bias: mean confidence less the accepted share, above 0 where the draft is too
    sure of itself. Both None before the first full window.
    """

    error: float | None = None
    bias: float | None = None
    outcomes: int = 0
    _sums: Floats = field(default_factory=lambda: np.zeros((3, NUM_BINS)))

    def add(self, sums: Floats) -> bool:
        """Take a step's outcomes in; whether a window was completed by it."""
        self._sums += sums
        if self._sums[0].sum() < WINDOW:
            return False
        self.error, (count, said, seen) = float(ece_of_sums(self._sums)), self._sums.sum(axis=1)
        self.bias, self.outcomes = float((said - seen) / count), int(count)
        self._sums = np.zeros((3, NUM_BINS))
        return True

    def so_far(self) -> dict[str, Any]:
        """Plain values for JSON: of the last full window, or of what there is before it."""
        if self.error is not None:
            return {"error": self.error, "bias": self.bias, "outcomes": self.outcomes}
        count, said, seen = self._sums.sum(axis=1)
        if not count:
            return {"error": None, "bias": None, "outcomes": 0}
        return {
            "error": float(ece_of_sums(self._sums)),
            "bias": float((said - seen) / count),
            "outcomes": int(count),
        }
