"""The engine's counters as Prometheus metrics, under SGLang's --enable-metrics."""

from __future__ import annotations

from typing import Any

from sglang_dspark.serving.base.steps import REASONS, StepRecord

_PREFIX = "sglang:dspark_"


class PrometheusObserver:
    """Counts steps and tokens, and shows the latest predicted and measured step time.

    Import it after SGLang has set PROMETHEUS_MULTIPROC_DIR; one object per process.
    """

    def __init__(self, labels: dict[str, str]) -> None:
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

    def set_drift(self, ratio: float) -> None:
        """A listener of `DriftWatch`."""
        self._drift.set(ratio)

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

    def on_prefill(self, reqs: list[Any], num_tokens: int) -> None:
        """SGLang counts prefills."""

    def on_finished(self, rid: str, natural_stop: bool) -> None:
        """SGLang counts requests."""

    def on_switch(self, policy: str, since_step: int) -> None:
        """A switch shows in the counters' slopes."""
