"""When a request came: SGLang's HTTP process knows, its scheduler has a field for it, and nothing carries it over.

Without this a record could only say when the scheduler took the request, up to a whole decode step later.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

_ASKED = "SGLANG_DSPARK_CARRY_ARRIVALS"


def forward_if_asked() -> None:
    """In every process that SGLang starts: what `forward` did in the first one."""
    if os.environ.get(_ASKED):
        forward()


def forward() -> None:
    """Let requests carry their time of arrival from this process to the next one; all read the machine's clock."""
    from sglang.srt.observability import req_time_stats

    os.environ[_ASKED] = "1"

    for stats in (req_time_stats.APIServerReqTimeStats, req_time_stats.DPControllerReqTimeStats):
        if not getattr(stats.__getstate__, "carries_arrival", False):
            stats.__getstate__ = _with_arrival(stats.__getstate__)


def _with_arrival(upstream: Callable[[Any], dict[str, Any]]) -> Callable[[Any], dict[str, Any]]:
    def wrapped(self: Any) -> dict[str, Any]:
        return {**upstream(self), "created_time": self.created_time}

    wrapped.carries_arrival = True  # type: ignore[attr-defined]
    return wrapped
