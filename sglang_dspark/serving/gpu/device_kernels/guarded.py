"""An operation of ours that cannot end a server: from the first time on that it raises, SGLang's stands in for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sglang_dspark.serving.base.faults import Faults


class Guarded:
    """Calls `ours` until it raises, and `upstream`, which takes the same arguments, ever after.

    Both sample from the same law with coins of their own, so it does not matter which step the change falls on. A CUDA
    context that a kernel has poisoned is out of scope: nothing can be launched in it any more.
    """

    def __init__(
        self, name: str, ours: Callable[..., Any], upstream: Callable[..., Any], faults: Faults | None = None
    ) -> None:
        self.name, self.ours, self.upstream = name, ours, upstream
        self.given_up = False
        self._faults = faults or Faults()

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        if not self.given_up:
            try:
                return self.ours(*arguments, **named)
            except Exception as error:
                self.given_up = True
                self._faults.note(f"kernel {self.name}", error, "SGLang's own runs from now on")
        return self.upstream(*arguments, **named)
