"""A request trace: when requests arrive, how long their prompts are and how long their answers will be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sglang_dspark.errors import InputError
from simulator.traces.prefixes import PrefixBlocks, most_blocks

#: Longest prompt or answer, in tokens, that a trace may hold (an int32, as engines store it).
MAX_LENGTH = 2**31 - 1

#: Latest arrival, in seconds, that a trace may hold: above Unix time, below where float64 loses milliseconds.
MAX_ARRIVAL_S = 1e10


@dataclass(frozen=True, eq=False)
class Trace:
    """Requests in order of arrival; N is their number. Arrays are read-only copies of what is passed in.

    `dataclasses.replace` makes a changed copy, checked again.

    Attributes:
        arrival_s: float64 [N], seconds since the start of the trace, >= 0, non-decreasing.
        input_length: int64 [N], prompt tokens, >= 1.
        output_length: int64 [N], generated tokens, >= 1.
        domain: int16 [N], index into `domains`, or None if the trace does not say.
        domains: names of the domains.
        request_id: names of the requests [N], or None.
        cached_length: int64 [N], prompt tokens that the prefix cache holds on arrival, < input_length; None: none.
        prefix_blocks: what the prompts begin with, from which a simulated prefix cache finds its hits, so not together
            with `cached_length`; None (also if no request has a block): the prompts share no prefix.
        max_tokens: int64 [N], most tokens that the client asks for, >= output_length; None: the trace does not say.
        source: file name and format.
        notes: what was done to the requests on the way here: jitter, skipped rows, window, rate.
        stamped: whether the requests have arrivals; if not, `arrival_s` is 0 and only their order is known.

    Raises:
        InputError: if a field breaks what is said above; the sentence names the field and the request.
    """

    arrival_s: np.ndarray
    input_length: np.ndarray
    output_length: np.ndarray
    domain: np.ndarray | None = None
    domains: tuple[str, ...] = ()
    request_id: tuple[str, ...] | None = None
    cached_length: np.ndarray | None = None
    prefix_blocks: PrefixBlocks | None = None
    max_tokens: np.ndarray | None = None
    source: str = ""
    notes: tuple[str, ...] = ()
    stamped: bool = True

    def __post_init__(self) -> None:
        count = len(self.arrival_s)
        if count == 0:
            raise InputError(f"trace {self.source or '(in memory)'} is empty: expected at least one request")
        _set(self, "arrival_s", _arrivals(self.arrival_s))
        if not self.stamped and self.arrival_s.any():
            raise InputError("trace field arrival_s of a trace without stamps is not 0, expected 0 or stamped=True")
        _set(self, "input_length", _integers("input_length", self.input_length, count, 1, MAX_LENGTH))
        _set(self, "output_length", _integers("output_length", self.output_length, count, 1, MAX_LENGTH))
        _set(self, "domains", tuple(self.domains))
        _set(self, "notes", tuple(self.notes))
        if self.domain is not None:
            domain = _integers("domain", self.domain, count, 0, min(len(self.domains), 2**15) - 1)
            _set(self, "domain", _read_only(domain.astype(np.int16)))
        if self.cached_length is not None:
            cached = _integers("cached_length", self.cached_length, count, 0, MAX_LENGTH)
            if (cached >= self.input_length).any():
                row = int(np.argmax(cached >= self.input_length))
                raise InputError(
                    f"trace field cached_length of request {row} is {cached[row]}, "
                    f"expected 0 .. {self.input_length[row] - 1}"
                )
            _set(self, "cached_length", cached)
        if self.max_tokens is not None:
            _set(self, "max_tokens", _max_tokens(self, self.max_tokens))
        if self.prefix_blocks is not None:
            _set(self, "prefix_blocks", _prefix_blocks(self, self.prefix_blocks))
        if self.request_id is not None:
            _set(self, "request_id", tuple(self.request_id))
            if len(self.request_id) != count:
                raise InputError(f"trace field request_id has {len(self.request_id)} entries for {count} requests")

    def __len__(self) -> int:
        return len(self.arrival_s)

    @property
    def span_s(self) -> float:
        """Seconds from the first arrival to the last."""
        return float(self.arrival_s[-1] - self.arrival_s[0])

    @property
    def offered_rate(self) -> float | None:
        """Requests per second, one over the mean gap; infinite if all arrive at once, None without stamps or gaps."""
        if not self.stamped or len(self) == 1:
            return None
        return (len(self) - 1) / self.span_s if self.span_s > 0 else math.inf

    @property
    def cached_share(self) -> float:
        """Share of the prompt tokens that the prefix cache holds on arrival."""
        return 0.0 if self.cached_length is None else float(self.cached_length.sum() / self.input_length.sum())


def _set(trace: Trace, name: str, value: object) -> None:
    object.__setattr__(trace, name, value)


def _read_only(values: np.ndarray) -> np.ndarray:
    values.flags.writeable = False
    return values


def _arrivals(values: Sequence[float] | np.ndarray) -> np.ndarray:
    arrival_s = np.array(values, dtype=np.float64)
    if arrival_s.ndim != 1:
        raise InputError(f"trace field arrival_s has shape {list(arrival_s.shape)}, expected [N]")
    bad = ~((arrival_s >= 0) & (arrival_s <= MAX_ARRIVAL_S))
    if bad.any():
        row = int(np.argmax(bad))
        raise InputError(
            f"trace field arrival_s of request {row} is {arrival_s[row]}, expected 0 .. {MAX_ARRIVAL_S:g} s"
        )
    back = np.flatnonzero(np.diff(arrival_s) < 0)
    if back.size:
        row = int(back[0]) + 1
        raise InputError(
            f"trace field arrival_s of request {row} is {arrival_s[row]}, before that of request {row - 1}: "
            "expected requests in order of arrival"
        )
    return _read_only(arrival_s)


def _max_tokens(trace: Trace, values: np.ndarray) -> np.ndarray:
    most = _integers("max_tokens", values, len(trace), 1, MAX_LENGTH)
    if (most < trace.output_length).any():
        row = int(np.argmax(most < trace.output_length))
        raise InputError(
            f"trace field max_tokens of request {row} is {most[row]}, expected at least the "
            f"{trace.output_length[row]} tokens that it generates"
        )
    return most


def _prefix_blocks(trace: Trace, blocks: PrefixBlocks) -> PrefixBlocks | None:
    if len(blocks) != len(trace):
        raise InputError(f"trace field prefix_blocks has {len(blocks)} entries for {len(trace)} requests")
    most = most_blocks(trace.input_length, blocks.block_tokens)
    if (blocks.counts > most).any():
        row = int(np.argmax(blocks.counts > most))
        raise InputError(
            f"trace field prefix_blocks of request {row} has {blocks.counts[row]} blocks, expected at most {most[row]} "
            f"of {blocks.block_tokens} tokens for {trace.input_length[row]} prompt tokens"
        )
    if trace.cached_length is not None:
        raise InputError("a trace has cached_length and prefix_blocks, expected one: both say what the cache holds")
    return blocks if len(blocks.ids) else None


def _integers(name: str, values: Sequence[int] | np.ndarray, count: int, low: int, high: int) -> np.ndarray:
    array = np.array(values)
    if array.dtype.kind not in "iu":
        raise InputError(f"trace field {name} has type {array.dtype}, expected integers")
    if array.shape != (count,):
        raise InputError(f"trace field {name} has shape {list(array.shape)}, expected [{count}]")
    bad = (array < low) | (array > high)
    if bad.any():
        row = int(np.argmax(bad))
        raise InputError(f"trace field {name} of request {row} is {array[row]}, expected {low} .. {high}")
    return _read_only(array.astype(np.int64))
