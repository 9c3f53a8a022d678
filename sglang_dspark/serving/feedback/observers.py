"""Everyone who watches the steps of this process, as one `StepObserver`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sglang_dspark.serving.base.faults import Faults
from sglang_dspark.serving.base.steps import StepObserver, StepRecord


class Observers:
    """Passes every event on, in the order in which the observers were added; one that raises misses that event."""

    def __init__(self, faults: Faults, *observers: StepObserver) -> None:
        self._faults = faults
        self._observers = list(observers)

    def add(self, observer: StepObserver) -> None:
        """One more."""
        self._observers.append(observer)

    def on_step(self, record: StepRecord) -> None:
        """See `StepObserver`."""
        self._tell(lambda observer: observer.on_step(record))

    def on_prefill(self, reqs: list[Any], num_tokens: int) -> None:
        """See `StepObserver`."""
        self._tell(lambda observer: observer.on_prefill(reqs, num_tokens))

    def on_finished(self, rid: str, natural_stop: bool) -> None:
        """See `StepObserver`."""
        self._tell(lambda observer: observer.on_finished(rid, natural_stop))

    def on_switch(self, policy: str, since_step: int) -> None:
        """See `StepObserver`."""
        self._tell(lambda observer: observer.on_switch(policy, since_step))

    def settle(self) -> None:
        """The engine turns idle: whoever puts things off (`settle`) has to show them now."""
        for observer in self._observers:
            settle = getattr(observer, "settle", None)
            if settle is not None:
                with self._faults.caught(f"observer {type(observer).__name__}", "it shows less"):
                    settle()

    def _tell(self, event: Callable[[StepObserver], None]) -> None:
        for observer in self._observers:
            try:
                event(observer)
            except Exception as error:
                self._faults.note(f"observer {type(observer).__name__}", error, "it misses the event")
