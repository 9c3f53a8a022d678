"""What a reader hands over: the rows of a trace file as columns, before anything is done to them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from simulator.traces.prefixes import PrefixBlocks
from simulator.traces.trace import MAX_ARRIVAL_S

#: Units in which a file's numeric stamps may count: how many make a second.
TIME_UNITS = {"s": 1.0, "ms": 1e3}


def stamp_range(time_unit: str) -> str:
    """Return what is expected of a numeric stamp, in words."""
    word = {"s": "seconds", "ms": "milliseconds"}[time_unit]
    return f"{word} 0 .. {MAX_ARRIVAL_S * TIME_UNITS[time_unit]:g}"


@dataclass(frozen=True, eq=False)
class RawRequests:
    """The rows of one file in file order; N is their number.

    Attributes:
        stamp: float64 [N], or int64 [N] of dates: arrivals on the file's own clock, in any order, finite; None: the
            file has none.
        input_length: int64 [N], prompt tokens, >= 0.
        output_length: int64 [N], generated tokens, >= 0.
        per_second: how many units of `stamp` make a second. Stamps stay as they are read until the clock's zero is
            known: a stamp then gives the same arrival, to the last bit, whatever rows stand beside it.
        domain: int16 [N], index into `domains`, or None.
        domains: names of the domains.
        request_id: names of the requests [N], or None.
        cached_length: int64 [N], prompt tokens in the prefix cache, or None.
        max_tokens: int64 [N], most tokens that the client asks for, or None.
        prefix_blocks: what the prompts begin with, or None.
        notes: what the file says of itself.
        foreign: whether stamps are to be sorted, shifted to 0 and jittered within their buckets, and requests
            without tokens skipped.
        origin: what the file says that it was made from.
    """

    stamp: np.ndarray | None
    input_length: np.ndarray
    output_length: np.ndarray
    per_second: float = 1.0
    domain: np.ndarray | None = None
    domains: tuple[str, ...] = ()
    request_id: tuple[str, ...] | None = None
    cached_length: np.ndarray | None = None
    max_tokens: np.ndarray | None = None
    prefix_blocks: PrefixBlocks | None = None
    notes: tuple[str, ...] = ()
    foreign: bool = True
    origin: str = ""

    @property
    def dated(self) -> bool:
        """Whether the stamps are dates, so that the clock's zero says nothing."""
        return self.stamp is not None and self.stamp.dtype.kind == "i"
