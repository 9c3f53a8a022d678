"""The engine's counters as Prometheus metrics, under SGLang's --enable-metrics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

from sglang_dspark.serving.base.steps import REASONS, StepRecord
from sglang_dspark.serving.feedback.trial import TrialOutcome

_PREFIX = "sglang:dspark_"


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

    Import it after SGLang has set PROMETHEUS_MULTIPROC_DIR; one object per process.
    """

    def __init__(
        self,
        labels: dict[str, Any],
        recording: Callable[[], dict[str, Any] | None] = lambda: None,
        calibration: Callable[[], dict[str, float] | None] = lambda: None,
    ) -> None:
        """labels: those of SGLang's own metrics, so that both can be joined. recording: what the recorder says of
        itself, None without one. calibration: what online calibration has learned, None without it."""
        from prometheus_client import Counter, Gauge

        names = list(labels)

        def counter(name: str, text: str, *more: str) -> Any:
            return Counter(_PREFIX + name, text, [*names, *more])

        def gauge(name: str, text: str, *more: str) -> Any:
            return Gauge(_PREFIX + name, text, [*names, *more], multiprocess_mode="mostrecent")

        steps = counter("decode_steps", "Decode steps by what decided them.", "reason")
        self._steps = {reason: steps.labels(*labels.values(), reason) for reason in REASONS}
        self._drafted = counter("drafted_tokens", "Draft tokens drawn.").labels(*labels.values())
        self._verified = counter("verified_tokens", "Draft tokens verified.").labels(*labels.values())
        self._accepted = counter("accepted_tokens", "Draft tokens accepted.").labels(*labels.values())
        self._shadow = counter("shadow_verified_tokens", "Draft tokens that the shadow policy would verify.").labels(
            *labels.values()
        )
        self._predicted = gauge("predicted_step_seconds", "Step time that the profile gives.").labels(*labels.values())
        self._measured = gauge("measured_step_seconds", "Step time until the next decode step.").labels(
            *labels.values()
        )

        drift = gauge("profile_drift", "Median of measured over predicted step time in the last window of steps.")
        self._drift = drift.labels(*labels.values())
        self._faults = counter("faults", "What of sglang-dspark failed and was stepped over, by part.", "part")
        trials = counter("trials", "Policies that were switched to on trial, by how it ended.", "outcome")
        self._trials = {outcome: trials.labels(*labels.values(), outcome) for outcome in get_args(TrialOutcome)}
        self._values = tuple(labels.values())
        self._recording, self._learned = recording, calibration
        text = "Online calibration: logit c' = slope * logit c + shift; 1 and 0 without it."
        self._calibration = {
            key: gauge(f"calibration_{key}", text).labels(*labels.values()) for key in ("slope", "shift")
        }
        texts = {
            "written": ("records_written", "Records on disk."),
            "dropped": ("records_dropped", "Records that were dropped."),
            "stalled": ("recording_stalled", "1 while records cannot be written."),
        }
        self._records = {key: gauge(name, text).labels(*labels.values()) for key, (name, text) in texts.items()}

    def set_drift(self, ratio: float) -> None:
        """A listener of `DriftWatch`."""
        self._drift.set(ratio)

    def count_fault(self, what: str) -> None:
        """A listener of `Faults`."""
        self._faults.labels(*self._values, what).inc()

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
        self._steps[record.decision.reason].inc()
        self._drafted.inc(record.confidence.size)
        self._verified.inc(int(record.lengths.sum()))
        self._accepted.inc(int(record.accepted.sum()))
        if record.shadow is not None and record.shadow.total is not None:
            self._shadow.inc(record.shadow.total)
        if record.decision.predicted_s is not None:
            self._predicted.set(record.decision.predicted_s)
        if record.step_s is not None:
            self._measured.set(record.step_s)
        self._show_recording()
        learned = self._learned() or {"slope": 1.0, "shift": 0.0}
        for key, metric in self._calibration.items():
            metric.set(learned[key])

    def on_prefill(self, reqs: list[Any], num_tokens: int) -> None:
        """SGLang counts prefills."""

    def on_finished(self, rid: str, natural_stop: bool) -> None:
        """SGLang counts requests."""
        self._show_recording()

    def on_switch(self, policy: str, since_step: int) -> None:
        """A switch shows in the counters' slopes."""
