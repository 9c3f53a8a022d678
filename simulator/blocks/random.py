"""Counter-based random streams: every draw is named by what it is for, so that policies meet the same draws.

A stream is named by (seed, purpose) and up to two further integers, for instance a request and a chunk of its
output. Seed and purpose are hashed into the key of a Philox generator (Salmon et al., "Parallel random
numbers: as easy as 1, 2, 3", SC 2011); the integers are the upper half of its counter. A stream may therefore
be opened at any time, in any order and by any process and gives the same numbers, and no two streams overlap:
each has 2**128 blocks of four words.
"""

from __future__ import annotations

from hashlib import blake2b

import numpy as np

_WORD = 1 << 64


class Streams:
    """All streams of one (seed, purpose); `at` opens one in about 2 us, where a new generator takes 20.

    Args:
        seed: any integer that names the experiment; negative ones are allowed.
        purpose: what the numbers are for, such as "arrivals", "lengths", "acceptance", "domains" or "jitter".
    """

    def __init__(self, seed: int, purpose: str) -> None:
        self._key = philox_key(seed, purpose)
        self._bits = np.random.Philox(key=self._key)
        self._state = self._bits.state
        self._counter = self._state["state"]["counter"]
        self._generator = np.random.Generator(self._bits)

    def at(self, first: int = 0, second: int = 0) -> np.random.Generator:
        """Return the generator, set to the start of stream (first, second), each in 0 .. 2**64 - 1.

        It is one object that every call sets anew: draw what is needed before the next call.
        """
        counter = self._counter
        counter[2] = second
        counter[3] = first
        self._bits.state = self._state
        return self._generator


def philox_key(seed: int, purpose: str) -> np.ndarray:
    """Return the key, uint64 [2], of (seed, purpose): a hash, the same in every process."""
    digest = blake2b(f"{int(seed)}:{purpose}".encode(), digest_size=16).digest()
    return np.frombuffer(digest, dtype="<u8").astype(np.uint64)


def stream(seed: int, purpose: str, *key: int) -> np.random.Generator:
    """Return a generator of its own for (seed, purpose, *key); `Streams` is the cheaper form for many keys.

    Args:
        seed: any integer.
        purpose: what the numbers are for; different purposes never share numbers.
        key: at most two integers in 0 .. 2**64 - 1, such as a request and a chunk; a missing one counts as 0.
    """
    if len(key) > 2 or any(not 0 <= part < _WORD for part in key):
        raise ValueError(f"a stream is named by at most two integers in 0 .. 2**64 - 1, got {key}")
    first, second = (*key, 0, 0)[:2]
    counter = np.array([0, 0, second, first], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=philox_key(seed, purpose), counter=counter))
