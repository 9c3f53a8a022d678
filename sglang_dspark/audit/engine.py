"""What the audit assumes of an engine. Tests plant faults here and expect the audit to find them."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, Protocol

from sglang_dspark.audit.world import World

Block = tuple[tuple[int, ...], float, Any]
"""(draft tokens, probability, what the drafter remembers of its noise)."""


class Draws(Protocol):
    """How draft noise is drawn: a lossless engine draws it afresh for every block."""

    def blocks(self, world: World, request: int, node: int, memory: Any) -> list[Block]:
        """Every block that can be drafted after `node`, with at least `world.seen` tokens."""

    def forget(self, memory: Any, length: int) -> Any:
        """What is kept when `length` tokens are committed."""


class FreshDraws:
    """Fresh noise for every block: nothing is remembered."""

    def blocks(self, world: World, request: int, node: int, memory: Any) -> list[Block]:
        found: list[Block] = []
        for block in itertools.product(range(world.shape.vocab), repeat=world.seen):
            chance, at = 1.0, node
            for position, token in enumerate(block):
                chance *= world.draft[request][position][at][token]
                at = world.child(at, token)
            if chance > 0:
                found.append((block, chance, None))
        return found

    def forget(self, memory: Any, length: int) -> Any:
        return None


class DrawsByPosition:
    """A fault: noise is keyed by output position, so that a dropped position is drafted again with the same number.

    The memory is what is known of the uniform number of each position, as (position, low, high).
    """

    def blocks(self, world: World, request: int, node: int, memory: Any) -> list[Block]:
        known = {position: (low, high) for position, low, high in memory or ()}
        start = world.depth[node]
        found: list[tuple[tuple[int, ...], float, tuple[Any, ...], int]] = [((), 1.0, (), node)]
        for offset in range(world.shape.gamma):
            low, high = known.get(start + offset + 1, (0.0, 1.0))
            longer = []
            for block, chance, numbers, at in found:
                left = 0.0
                for token, share in enumerate(world.draft[request][offset][at]):
                    begin, end = max(low, left), min(high, left + share)
                    left += share
                    if end > begin:
                        part = (start + offset + 1, begin, end)
                        portion = chance * (end - begin) / (high - low)
                        longer.append(((*block, token), portion, (*numbers, part), world.child(at, token)))
            found = longer
        return [(block, chance, numbers) for block, chance, numbers, _ in found]

    def forget(self, memory: Any, length: int) -> Any:
        return tuple(part for part in memory if part[0] > length)


@dataclass(frozen=True)
class Engine:
    """The engine that is enumerated; the default is the one that policies may rely on.

    draws: how draft noise is drawn. post_token: confidence j sees draft token j. ring_sees_current: the lagged
    survivals are one publish too young, so that lag 1 reads the current block. learn_sees_current: `Policy.learn` is
    given this step's survivals before it decides.
    """

    draws: Draws = FreshDraws()  # noqa: RUF009 (stateless)
    post_token: bool = False
    ring_sees_current: bool = False
    learn_sees_current: bool = False
