"""Tells when the profile no longer holds: measured step times against what the policy priced."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np

from sglang_dspark.serving.base.steps import StepRecord

logger = logging.getLogger(__name__)

WINDOW = 256
"""Steps with both times whose median ratio is one finding; single steps say nothing."""

TOLERANCE = 1.25
"""A profile holds while the median of measured / predicted stays within 1 / TOLERANCE .. TOLERANCE."""


class DriftWatch:
    """A `StepObserver`. ratio: median measured / predicted of the last full window; holds: None before the first one.

    A window beside the tolerance is logged when the one before held, and again when the profile holds once more.
    listeners are called with every window's ratio.
    """

    def __init__(self, profile: Callable[[], str | None]) -> None:
        """profile: the name of the profile in use, None without one."""
        self.ratio: float | None = None
        self.holds: bool | None = None
        self.windows = 0
        self.listeners: list[Callable[[float], None]] = []
        self._profile = profile
        self._ratios = np.empty(WINDOW)
        self._filled = 0

    def on_step(self, record: StepRecord) -> None:
        """Add one step that was priced and timed; forced and late steps are priced as what they verified."""
        predicted, measured = record.decision.predicted_s, record.step_s
        if predicted is None or measured is None or predicted <= 0:
            return
        self._ratios[self._filled] = measured / predicted
        self._filled += 1
        if self._filled == WINDOW:
            self._filled = 0
            self._judge(float(np.median(self._ratios)))

    def _judge(self, ratio: float) -> None:
        self.ratio = ratio
        self.windows += 1
        held, self.holds = self.holds is not False, 1 / TOLERANCE <= ratio <= TOLERANCE
        name = self._profile()
        if held and not self.holds:
            logger.warning(
                "profile %s no longer holds: decode steps take %.2f times what it says (median of %d); measure again "
                "with `dspark profile`",
                name,
                ratio,
                WINDOW,
            )
        elif not held and self.holds:
            logger.info("profile %s holds again: decode steps take %.2f times what it says", name, ratio)
        for listener in self.listeners:
            listener(ratio)

    def on_prefill(self, reqs: list[Any], num_tokens: int) -> None:
        """Prefills are not priced."""

    def on_finished(self, rid: str, natural_stop: bool) -> None:
        """Requests are not priced."""

    def on_switch(self, policy: str, since_step: int) -> None:
        """The profile stays."""

    def as_dict(self) -> dict[str, Any]:
        """For /server_info."""
        return {"measured_over_predicted": self.ratio, "holds": self.holds, "windows": self.windows}
