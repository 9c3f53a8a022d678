"""Which decode steps `dspark profile` measures: batch sizes, contexts, and budgets that end on graph tiers.

A captured verify graph costs the same for every budget that it holds, so the steps of a GPU are stairs: one budget a
stair tells all of it, and a stair without one would be guessed.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sglang_dspark.cost.graphs import free_slots_awaited

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
CONTEXTS = (64, 1024, 8192)
"""Prompt tokens of a request, as far as the server's context and memory go."""

_PREFILL_TOKENS = 1 << 18
"""Prompt tokens of one batch beyond which a longer context is left out: the batch is prefilled for every round."""


@dataclass(frozen=True)
class Graphs:
    """The verify graphs of a server: captured batch sizes, increasing, of `width` tokens a request."""

    batches: tuple[int, ...]
    width: int

    @classmethod
    def of(cls, state: dict[str, Any]) -> Graphs | None:
        """As a server's state shows them, None without graphs."""
        shown = state.get("graphs")
        return None if not shown else cls(tuple(shown["requests"]), int(shown["tokens_per_request"]))

    @property
    def tiers(self) -> list[int]:
        """Verified tokens that a graph holds."""
        return [batch * self.width for batch in self.batches]

    def executed(self, requests: int, tokens: int) -> int:
        """What runs for so many verified tokens: the tier above, or they themselves outside the graphs."""
        tiers = self.tiers
        index = bisect_left(tiers, tokens)
        return tokens if requests > self.batches[-1] or index == len(tiers) else tiers[index]


@dataclass(frozen=True)
class Room:
    """What a server holds: tokens of one request (prompt and answer), of all together, and requests at once.

    None where it does not say.
    """

    longest: int
    kv_tokens: int | None = None
    requests: int | None = None

    def answer(self, batch: int, context: int, gamma: int, most: int) -> int:
        """Tokens that each of `batch` requests may generate behind `context` prompt tokens, at most `most`."""
        window = 2 * (gamma + 1)
        fits = self.longest - context - window
        if self.kv_tokens is not None:
            fits = min(fits, int(0.9 * self.kv_tokens) // batch - context - window)
        return min(most, fits)


def default_batches(room: Room, graphs: Graphs | None) -> tuple[int, ...]:
    """Powers of two up to what the server decodes at once, on captured sizes, the largest included.

    DSPARK prefills beside running requests only while several slots are free: seldom do all of them decode.
    """
    limit = room.requests
    if limit is None:
        return tuple(batch for batch in BATCHES if batch <= 32)
    most = max(limit - max(free_slots_awaited(limit, drafting=True), 1), 1) if limit > 2 else limit
    sizes = {batch for batch in BATCHES if batch < most} | {most}
    if graphs is None:
        return tuple(sorted(sizes))
    below = [batch for batch in graphs.batches if batch <= most] or [most]
    return tuple(sorted({below[min(bisect_left(below, size), len(below) - 1)] for size in sizes}))


def default_contexts(room: Room, most_new: int) -> tuple[int, ...]:
    """The contexts that fit one request with half its room left for the answer, the shortest always."""
    return tuple(context for context in CONTEXTS if context == CONTEXTS[0] or 2 * context + most_new <= room.longest)


def fits(room: Room, batch: int, context: int, answer: int, least: int) -> bool:
    """Whether a batch of this context is worth its prefill, and leaves `least` tokens to decode."""
    return answer >= least and (context == CONTEXTS[0] or batch * context <= _PREFILL_TOKENS)


def budgets(
    batches: Sequence[int], gamma: int, shares: Sequence[float], graphs: Graphs | None
) -> dict[int, tuple[int, ...]]:
    """Verified tokens a step (anchors included) to measure, by batch size.

    Without graphs, `shares` of all draft tokens. With them every budget ends on a tier: the ones next to `shares`, and
    every tier that some batch reaches stands with one of them. Two neighbouring batches have a tier in common where
    both reach one, so that what is theirs and what is the tier's can be told apart.
    """
    shared = {batch: sorted({batch + round(share * batch * gamma) for share in shares}) for batch in sorted(batches)}
    if graphs is None:
        return {batch: tuple(tokens) for batch, tokens in shared.items()}
    reach = {batch: _reached(batch, gamma, graphs) for batch in shared}
    chosen = {batch: {_nearest(reach[batch], tokens) for tokens in shared[batch]} for batch in shared if reach[batch]}
    sizes = list(chosen)
    for smaller, larger in zip(sizes, sizes[1:], strict=False):
        common = set(reach[smaller]) & set(reach[larger])
        if common and not chosen[smaller] & chosen[larger]:
            tier = min(common & (chosen[smaller] | chosen[larger]) or common)
            chosen[smaller].add(tier)
            chosen[larger].add(tier)
    for tier in sorted(set().union(*reach.values())):
        holders = [batch for batch in sizes if tier in reach[batch]]
        if holders and not any(tier in chosen[batch] for batch in holders):
            chosen[min(holders, key=lambda batch: (len(chosen[batch]), batch))].add(tier)
    ends = {batch: tuple(sorted({min(tier, batch * (gamma + 1)) for tier in tiers})) for batch, tiers in chosen.items()}
    return {batch: ends.get(batch, tuple(shared[batch])) for batch in shared}


def _reached(batch: int, gamma: int, graphs: Graphs) -> list[int]:
    """Tiers that steps of this batch run in, none where it decodes outside the graphs."""
    if batch > graphs.batches[-1]:
        return []
    tiers = graphs.tiers
    return tiers[bisect_left(tiers, batch) : bisect_left(tiers, batch * (gamma + 1)) + 1]


def _nearest(tiers: Sequence[int], tokens: int) -> int:
    return min(tiers, key=lambda tier: abs(tier - tokens))
