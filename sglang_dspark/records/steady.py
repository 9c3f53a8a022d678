"""The steady part of a closed loop: SGLang's window, without the burst at its start."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

STEADY_RATIO = 0.95
"""Share of the most requests in flight that counts as full; SGLang's benchmark has no default for it."""

Floats = NDArray[np.float64]


def steady_window(
    sent_s: Floats,
    first_token_s: Floats,
    finish_s: Floats,
    full: int,
    ratio: float = STEADY_RATIO,
    grace_s: float = 0.0,
) -> tuple[float, float] | None:
    """(begin, end) in seconds of the steady part of a run, None where it has none.

    sent_s, first_token_s, finish_s: [N] of the requests that were served, in order of sending. full: requests of the
    first full batch. The window is that of `find_steady_state_window` (sglang 0.5.23, benchmark/steady_state.py): the
    longest stretch with at least `ratio` of the most requests in flight. It begins at the first send there; here it
    begins when each of the first `full` requests has its first token, since before that the batch is not yet full.
    grace_s: how long a client may take to answer a finish with its next request; below 20 in flight one answer that is
    late by a millisecond would end the stretch otherwise.
    """
    some = finish_s > sent_s
    if not some.any():
        return None
    _, in_flight = _in_flight(sent_s[some], finish_s[some])
    enough = max(1, int(np.ceil(in_flight.max() * ratio)))
    times, in_flight = _in_flight(sent_s[some], finish_s[some] + grace_s)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], in_flight >= enough, [False]])))
    begins, ends = times[edges[::2]], times[edges[1::2]]
    longest = int(np.argmax(ends - begins))
    begin, end = max(float(begins[longest]), float(first_token_s[:full].max())), float(ends[longest]) - grace_s
    return (begin, end) if begin < end else None


def _in_flight(sent_s: Floats, finish_s: Floats) -> tuple[Floats, NDArray[np.int64]]:
    """([n] times at which something changes, [n - 1] requests in flight between them)."""
    times, which = np.unique(np.concatenate([sent_s, finish_s]), return_inverse=True)
    changes = np.zeros(times.size, dtype=np.int64)
    np.add.at(changes, which, np.repeat([1, -1], sent_s.size))
    return times, np.cumsum(changes)[:-1]
