"""The steady part of a closed loop: SGLang's window, without the burst at its start."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

STEADY_RATIO = 0.95
"""Share of the most requests in flight that counts as full; SGLang's benchmark has no default for it."""

Floats = NDArray[np.float64]


def steady_window(
    sent_s: Floats, first_token_s: Floats, finish_s: Floats, full: int, ratio: float = STEADY_RATIO
) -> tuple[float, float] | None:
    """(begin, end) in seconds of the steady part of a run, None where it has none.

    sent_s, first_token_s, finish_s: [N] of the requests that were served, in order of sending. full: requests of the
    first full batch. The window is that of `find_steady_state_window` (sglang 0.5.23, benchmark/steady_state.py): the
    longest stretch with at least `ratio` of the most requests in flight. It begins at the first send there; here it
    begins when each of the first `full` requests has its first token, since before that the batch is not yet full.
    """
    window = _sglang_window(sent_s, finish_s, ratio)
    if window is None:
        return None
    begin = max(window[0], float(first_token_s[:full].max()))
    return (begin, window[1]) if begin < window[1] else None


def _sglang_window(sent_s: Floats, finish_s: Floats, ratio: float) -> tuple[float, float] | None:
    some = finish_s > sent_s
    at = np.concatenate([sent_s[some], finish_s[some]])
    if at.size == 0:
        return None
    times, which = np.unique(at, return_inverse=True)
    changes = np.zeros(times.size, dtype=np.int64)
    np.add.at(changes, which, np.repeat([1, -1], at.size // 2))
    in_flight = np.cumsum(changes)[:-1]
    enough = in_flight >= max(1, int(np.ceil(in_flight.max() * ratio)))
    edges = np.flatnonzero(np.diff(np.concatenate([[False], enough, [False]])))
    begins, ends = times[edges[::2]], times[edges[1::2]]
    longest = int(np.argmax(ends - begins))
    return float(begins[longest]), float(ends[longest])
