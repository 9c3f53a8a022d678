"""What prompts begin with: the `hash_ids` of a trace as one ragged column, and how much of the prompts they share."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from sglang_dspark.errors import InputError

Ints = NDArray[np.int64]
Length = TypeVar("Length", float, Ints)

#: Largest number of a block (an int64) and most tokens that a block may have.
MAX_BLOCK_ID = 2**63 - 1
MAX_BLOCK_TOKENS = 1 << 20


@dataclass(frozen=True, eq=False)
class PrefixBlocks:
    """The blocks that each of N prompts begins with; arrays are read-only copies of what is passed in.

    Two prompts share as many leading blocks as have equal numbers. A last block with fewer tokens than the others is
    shared with equal ones only. What lies behind the blocks of a prompt is shared with no other.

    Attributes:
        offsets: int64 [N + 1]: the blocks of request r are `ids[offsets[r] : offsets[r + 1]]`; maybe none.
        ids: int64 [blocks], >= 0.
        block_tokens: tokens of a whole block.

    Raises:
        InputError: if a field breaks what is said above.
    """

    offsets: Ints
    ids: Ints
    block_tokens: int

    def __post_init__(self) -> None:
        if not 1 <= self.block_tokens <= MAX_BLOCK_TOKENS:
            raise InputError(f"block_tokens is {self.block_tokens}, expected 1 .. {MAX_BLOCK_TOKENS} tokens a block")
        for name in ("offsets", "ids"):
            values = np.array(getattr(self, name), dtype=np.int64)
            values.flags.writeable = False
            object.__setattr__(self, name, values)
        offsets, ids = self.offsets, self.ids
        if not len(offsets) or offsets[0] != 0 or offsets[-1] != len(ids) or (np.diff(offsets) < 0).any():
            raise InputError(f"offsets of prefix blocks do not divide the {len(ids)} ids, expected 0 .. {len(ids)}")
        if (ids < 0).any():
            raise InputError(f"a prefix block is {ids.min()}, expected 0 .. {MAX_BLOCK_ID}")

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def counts(self) -> Ints:
        """Blocks of each request [N]."""
        return np.diff(self.offsets)

    def of(self, request: int) -> Ints:
        """Blocks of one request."""
        return self.ids[self.offsets[request] : self.offsets[request + 1]]

    def take(self, which: Ints | NDArray[np.bool_] | slice) -> PrefixBlocks:
        """The blocks of some requests, in the order given."""
        rows = np.arange(len(self))[which]
        counts = self.counts[rows]
        offsets = np.concatenate([[0], np.cumsum(counts)])
        index = np.arange(offsets[-1]) + np.repeat(self.offsets[rows] - offsets[:-1], counts)
        return PrefixBlocks(offsets, self.ids[index], self.block_tokens)

    def tokens(self, input_length: Ints) -> Ints:
        """Prompt tokens [N] that the blocks of each request hold."""
        return np.minimum(self.counts * self.block_tokens, input_length)

    def keys(self, input_length: Ints) -> Ints:
        """`ids`, but a last block that is not full has a negative number of its own for each (id, tokens)."""
        keys = self.ids.copy()
        part = self.counts * self.block_tokens - input_length
        rows = np.flatnonzero((self.counts > 0) & (part > 0))
        last = self.offsets[rows + 1] - 1
        _, numbers = np.unique(np.stack([self.ids[last], part[rows]]), axis=1, return_inverse=True)
        keys[last] = -1 - numbers.reshape(-1)
        return keys


def shareable_tokens(blocks: PrefixBlocks, input_length: Ints) -> Ints:
    """Prompt tokens [N] that a cache without bounds would hold if every request came after all those before it ended.

    At most all but one of a prompt: the last one must be computed to give the first token.
    """
    begin = np.repeat(blocks.offsets[:-1], blocks.counts)
    # Equal prefixes have equal sums of what each block is in its place; others have not, but once in 2**64.
    sums = np.cumsum(_mixed(blocks.keys(input_length), np.arange(len(begin)) - begin))
    prefix = sums - np.concatenate([np.zeros(1, dtype=np.uint64), sums])[begin]
    order = np.argsort(prefix, kind="stable")
    again = order[1:][prefix[order[1:]] == prefix[order[:-1]]]  # an earlier request has it: none has one twice
    found = np.bincount(np.searchsorted(blocks.offsets, again, side="right") - 1, minlength=len(blocks))
    return np.minimum(found * blocks.block_tokens, input_length - 1)


def _mixed(keys: Ints, place: Ints) -> NDArray[np.uint64]:
    """64 well-mixed bits of every (key, place): the finaliser of splitmix64."""
    bits = keys.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + place.astype(np.uint64) * np.uint64(
        0xD1342543DE82EF95
    )
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        bits = (bits ^ (bits >> np.uint64(shift))) * np.uint64(factor)
    return bits ^ (bits >> np.uint64(31))


class BlocksColumn:
    """Gathers the `hash_ids` of a file row by row, without a Python object for each."""

    def __init__(self) -> None:
        self._ids, self._offsets = array("q"), array("q", [0])

    def add(self, ids: Sequence[int] | None) -> None:
        """The next request's blocks; None or empty: it has none."""
        self._ids.extend(ids or ())
        self._offsets.append(len(self._ids))

    def blocks(self, block_tokens: int) -> PrefixBlocks | None:
        """The column, or None if no request has blocks."""
        if not self._ids:
            return None
        return PrefixBlocks(np.array(self._offsets), np.array(self._ids), block_tokens)


def most_blocks(input_length: Length, block_tokens: int) -> Length:
    """Blocks, the last one maybe not full, that a prompt can have; of a number or of an array."""
    return -(-input_length // block_tokens)
