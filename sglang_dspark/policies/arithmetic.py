"""The one arithmetic of every policy: survivals as integers, the admission order, Theta in float64.

NumPy, the Triton interpreter and a GPU give the same bits: survival is a left-to-right float32 product rounded to a
multiple of 2^-24, sums are int64, and Theta is the float64 product tau * (1/T) (design.md 3).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sglang_dspark.errors import InputError
from sglang_dspark.jit import policy_loops

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

SCALE = 1 << 24
"""Survival 1.0 in units of 2^-24."""

SPARE = 3 * 512
"""Room that compiled code sorts in, besides that for the values: three digits of nine bits hold a survival."""

NO_CAPS: Ints = np.empty(0, dtype=np.int64)
"""For compiled code, where no request has a cap of its own."""


def plain(array: NDArray[Any]) -> NDArray[Any]:
    """The array as compiled code takes it, contiguous and writable: a copy if need be."""
    return array if array.flags.carray else array.copy()


def sealed(array: NDArray[Any]) -> NDArray[Any]:
    """The array as compiled code takes tables, contiguous and read-only: a view if it can be written to."""
    if not array.flags.writeable and array.flags.c_contiguous:
        return array
    view = np.ascontiguousarray(array).view()
    view.setflags(write=False)
    return view


def survival_units(confidence: NDArray[np.float32]) -> Ints:
    """Survivals of a block as integers.

    confidence: [R, gamma] float32 in [0, 1], the chance that token j survives given that its predecessors did.
    Returns [R, gamma] int64 in 0..2^24, non-increasing along gamma. A confidence that is no probability (NaN, infinite
    or outside 0..1) counts as 0: the survival is 0 from that position on.
    """
    confidence = probabilities(confidence)
    loops = policy_loops()
    if loops is not None and confidence.dtype == np.float32:
        out = np.empty(confidence.shape, dtype=np.int64)
        loops.survival_units(plain(confidence), out)
        return out
    survival = np.multiply.accumulate(confidence, axis=1, dtype=np.float32)
    return np.rint(survival * np.float32(SCALE)).astype(np.int64)


def probabilities(confidence: NDArray[np.float32]) -> NDArray[np.float32]:
    """The confidences themselves where all lie in 0..1; else a copy in which those that do not are 0.

    A confidence depends on the request's own earlier draft tokens alone, so counting it as 0 depends on no more;
    "verify everything" instead would leak (TV 0.064).
    """
    if confidence.size == 0 or (confidence.min() >= 0 and confidence.max() <= 1):  # NaN compares false
        return confidence
    return np.where((confidence >= 0) & (confidence <= 1), confidence, np.float32(0))


def check_confidence(confidence: NDArray[np.float32]) -> None:
    """Refuse confidences that are no probabilities; NaN would sort anywhere."""
    if not bool(np.all((confidence >= 0) & (confidence <= 1))):
        bad = confidence[~((confidence >= 0) & (confidence <= 1))].ravel()[0]
        raise InputError(f"a confidence is {bad}, expected a number in 0..1")


class Keys:
    """One sortable integer a candidate, for R requests and positions floor < j <= cap: ascending is admission order.

    From the top: SCALE - survival, position, request. The last two have whole bits each, so that every part is read by
    a mask or a shift. 2^24 survivals, 64 positions and 2^32 requests fit in 63 bits.
    """

    def __init__(self, num_requests: int, floor: int, cap: int) -> None:
        self.floor, self.cap = floor, cap
        request_bits = max(num_requests - 1, 0).bit_length()
        self._shift = request_bits + max(cap - 1, 0).bit_length()
        self._mask = (1 << request_bits) - 1
        position = np.arange(floor, cap, dtype=np.int64)[None, :] << request_bits
        self._base = (SCALE << self._shift) + position + np.arange(num_requests, dtype=np.int64)[:, None]

    def of(self, units: Ints, caps: Ints | None = None) -> Ints:
        """Keys of this step's survivals: units [R, gamma] give [R * (cap - floor)], less what `caps` [R] excludes."""
        keys = units[:, self.floor : self.cap] << self._shift
        keys = np.subtract(self._base, keys, out=keys)
        if caps is None:
            return keys.ravel()
        return keys[np.arange(self.floor, self.cap) < caps[:, None]]

    def counts(self, keys: Ints) -> Ints:
        """How many of the keys each request has, [R] int64."""
        return np.bincount(keys & self._mask, minlength=len(self._base))

    def survivals(self, keys: Ints) -> Ints:
        """The survivals in units."""
        return SCALE - (keys >> self._shift)


@lru_cache(maxsize=4096)
def keys_for(num_requests: int, floor: int, cap: int) -> Keys:
    """See `Keys`; many steps share one."""
    return Keys(num_requests, floor, cap)


def allocate(units: Ints, budget: int, floor: int = 0, cap: int | None = None, caps: Ints | None = None) -> Ints:
    """Verify the first `budget` draft tokens of the live admission order.

    units: [R, gamma] this step's survivals; every request gets its first `floor` positions before the walk (they count
    into the budget) and none beyond `cap`, nor beyond its own of `caps` [R]. Returns the admitted draft tokens of each
    request, [R] int64.
    """
    num_requests, gamma = units.shape
    cap = gamma if cap is None else cap
    loops = policy_loops()
    if loops is not None:
        return loops.allocate(plain(units), budget, floor, cap, NO_CAPS if caps is None else plain(caps))
    low = np.full(num_requests, floor, dtype=np.int64) if caps is None else np.minimum(caps, floor)
    walked = budget - (num_requests * floor if caps is None else int(low.sum()))
    if walked <= 0 or num_requests == 0:
        return low
    order = keys_for(num_requests, floor, cap)
    keys = order.of(units, caps)
    if walked < keys.size:
        keys.partition(walked - 1)
        keys = keys[:walked]
    elif caps is None:
        return np.full(num_requests, cap, dtype=np.int64)
    lengths = order.counts(keys)
    return lengths + low if floor else lengths


def sorted_survivals(units: Ints, floor: int, cap: int, caps: Ints | None) -> Ints:
    """Survivals along the admission order, [n]; see `allocate`."""
    loops = policy_loops()
    if loops is not None:
        return loops.sorted_survivals(plain(units), floor, cap, NO_CAPS if caps is None else plain(caps))
    walked = units[:, floor:cap]
    found = walked.ravel() if caps is None else walked[np.arange(floor, cap) < caps[:, None]]
    return np.sort(found)[::-1]


def tau_along(survivals: NDArray[np.integer[Any]], start: int) -> Ints:
    """tau after 0, 1, .., n admissions, in units: [n + 1] from `start` and the sorted survivals [n]."""
    tau = np.empty(survivals.size + 1, dtype=np.int64)
    tau[0] = start
    tau[1:] = survivals
    return np.add.accumulate(tau, out=tau)


def below(units: Ints, floor: int, caps: Ints | None) -> int:
    """The summed survivals of the first `floor` positions of every request, less those beyond its own cap."""
    if not floor:
        return 0
    if caps is None:
        return int(units[:, :floor].sum())
    return int(units[:, :floor][np.arange(floor) < caps[:, None]].sum())
