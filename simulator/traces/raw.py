"""What a reader hands over: the rows of a trace file as columns, before anything is done to them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class RawRequests:
    """The rows of one file in file order; N is their number.

    Attributes:
        stamp_s: float64 [N], arrivals in seconds on the file's own clock, in any order, finite.
        input_length: int64 [N], prompt tokens, >= 0.
        output_length: int64 [N], generated tokens, >= 0.
        domain: int16 [N], index into `domains`, or None.
        domains: names of the domains.
        request_id: names of the requests [N], or None.
        notes: what the file says of itself.
        foreign: whether stamps are to be sorted, shifted to 0 and jittered within their buckets, and requests
            without tokens skipped.
        origin: what the file says that it was made from.
    """

    stamp_s: np.ndarray
    input_length: np.ndarray
    output_length: np.ndarray
    domain: np.ndarray | None = None
    domains: tuple[str, ...] = ()
    request_id: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()
    foreign: bool = True
    origin: str = ""
