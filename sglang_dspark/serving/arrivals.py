"""When a request came: SGLang's HTTP process knows, its scheduler has a field for it, and nothing carries it over.

Without this a record could only say when the scheduler took the request, up to a whole decode step later.
"""

from __future__ import annotations

from typing import Any

TARGET = "sglang.srt.observability.req_time_stats.APIServerReqTimeStats.__getstate__"


def forward() -> None:
    """Let requests carry their time of arrival from this process to the scheduler; both read the machine's clock."""
    from sglang.srt.observability.req_time_stats import APIServerReqTimeStats

    upstream = APIServerReqTimeStats.__getstate__
    if getattr(upstream, "carries_arrival", False):
        return

    def with_arrival(self: Any) -> Any:
        return {**upstream(self), "created_time": self.created_time}

    with_arrival.carries_arrival = True  # type: ignore[attr-defined]
    APIServerReqTimeStats.__getstate__ = with_arrival
