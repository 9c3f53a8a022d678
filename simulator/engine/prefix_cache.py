"""The prefix cache of one replica: which of a prompt's tokens are there already, and who keeps them there.

As SGLang 0.5.23 has it: a request that is let in locks the longest cached prefix of its prompt and does not prefill it,
but for its last token, which gives the first answer token. A cut prompt enters the tree when the next step is chosen; a
whole one when its step's result is seen, which the overlap loop does a step later. What two requests prefilled at once
is kept once. A finished request leaves prompt and answer behind, a retracted one only what the tree already has. Every
32nd scheduling pass the prefixes of the first 128 waiting requests are touched, the next one last, so that they are
evicted last (managers/schedule_policy.py:282). Waiting requests are served in order of arrival, not by their prefix:
`--schedule-policy` is fcfs by default. Page size 1.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

import numpy as np

from simulator.engine.radix_tree import Keys, Node, RadixTree
from simulator.traces import Trace

_REFRESH_INTERVAL, _MOST_REFRESHED = 32, 128
_NOBODY_ELSE = -(2**61)  # less the number of a request: key of what only its prompt has


@dataclass(frozen=True, eq=False)
class Prompts:
    """Keys of the prompts of a trace, block by block, whose equality is that of their tokens.

    What lies behind the blocks of a prompt is one more block, which no other has. offsets, input_length: lists [N + 1]
    and [N], as `PrefixBlocks` and the trace have them.
    """

    keys: Keys
    offsets: list[int]
    input_length: list[int]
    block_tokens: int

    @classmethod
    def of(cls, trace: Trace) -> Prompts | None:
        """None if the prompts share no prefix."""
        blocks, lengths = trace.prefix_blocks, trace.input_length
        if blocks is None:
            return None
        longer = blocks.tokens(lengths) < lengths
        rows = np.flatnonzero(longer)
        keys = np.insert(blocks.keys(lengths), blocks.offsets[rows + 1], _NOBODY_ELSE - rows)
        offsets = blocks.offsets + np.concatenate([[0], np.cumsum(longer)])
        return cls(keys, offsets.tolist(), lengths.tolist(), blocks.block_tokens)

    def blocks(self, request: int, tokens: int | None = None) -> int:
        """Blocks of a request, those alone that are complete within its first `tokens`."""
        count = self.offsets[request + 1] - self.offsets[request]
        if tokens is None or tokens >= self.input_length[request]:
            return count
        return min(count - 1, tokens // self.block_tokens)

    def tokens(self, request: int, blocks: int) -> int:
        """Tokens of a request's first so many blocks."""
        return self.input_length[request] if blocks == self.blocks(request) else blocks * self.block_tokens

    def part(self, request: int, begin: int, end: int) -> Keys:
        """Keys of a request's blocks `begin` .. `end`."""
        at = self.offsets[request]
        return self.keys[at + begin : at + end]


class PrefixCache:
    """The tree, and for every request that was let in the node that it holds and how many blocks lead there."""

    def __init__(self, prompts: Prompts, *, overlap: bool) -> None:
        self.prompts, self.tree = prompts, RadixTree(prompts.block_tokens)
        self.held: dict[int, tuple[Node, int]] = {}
        self._lag = int(overlap)
        self._prefilled: deque[tuple[int, int]] = deque()  # (step, request): whole prompts not yet in the tree
        self._passes = 0

    @property
    def shared(self) -> int:
        """Tokens that running requests have in common and that take memory once."""
        return self.tree.shared

    @property
    def idle(self) -> int:
        """Tokens that no running request needs."""
        return self.tree.idle

    def admit(self, request: int, context: int) -> int:
        """Let a request of `context` tokens in; it holds what is cached of them. Returns how many are not prefilled."""
        node, blocks = self.tree.match(self.prompts.part(request, 0, self.prompts.blocks(request)))
        self.tree.lock(node)
        self.held[request] = node, blocks
        return min(self.prompts.tokens(request, blocks), context - 1)

    def cut(self, request: int, done: int) -> None:
        """A prompt is prefilled in part, its first `done` tokens."""
        self._keep(request, self.prompts.blocks(request, done))

    def prefilled(self, request: int, step: int) -> None:
        """A prompt's prefill ended with `step`."""
        self._prefilled.append((step, request))

    def see(self, steps: int) -> None:
        """A step is chosen after `steps` others: prompts that the host has seen come into the tree."""
        while self._prefilled and self._prefilled[0][0] <= steps - self._lag:
            request = self._prefilled.popleft()[1]
            if request in self.held:
                self._keep(request, self.prompts.blocks(request))

    def refresh(self, waiting: Iterable[int]) -> None:
        """A scheduling pass begins with these requests waiting."""
        if self._passes % _REFRESH_INTERVAL == 0:
            for request in reversed(list(islice(waiting, _MOST_REFRESHED))):
                self.tree.match(self.prompts.part(request, 0, self.prompts.blocks(request)))
        self._passes += 1

    def finish(self, request: int, context: int) -> None:
        """A request ends with `context` tokens, which stay; no later prompt is known to hold its answer."""
        self._keep(request, self.prompts.blocks(request))
        node, _ = self.held.pop(request)
        self.tree.add_leaf(node, context - self.prompts.input_length[request])
        self.tree.unlock(node)

    def drop(self, request: int) -> None:
        """A request goes, and leaves behind only what is in the tree."""
        node, _ = self.held.pop(request)
        self.tree.unlock(node)
        self._prefilled = deque(one for one in self._prefilled if one[1] != request)

    def evict_to(self, most: int) -> None:
        """Evict until at most `most` tokens are left that no running request needs."""
        self.tree.evict_to(most)

    def _keep(self, request: int, blocks: int) -> None:
        """A request's first `blocks` come into the tree, and it holds them."""
        node, held = self.held[request]
        if blocks <= held:
            self.tree.touch(node)
            return
        tokens = self.prompts.tokens(request, blocks) - self.prompts.tokens(request, held)
        end = self.tree.insert(node, self.prompts.part(request, held, blocks), tokens)
        self.tree.lock(end, above=node)
        self.held[request] = end, blocks
