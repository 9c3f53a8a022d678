"""Counters of what was decided and what came of it; read back through /server_info and Prometheus."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, field
from typing import Any

from sglang_dspark.serving.base.steps import REASONS, StepRecord
from sglang_dspark.serving.feedback.figures import figures_of
from sglang_dspark.statistics import accept_length

logger = logging.getLogger(__name__)

_RECENT = 0.05  # weight of the newest step in the running means


@dataclass
class Counters:
    """Sums since start. Tokens are draft tokens; `anchors` counts the one token a request that is always verified.

    predicted_s, measured_s: sums over the steps that have both, so that their ratio is the drift of the profile.
    executed_tokens: of the padded graph, or as verified, anchors included. expected_tokens: draft tokens that should
    have been accepted by their survivals; position_*: [gamma] the same by position. fallback_steps: a rule raised, and
    its class's fallback decided. certain_confidences: of exactly 0 or 1. decide_s: host time of decisions. priced_*:
    over the steps of the present policy that the profile prices: expected tokens (bonus included) and seconds as
    decided, and had everything been verified.
    timed_*: over the steps that have a measured time: their number, seconds, requests, verified tokens (anchors
    included), executed tokens (of the padded graph, or as verified) and committed tokens (bonus included).
    """

    decode_steps: int = 0
    steps_by_reason: dict[str, int] = field(default_factory=lambda: dict.fromkeys(REASONS, 0))
    anchors: int = 0
    drafted_tokens: int = 0
    verified_tokens: int = 0
    accepted_tokens: int = 0
    executed_tokens: int = 0
    expected_tokens: float = 0.0
    position_verified: list[int] = field(default_factory=list)
    position_accepted: list[int] = field(default_factory=list)
    position_expected: list[float] = field(default_factory=list)
    fallback_steps: int = 0
    certain_confidences: int = 0
    decide_s: float = 0.0
    priced_tokens: float = 0.0
    priced_s: float = 0.0
    priced_everything_tokens: float = 0.0
    priced_everything_s: float = 0.0
    timed_steps: int = 0
    timed_s: float = 0.0
    timed_requests: int = 0
    timed_verified: int = 0
    timed_executed: int = 0
    timed_committed: int = 0
    compared_steps: int = 0
    predicted_s: float = 0.0
    measured_s: float = 0.0
    recent_predicted_s: float | None = None
    recent_measured_s: float | None = None
    shadow_steps: int = 0
    shadow_verified_tokens: int = 0
    shadow_equal_steps: int = 0

    def on_step(self, record: StepRecord) -> None:
        """Add one step."""
        self.decode_steps += 1
        self.steps_by_reason[record.decision.reason] += 1
        self.anchors += record.batch.num_requests
        self.drafted_tokens += int(record.confidence.size)
        self.verified_tokens += int(record.lengths.sum())
        self.accepted_tokens += int(record.accepted.sum())
        self.executed_tokens += record.executed_tokens
        self.fallback_steps += int(record.decision.fault is not None)
        self.decide_s += record.decide_s
        self._beliefs(record)
        self._times(record)
        if record.shadow is not None and record.shadow.total is not None:
            self.shadow_steps += 1
            self.shadow_verified_tokens += record.shadow.total
            self.shadow_equal_steps += int(record.shadow.total == int(record.lengths.sum()))

    def on_prefill(self, reqs: list[Any], num_tokens: int) -> None:
        """Prefills are counted by SGLang."""

    def on_finished(self, rid: str, natural_stop: bool) -> None:
        """Requests are counted by SGLang."""

    def on_switch(self, policy: str, since_step: int) -> None:
        """The running means and what was priced belong to one policy."""
        self.recent_predicted_s = self.recent_measured_s = None
        self.priced_tokens = self.priced_s = self.priced_everything_tokens = self.priced_everything_s = 0.0

    def _beliefs(self, record: StepRecord) -> None:
        found, requests = figures_of(record), record.batch.num_requests
        expected = float(found.expected.sum())
        self.expected_tokens += expected
        self.certain_confidences += found.certain
        self.position_verified = _added(self.position_verified, found.verified)
        self.position_accepted = _added(self.position_accepted, found.accepted)
        self.position_expected = _added(self.position_expected, found.expected)
        if record.decision.predicted_s is not None and record.everything_s is not None:
            self.priced_tokens += requests + expected
            self.priced_s += record.decision.predicted_s
            self.priced_everything_tokens += requests + found.block_expected
            self.priced_everything_s += record.everything_s

    def _times(self, record: StepRecord) -> None:
        predicted, measured = record.decision.predicted_s, record.step_s
        if measured is not None:
            requests = record.batch.num_requests
            self.timed_steps += 1
            self.timed_s += measured
            self.timed_requests += requests
            self.timed_verified += record.verified_tokens
            self.timed_executed += record.executed_tokens
            self.timed_committed += requests + int(record.accepted.sum())
            self.recent_measured_s = _running(self.recent_measured_s, measured)
        if predicted is not None:
            self.recent_predicted_s = _running(self.recent_predicted_s, predicted)
        if predicted is not None and measured is not None:
            self.compared_steps += 1
            self.predicted_s += predicted
            self.measured_s += measured

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, with the mean accepted length (bonus included)."""
        values = asdict(self)
        values["mean_accept_length"] = accept_length(self.accepted_tokens, self.anchors) if self.anchors else None
        return values


class ShadowLog:
    """An observer that says every `EVERY` decode steps how the shadow's decisions compare."""

    EVERY = 1000

    def __init__(self, shadow: str) -> None:
        self._shadow = shadow
        self._steps = self._live_tokens = self._shadow_tokens = self._equal = 0

    def on_step(self, record: StepRecord) -> None:
        """Count, and log when enough steps have come together."""
        if record.shadow is None or record.shadow.total is None:
            return
        live = int(record.lengths.sum())
        self._steps += 1
        self._live_tokens += live
        self._shadow_tokens += record.shadow.total
        self._equal += int(live == record.shadow.total)
        if self._steps == self.EVERY:
            logger.info(
                "DSpark shadow %s: %.1f draft tokens a step where %s verified %.1f; equal in %.0f %% of %d steps",
                *(self._shadow, self._shadow_tokens / self._steps, record.policy, self._live_tokens / self._steps),
                *(100 * self._equal / self._steps, self._steps),
            )
            self._steps = self._live_tokens = self._shadow_tokens = self._equal = 0

    def on_prefill(self, rids: list[str], num_tokens: int) -> None:
        """Not a decision."""

    def on_finished(self, rid: str, natural_stop: bool) -> None:
        """Not a decision."""

    def on_switch(self, policy: str, since_step: int) -> None:
        """Compare with one policy at a time."""
        self._steps = self._live_tokens = self._shadow_tokens = self._equal = 0


def _added(sums: list[Any], values: Any) -> list[Any]:
    """[gamma] sums with one step more."""
    return values.tolist() if not sums else [first + more for first, more in zip(sums, values.tolist(), strict=True)]


def _running(mean: float | None, value: float) -> float:
    return value if mean is None else mean + _RECENT * (value - mean)
