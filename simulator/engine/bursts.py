"""When tokens came: the per-token timeline of a run, run-length coded, whatever happened between two tokens."""

from __future__ import annotations

from array import array
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from sglang_dspark.policies.arithmetic import Ints


class Bursts:
    """Rows of (end_s, gap_s, counts): `counts[n]` requests got n tokens at end_s, gap_s after their token before.

    First tokens are no bursts: nothing lies before them.
    """

    def __init__(self, most: int) -> None:
        """most: tokens that one step can give a request (gamma + 1)."""
        self.width = most + 1
        self._end_s, self._gap_s, self._counts = array("d"), array("d"), array("I")
        self._one = np.eye(self.width, dtype=np.uint32)

    def add(self, end_s: float, gap_s: float, counts: Ints) -> None:
        """One burst; counts: [width] requests by the number of tokens they got."""
        self._end_s.append(end_s)
        self._gap_s.append(gap_s)
        self._counts.frombytes(counts.astype(np.uint32).tobytes())

    def add_one(self, end_s: float, gap_s: float, tokens: int) -> None:
        """A burst of one request."""
        self._end_s.append(end_s)
        self._gap_s.append(gap_s)
        self._counts.frombytes(self._one[tokens].tobytes())

    def rows(self) -> tuple[NDArray[np.float64], NDArray[np.float64], Ints]:
        """([n] end_s, [n] gap_s, [n, width] counts)."""
        counts = np.frombuffer(self._counts, dtype=np.uint32).astype(np.int64).reshape(-1, self.width)
        return np.array(self._end_s), np.array(self._gap_s), counts

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

    def __init__(self, bursts: Bursts) -> None:
        self._bursts = bursts
        self._previous_s = 0.0
        self._joined_s: dict[int, float] = {}  # by slot
        self._retracted_s: dict[int, float] = {}  # by request

    def joined(self, slot: int, now: float) -> None:
        """A prefill gave a request its token, and it decodes next."""
        self._joined_s[slot] = now

    def retracted(self, request: int, slot: int) -> None:
        """A request left the batch with tokens to come."""
        self._retracted_s[request] = self._joined_s.pop(slot, self._previous_s)

    def last_token(self, request: int, first_token_s: NDArray[np.float64]) -> float:
        """When a request that a decode server takes over got its last token: its first one, or before retraction."""
        return self._retracted_s.pop(request, float(first_token_s[request]))

    def resumed(self, request: int, now: float) -> None:
        """The prefill of a retracted request gave it one token more."""
        self._bursts.add_one(now, now - self._retracted_s.pop(request), 1)

    def decode(self, now: float, committed: Ints, row_of: list[int]) -> None:
        """A decode step ended. committed: [R] tokens by row, 0 for requests that had finished; row_of: row by slot."""
        counts = np.bincount(committed, minlength=self._bursts.width)
        if self._joined_s:
            for slot, since in self._joined_s.items():
                tokens = int(committed[row_of[slot]])
                counts[tokens] -= 1
                self._bursts.add_one(now, now - since, tokens)
            self._joined_s.clear()
            if not counts[1:].any():  # nobody has been here for longer
                self._previous_s = now
                return
        self._bursts.add(now, now - self._previous_s, counts)
        self._previous_s = now
