"""The engine's counters as Prometheus metrics, under SGLang's --enable-metrics."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, get_args

from sglang_dspark.serving.base.steps import REASONS, StepRecord
from sglang_dspark.serving.feedback.figures import CalibrationMeter, StepFigures, figures_of
from sglang_dspark.serving.feedback.trial import TrialOutcome

_PREFIX = "sglang:dspark_"
_FAULTS = "What of sglang-dspark failed and was stepped over, by part."

TOKENS = (0, 1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048, 4096)
SECONDS = (0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.2, 0.5, 1.0, 2.0)
DECISION_SECONDS = (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 1e-1)
_SHOWN_EVERY_S = 0.25
PARTS = ("confidences", "decision", "publishes", "step outcome", "step record")
"""What can fail on the way of a step; other parts appear with their first failure."""


def sglangs_labels() -> dict[str, Any]:
    """The labels of SGLang's own scheduler metrics in this process (`SchedulerMetricsCollector`), so that both join."""
    from sglang.srt.disaggregation.utils import DisaggregationMode
    from sglang.srt.runtime_context import get_disagg, get_observability, get_parallel, get_schedule, get_serving

    parallel, disagg = get_parallel(), get_disagg()
    role = "dynamic" if disagg.enable_pd_role_switch else DisaggregationMode.to_engine_type(disagg.disaggregation_mode)
    labels = {
        "model_name": get_serving().served_model_name,
        "engine_type": role,
        "tp_rank": parallel.tp_rank,
        "pp_rank": parallel.pp_rank,
        "moe_ep_rank": parallel.moe_ep_rank,
    }
    if get_schedule().enable_priority_scheduling:
        labels["priority"] = ""
    if parallel.dp_rank is not None:
        labels["dp_rank"] = parallel.dp_rank
    return labels | dict(get_observability().extra_metric_labels or {})


