"""Upper bounds of the Markov bias over blocks of the vocabulary, which tell the screening what it may skip."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from dspark_kernels.markov_heads import MarkovHead


@dataclass(frozen=True)
class MarkovBounds:
    """Upper bounds of the Markov bias over blocks of `block` consecutive tokens, computed from the head's weights.

    table: [V, blocks] in w2's dtype, the largest bias in the block after previous token x (vanilla heads), or None.
    center: [blocks, rank] float32 and radius, norm: [blocks] float32, for any latent z: bias <= z . center + |z| *
    radius, and norm is the largest |w2[v]| of the block.

    They hold for the weights that they were computed from: before those change in place call `drop`, afterwards
    `refill`. Both write into the same tensors, whose addresses a captured graph keeps.
    """

    block: int
    center: torch.Tensor
    radius: torch.Tensor
    norm: torch.Tensor
    table: torch.Tensor | None = None

    def drop(self) -> None:
        """Bound nothing: every tile is read, and the tokens are those of the full pass whatever the weights are."""
        self.radius.fill_(float("inf"))
        if self.table is not None:
            self.table.fill_(float("inf"))

    def refill(self, head: MarkovHead) -> None:
        """Bound the biases of the weights that `head` holds now."""
        _fill_balls(self, head)
        if self.table is not None:
            _fill_table(self, head)


_CHUNK_NUMBERS = 1 << 23
"""Numbers that are computed at a time: 32 MiB, whatever the vocabulary."""


def dot_error(rank: int) -> float:
    """Relative error of a float32 dot product of this length against |a||b|, whatever the order of its sums, with
    room to spare."""
    return rank * 2.0**-21


def markov_bounds(head: MarkovHead, block: int = 256, *, table: bool | None = None) -> MarkovBounds:
    """Bounds for `sample_markov_block(..., bounds=...)`.

    block: tokens per bound, a power of two from 16; smaller prunes more and costs V * V / block numbers of table.
    table: whether to compute the exact table (2 * V^2 * rank operations, once; default: for vanilla heads, which
    alone can use it).
    Errors: ValueError for another block size, or a table for a head whose latent is not the embedding alone.
    """
    if block < 16 or block & (block - 1):
        raise ValueError(f"block={block} is refused, expected a power of two from 16")
    table = head.kind == "vanilla" if table is None else table
    if table and head.kind != "vanilla":
        raise ValueError(f"a {head.kind} head's bias depends on more than the previous token: no table")
    blocks = -(-head.vocab // block)
    ball = dict(dtype=torch.float32, device=head.w2.device)
    bounds = MarkovBounds(
        block,
        torch.empty(blocks, head.rank, **ball),
        torch.empty(blocks, **ball),
        torch.empty(blocks, **ball),
        head.w2.new_empty(head.vocab, blocks) if table else None,
    )
    bounds.refill(head)
    return bounds


def bounds_bytes(head: MarkovHead, block: int = 256) -> int:
    """Bytes that `markov_bounds` keeps for a vanilla head, about."""
    return head.vocab * -(-head.vocab // block) * head.w2.element_size()


def _fill_balls(bounds: MarkovBounds, head: MarkovHead) -> None:
    block, blocks = bounds.block, bounds.norm.shape[0]
    at_once = max(1, _CHUNK_NUMBERS // (block * head.rank))
    for first in range(0, blocks, at_once):
        here = slice(first, min(first + at_once, blocks))
        w2 = head.w2[first * block : here.stop * block].float()
        missing = (here.stop - first) * block - w2.shape[0]
        rows = F.pad(w2, (0, 0, 0, missing)).view(-1, block, head.rank)
        sizes = torch.full((rows.shape[0], 1), float(block), device=w2.device)
        sizes[-1] -= missing
        center = rows.sum(dim=1) / sizes
        away = w2 - center.repeat_interleave(block, dim=0)[: w2.shape[0]]
        away = F.pad(away, (0, 0, 0, missing)).view_as(rows)
        bounds.center[here] = center
        bounds.radius[here] = away.norm(dim=-1).amax(dim=-1) * (1 + 1e-5)
        bounds.norm[here] = rows.norm(dim=-1).amax(dim=-1) * (1 + 1e-5)


def _fill_table(bounds: MarkovBounds, head: MarkovHead) -> None:
    table, block, blocks = bounds.table, bounds.block, bounds.norm.shape[0]
    w2 = head.w2.float()
    at_once = max(1, _CHUNK_NUMBERS // (blocks * block))
    for first in range(0, head.vocab, at_once):
        embedding = head.w1[first : first + at_once].float()
        bias = F.pad(embedding @ w2.T, (0, blocks * block - head.vocab), value=float("-inf"))
        largest = bias.view(-1, blocks, block).amax(dim=-1)
        # Rounding to the bias's dtype is monotone: adding the dot product's error first keeps the bound a bound.
        slack = embedding.norm(dim=-1, keepdim=True) * bounds.norm * dot_error(head.rank)
        table[first : first + at_once] = (largest + slack).to(table.dtype)
