"""Everyone who watches the steps of this process, as one `StepObserver`."""

from __future__ import annotations

from typing import Any

from sglang_dspark.serving.base.steps import StepObserver, StepRecord


class Observers:
    """Passes every event on, in the order in which the observers were added."""

    def __init__(self, *observers: StepObserver) -> None:
        self._observers = list(observers)

    def add(self, observer: StepObserver) -> None:
        """One more."""
        self._observers.append(observer)

    def on_step(self, record: StepRecord) -> None:
        """See `StepObserver`."""
        for observer in self._observers:
            observer.on_step(record)

    def on_prefill(self, reqs: list[Any], num_tokens: int) -> None:
        """See `StepObserver`."""
        for observer in self._observers:
            observer.on_prefill(reqs, num_tokens)

    def on_finished(self, rid: str, natural_stop: bool) -> None:
        """See `StepObserver`."""
        for observer in self._observers:
            observer.on_finished(rid, natural_stop)

    def on_switch(self, policy: str, since_step: int) -> None:
        """See `StepObserver`."""
        for observer in self._observers:
            observer.on_switch(policy, since_step)