class PrometheusObserver:
    """Counts steps and tokens, and shows the latest predicted and measured step time.

    Import it after SGLang has set PROMETHEUS_MULTIPROC_DIR; one object per process. Names follow Prometheus's
    conventions: base units, `_total` for what only grows; tokens are draft tokens unless the help says anchors.
    """

    def __init__(
        self,
        labels: dict[str, Any],
        recording: Callable[[], dict[str, Any] | None] = lambda: None,
        calibration: Callable[[], dict[str, float] | None] = lambda: None,
    ) -> None:
        """labels: those of SGLang's own metrics, so that both can be joined. recording: what the recorder says of
        itself, None without one. calibration: what online calibration has learned, None without it."""
        self._make = make = Made(labels)
        self._steps = {
            reason: make.counter("decode_steps", "Decode steps by what decided them.", reason=reason)
            for reason in REASONS
        }
        self._drafted = make.counter("drafted_tokens", "Draft tokens drawn.")
        self._verified = make.counter("verified_tokens", "Draft tokens verified.")
        self._expected = make.counter("expected_tokens", "Verified draft tokens that should be accepted, by survival.")
        self._accepted = make.counter("accepted_tokens", "Draft tokens accepted.")
        self._anchors = make.counter("anchor_tokens", "Tokens that a step verifies beside the drafts, one a request.")
        self._executed = make.counter("executed_tokens", "Tokens of the graphs that ran: drafts, anchors and padding.")
        self._shadow = make.counter("shadow_verified_tokens", "Draft tokens that the shadow policy would verify.")
        self._fallbacks = make.counter(
            "fallback_steps", "Decode steps in which a rule raised and its fallback decided."
        )
        self._certain = make.counter("certain_confidences", "Confidences of exactly 0 or 1, which order nothing.")
        self._predicted = make.gauge("predicted_step_seconds", "Step time that the profile gives.")
        self._measured = make.gauge("measured_step_seconds", "Step time until the next decode step.")
        self._drift = make.gauge("profile_drift", "Median of measured over predicted step time in the last window.")
        self._step_s = make.histogram("step_seconds", "Step times until the next decode step.", SECONDS)
        self._decide_s = make.histogram("decision_seconds", "Host time of deciding a step.", DECISION_SECONDS)
        self._budget = make.histogram("budget_tokens", "Draft tokens that a step verifies.", TOKENS)
        self._tier = make.histogram("tier_tokens", "Tokens of the graph that ran for a step, anchors included.", TOKENS)
        self._error = make.gauge("calibration_error", "Expected calibration error of confidences, last 4096 outcomes.")
        self._bias = make.gauge("calibration_bias", "Mean confidence less accepted share, over the same outcomes.")
        text = "Online calibration: logit c' = slope * logit c + shift; 1 and 0 without it."
        self._calibration = {key: make.gauge(f"calibration_{key}", text) for key in ("slope", "shift")}
        text = "Policies that were switched to on trial, by how it ended."
        self._trials = {outcome: make.counter("trials", text, outcome=outcome) for outcome in get_args(TrialOutcome)}
        self._positions: list[tuple[Any, Any, Any]] = []
        self._faults: dict[str, Any] = {}
        for part in PARTS:  # shown as 0 before the first one, so that an alert can be written
            self._faults[part] = make.counter("faults", _FAULTS, part=part)
        for nothing_yet in (self._drift, self._error, self._bias):
            nothing_yet.set(float("nan"))
        self._pending: dict[Any, float] = {}  # a write to a metric's file costs microseconds of the scheduler's thread
        self._shown_s = 0.0
        self._policy: tuple[str, Any] = ("", None)
        self._meter = CalibrationMeter()
        self._recording, self._learned = recording, calibration
        texts = {
            "written": ("records_written", "Records on disk."),
            "dropped": ("records_dropped", "Records that were dropped."),
            "stalled": ("recording_stalled", "1 while records cannot be written."),
        }
        self._records = {key: make.gauge(name, text) for key, (name, text) in texts.items()}

    def set_drift(self, ratio: float) -> None:
        """A listener of `DriftWatch`."""
        self._drift.set(ratio)

    def count_fault(self, what: str) -> None:
        """A listener of `Faults`."""
        if what not in self._faults:
            self._faults[what] = self._make.counter("faults", _FAULTS, part=what)
        self._faults[what].inc()

    def count_trial(self, outcome: TrialOutcome) -> None:
        """A listener of the engine's trials."""
        self._trials[outcome].inc()

    def _show_recording(self) -> None:
        found = self._recording()
        if found is not None:
            for key, metric in self._records.items():
                metric.set(float(found[key]))

    def on_step(self, record: StepRecord) -> None:
        """Add one step."""
        verified = int(record.lengths.sum())
        self._steps[record.decision.reason].inc()
        self._add(self._drafted, record.confidence.size)
        self._add(self._verified, verified)
        self._add(self._accepted, int(record.accepted.sum()))
        self._add(self._anchors, record.batch.num_requests)
        self._add(self._executed, record.executed_tokens)
        self._budget.observe(verified)
        self._tier.observe(record.executed_tokens)
        self._decide_s.observe(record.decide_s)
        if record.decision.fault is not None:
            self._fallbacks.inc()
        if record.shadow is not None and record.shadow.total is not None:
            self._add(self._shadow, record.shadow.total)
        if record.decision.predicted_s is not None:
            self._predicted.set(record.decision.predicted_s)
        if record.step_s is not None:
            self._measured.set(record.step_s)
            self._step_s.observe(record.step_s)
        self._show_beliefs(figures_of(record))
        self._show_policy(record.policy)
        if time.monotonic() - self._shown_s > _SHOWN_EVERY_S:
            self.settle()

    def settle(self) -> None:
        """Show what has come together; the engine calls it when it turns idle."""
        for metric, value in self._pending.items():
            metric.inc(value)
        self._pending.clear()
        self._shown_s = time.monotonic()
        self._show_recording()
        learned = self._learned() or {"slope": 1.0, "shift": 0.0}
        for key, metric in self._calibration.items():
            metric.set(learned[key])

    def _add(self, metric: Any, value: float) -> None:
        if value:
            self._pending[metric] = self._pending.get(metric, 0) + value

    def _show_beliefs(self, found: StepFigures) -> None:
        self._add(self._expected, float(found.expected.sum()))
        self._add(self._certain, found.certain)
        if not self._positions:
            kinds = ("verified", "expected", "accepted")
            self._positions = [
                tuple(
                    self._make.counter(
                        f"position_{kind}_tokens", f"Draft tokens {kind}, by position.", position=str(at)
                    )
                    for kind in kinds
                )
                for at in range(1, len(found.verified) + 1)
            ]
        for counters, *values in zip(self._positions, found.verified, found.expected, found.accepted, strict=True):
            for counter, value in zip(counters, values, strict=True):
                self._add(counter, float(value))
        if self._meter.add(found.outcomes):
            self._error.set(self._meter.error)
            self._bias.set(self._meter.bias)

    def _show_policy(self, policy: str) -> None:
        shown, gauge = self._policy
        if policy == shown:
            return
        if gauge is not None:
            gauge.set(0)
        found = self._make.gauge("policy_info", "1 for the policy that decides, 0 for those before it.", policy=policy)
        found.set(1)
        self._policy = (policy, found)

    def on_prefill(self, reqs: list[Any], num_tokens: int) -> None:
        """SGLang counts prefills."""

    def on_finished(self, rid: str, natural_stop: bool) -> None:
        """SGLang counts requests."""
        self._show_recording()

    def on_switch(self, policy: str, since_step: int) -> None:
        """A switch shows in the counters' slopes, and in `policy_info` with the first step."""


class Made:
    """Metrics of this package by name, with SGLang's labels filled in and ours after them."""

    def __init__(self, labels: dict[str, Any]) -> None:
        self._labels = labels
        self._parents: dict[str, Any] = {}

    def counter(self, name: str, text: str, **more: str) -> Any:
        """A counter; Prometheus adds `_total` to its name."""
        from prometheus_client import Counter

        return self._child(name, more, lambda names: Counter(_PREFIX + name, text, names))

    def gauge(self, name: str, text: str, **more: str) -> Any:
        """A gauge that shows the latest value of any process."""
        from prometheus_client import Gauge

        return self._child(name, more, lambda names: Gauge(_PREFIX + name, text, names, multiprocess_mode="mostrecent"))

    def histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Any:
        """A histogram with these upper bounds."""
        from prometheus_client import Histogram

        return self._child(name, {}, lambda names: Histogram(_PREFIX + name, text, names, buckets=buckets))

    def _child(self, name: str, more: dict[str, str], make: Callable[[list[str]], Any]) -> Any:
        if name not in self._parents:
            self._parents[name] = make([*self._labels, *more])
        return self._parents[name].labels(*self._labels.values(), *more.values())
