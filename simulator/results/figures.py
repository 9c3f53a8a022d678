"""For every figure, whether more of it is better; and which one a user means by a short name."""

from __future__ import annotations

from sglang_dspark.errors import InputError

_MORE = (
    "accept_length",
    "cached_prompt_share",
    "completed",
    "input_throughput",
    "max_output_tokens_per_s",
    "output_throughput",
    "request_goodput",
    "request_throughput",
    "slo_attainment",
    "sustained_request_rate",
    "tau",
    "total_throughput",
)
_LESS = ("backlog_requests", "beyond_probes_share", "duration", "failed", "overload", "retractions", "wasted_share")


def more_is_better(figure: str, known: dict[str, float]) -> bool:
    """Whether more of a figure is better. known: the figures of a run.

    Errors: InputError for one that a run does not have, and for one that is neither good nor bad, such as a batch size.
    """
    good = [name for name in known if _direction(name) is not None]
    if figure not in known:
        raise InputError(f"figure '{figure}' is unknown, expected one of {', '.join(good)}")
    found = _direction(figure)
    if found is None:
        raise InputError(f"figure '{figure}' is neither good nor bad, expected one of {', '.join(good)}")
    return found


def _direction(figure: str) -> bool | None:
    name = figure.removeprefix("steady_").partition(".")[0]
    if name in _MORE:
        return True
    return False if name in _LESS or name.endswith("_ms") else None
