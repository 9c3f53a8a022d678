"""Upper bounds of the Markov bias over blocks of the vocabulary, which tell the screening what it may skip."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from dspark_kernels.markov_heads import MarkovHead


@dataclass(frozen=True)
class MarkovBounds:
    """Upper bounds of the Markov bias over blocks of `block` consecutive tokens, computed once at load time.

    table: [V, blocks] in w2's dtype, the largest bias in the block after previous token x (vanilla heads), or None.
    center: [blocks, rank] float32 and radius, norm: [blocks] float32, for any latent z: bias <= z . center + |z| *
    radius, and norm is the largest |w2[v]| of the block.
    """

    block: int
    center: torch.Tensor
    radius: torch.Tensor
    norm: torch.Tensor
    table: torch.Tensor | None = None


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
    w2 = head.w2.float()
    padding = -head.vocab % block
    padded = F.pad(w2, (0, 0, 0, padding)).view(-1, block, head.rank)
    sizes = torch.full((padded.shape[0], 1), float(block), device=w2.device)
    sizes[-1] -= padding
    center = padded.sum(dim=1) / sizes
    away = F.pad(w2 - center.repeat_interleave(block, dim=0)[: head.vocab], (0, 0, 0, padding)).view_as(padded)
    radius = away.norm(dim=-1).amax(dim=-1) * (1 + 1e-5)
    norm = padded.norm(dim=-1).amax(dim=-1) * (1 + 1e-5)
    return MarkovBounds(block, center, radius, norm, _table(head, w2, norm, block) if table else None)


def _table(head: MarkovHead, w2: torch.Tensor, norm: torch.Tensor, block: int) -> torch.Tensor:
    blocks = norm.shape[0]
    table = head.w2.new_empty(head.vocab, blocks)
    rows = max(1, (1 << 27) // (blocks * block))
    for first in range(0, head.vocab, rows):
        embedding = head.w1[first : first + rows].float()
        bias = F.pad(embedding @ w2.T, (0, blocks * block - head.vocab), value=float("-inf"))
        largest = bias.view(-1, blocks, block).amax(dim=-1)
        # Rounding to the bias's dtype is monotone: adding the dot product's error first keeps the bound a bound.
        slack = embedding.norm(dim=-1, keepdim=True) * norm * dot_error(head.rank)
        table[first : first + rows] = (largest + slack).to(table.dtype)
    return table
