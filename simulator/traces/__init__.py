"""Request traces: readers with automatic detection, selection, rates, and the project's own format."""

from .formats import TRACE_FORMATS
from .load import first_requests, load_trace, scale_rate, window, with_poisson_arrivals
from .trace import Trace

__all__ = [
    "TRACE_FORMATS",
    "Trace",
    "first_requests",
    "load_trace",
    "scale_rate",
    "window",
    "with_poisson_arrivals",
]
