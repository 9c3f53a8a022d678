"""When tokens came: the per-token timeline of a run, run-length coded, whatever happened between two tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from sglang_dspark.policies.arithmetic import Ints

_FIRST = 1024  # bursts that there is room for at the beginning


class Bursts:
    """Rows of (end_s, gap_s, counts): `counts[n]` requests got n tokens at end_s, gap_s after their token before.

    First tokens are no bursts: nothing lies before them.
    """

    def __init__(self, most: int) -> None:
        """most: tokens that one step can give a request (gamma + 1).

        times: [2, room] end and gap in seconds, counts: [room, width], of the first `count`.
        """
        self.width, self.count = most + 1, 0
        self.times, self.counts = np.empty((2, _FIRST)), np.empty((_FIRST, self.width), dtype=np.uint32)
        self._one = np.eye(self.width, dtype=np.uint32)

    def make_room(self, rows: int) -> None:
        """For so many bursts more."""
        if self.count + rows > len(self.counts):
            more = len(self.counts) + rows
            self.times = np.concatenate([self.times, np.empty((2, more))], axis=1)
            self.counts = np.concatenate([self.counts, np.empty((more, self.width), dtype=np.uint32)])

    def add(self, end_s: float, gap_s: float, counts: Ints) -> None:
        """One burst; counts: [width] requests by the number of tokens they got."""
        self.make_room(1)
        self.times[0, self.count], self.times[1, self.count] = end_s, gap_s
        self.counts[self.count] = counts
        self.count += 1

    def add_one(self, end_s: float, gap_s: float, tokens: int) -> None:
        """A burst of one request."""
        self.add(end_s, gap_s, self._one[tokens])

    @classmethod
    def together(cls, some: Sequence[Bursts]) -> Bursts:
        """Those of several replicas, one replica after the other."""
        if len(some) == 1:
            return some[0]
        found = cls(some[0].width - 1)
        found.times = np.concatenate([each.times[:, : each.count] for each in some], axis=1)
        found.counts = np.concatenate([each.counts[: each.count] for each in some])
        found.count = len(found.counts)
        return found

    def rows(self) -> tuple[NDArray[np.float64], NDArray[np.float64], Ints]:
        """([n] end_s, [n] gap_s, [n, width] counts)."""
        end_s, gap_s = self.times[:, : self.count]
        return end_s, gap_s, self.counts[: self.count].astype(np.int64)

    def tokens(self) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float64]]]:
        """([n] seconds, [n] requests) of all tokens, a chunk's tokens spread evenly over its gap, in no order."""
        end_s, gap_s, counts = self.rows()
        for tokens in range(1, self.width):
            some = counts[:, tokens] > 0
            end, gap, requests = end_s[some], gap_s[some], counts[some, tokens].astype(np.float64)
            for number in range(1, tokens + 1):
                yield end - gap * ((tokens - number) / tokens), requests


class Gaps:
    """What one replica knows of the tokens before: of its last decode step, or of a request since it joined or left."""

    def __init__(self, bursts: Bursts, joined_slots: Ints, joined_s: NDArray[np.float64]) -> None:
        """joined_slots, joined_s: [capacity] room for those who joined since the last decode step, in order."""
        self.bursts = bursts
        self.previous_s = 0.0
        self.joins = 0
        self._slots, self._since_s = joined_slots, joined_s
        self._retracted_s: dict[int, float] = {}  # by request

    def joined(self, slot: int, now: float) -> None:
        """A prefill gave a request its token, and it decodes next."""
        self._slots[self.joins], self._since_s[self.joins] = slot, now
        self.joins += 1

    def retracted(self, request: int, slot: int) -> None:
        """A request left the batch with tokens to come."""
        found = (self._slots[: self.joins] == slot).nonzero()[0].tolist()
        self._retracted_s[request] = self._since_s[found[0]].item() if found else self.previous_s
        for index in found:
            self.joins -= 1
            self._slots[index : self.joins] = self._slots[index + 1 : self.joins + 1]
            self._since_s[index : self.joins] = self._since_s[index + 1 : self.joins + 1]

    def last_token(self, request: int, first_token_s: NDArray[np.float64]) -> float:
        """When a request that a decode server takes over got its last token: its first one, or before retraction."""
        return self._retracted_s.pop(request, float(first_token_s[request]))

    def resumed(self, request: int, now: float) -> None:
        """The prefill of a retracted request gave it one token more."""
        self.bursts.add_one(now, now - self._retracted_s.pop(request), 1)

    def decode(self, now: float, committed: Ints, row_of: Ints) -> None:
        """A decode step ended. committed: [R] tokens by row, 0 for requests that had finished; row_of: row by slot."""
        counts = np.bincount(committed, minlength=self.bursts.width)
        if self.joins:
            since_s, slots = self._since_s[: self.joins].tolist(), self._slots[: self.joins]
            for tokens, since in zip(committed[row_of[slots]].tolist(), since_s, strict=True):
                counts[tokens] -= 1
                self.bursts.add_one(now, now - since, tokens)
            self.joins = 0
            if not counts[1:].any():  # nobody has been here for longer
                self.previous_s = now
                return
        self.bursts.add(now, now - self.previous_s, counts)
        self.previous_s = now
