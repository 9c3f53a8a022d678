"""Screening for the Markov block: which tiles of the vocabulary could still hold the winner.

A tile is skipped when its largest noisy base logit plus the largest bias that it can get stays below a score that
some probed token is sure to reach. Bounds are inflated, and the bar lowered, by more than every rounding on the way,
so that skipping never changes a token.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from dspark_kernels.markov_heads import MarkovHead
from dspark_kernels.philox import DRAFT_STREAM, exponential_of, gumbel_row, noise_words

NO_TOKEN = tl.constexpr(2147483647)


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


@triton.jit
def round_to(value, DTYPE: tl.constexpr):
    """float32 rounded to DTYPE and back."""
    return value.to(DTYPE).to(tl.float32)


@triton.jit
def prepare_kernel(
    BASE, TEMPERATURE, REQUEST, STEP, BEST, TOKEN, SIZE,
    seed, stride_br, stride_bk, stride_step, gamma, vocab, blocks, SUB: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    # The largest noisy base logit of every block, where it is, and the largest finite |base logit|.
    row = tl.program_id(0).to(tl.int64)
    position = tl.program_id(1)
    first = tl.program_id(2) * (SUB * BLOCK)
    token = first + tl.arange(0, SUB * BLOCK)
    inside = token < vocab
    base = tl.load(BASE + row * stride_br + position * stride_bk + token, inside, -float("inf")).to(tl.float32)
    base = tl.where(base != base, -float("inf"), base)
    temperature = tl.load(TEMPERATURE + row)
    score = base
    if temperature > 0.0:
        request, step = tl.load(REQUEST + row), tl.load(STEP + row * stride_step)
        score = base / temperature + gumbel_row(seed, request, step, position, DRAFT_STREAM, first, SUB * BLOCK)
    score = tl.reshape(tl.where(inside, score, -float("inf")), [SUB, BLOCK])
    best = tl.max(score, 1)
    lane = tl.reshape(tl.arange(0, SUB * BLOCK), [SUB, BLOCK])
    where = tl.min(tl.where(score == best[:, None], lane, NO_TOKEN), 1)
    size = tl.where(inside & (tl.abs(base) < float("inf")), tl.abs(base), 0.0)
    block = tl.program_id(2) * SUB + tl.arange(0, SUB)
    out = (row * gamma + position) * blocks + block
    tl.store(BEST + out, best, block < blocks)
    tl.store(TOKEN + out, first + where, block < blocks)
    tl.store(SIZE + out, tl.max(tl.reshape(size, [SUB, BLOCK]), 1), block < blocks)


@triton.jit
def probe_kernel(BEST, TOKEN, PROBE, blocks, COUNT: tl.constexpr, BLOCK: tl.constexpr):
    # The tokens of the COUNT best blocks; their exact scores will be the bar that a tile has to reach.
    row = tl.program_id(0).to(tl.int64)
    block = tl.arange(0, BLOCK)
    best = tl.load(BEST + row * blocks + block, block < blocks, -float("inf"))
    left = block < blocks
    for index in tl.static_range(COUNT):
        top = tl.max(tl.where(left, best, -float("inf")), 0)
        pick = tl.min(tl.where(left & (best == top), block, BLOCK), 0)
        chosen = tl.load(TOKEN + row * blocks + pick, pick < blocks, 0)
        tl.store(PROBE + row * COUNT + index, chosen)
        left = left & (block != pick)


@triton.jit
def probe_bar(
    latent, BASE, PROBE, W2, REQUEST, STEP, row, temperature, seed, stride_br, stride_w2, stride_step, position,
    rank, vocab, out_row, error, COUNT: tl.constexpr, BLOCK_K: tl.constexpr, STEP_DTYPE: tl.constexpr,
):  # fmt: skip
    # A lower bound of the best score: every operation is monotone, the dot product's error is taken off first.
    column = tl.arange(0, BLOCK_K)
    token = tl.load(PROBE + out_row * COUNT + tl.arange(0, COUNT))
    known = (token >= 0) & (token < vocab)
    token = tl.where(known, token, 0)
    weight = tl.load(W2 + token.to(tl.int64)[:, None] * stride_w2 + column[None, :], (column < rank)[None, :], 0.0)
    weight = weight.to(tl.float32)
    bias = tl.sum(weight * latent[None, :], 1)
    slack = tl.sqrt(tl.sum(weight * weight, 1) * tl.sum(latent * latent, 0)) * error
    bias = round_to(bias - slack, W2.dtype.element_ty)
    base = tl.load(BASE + row * stride_br + token).to(tl.float32)
    value = round_to(base + bias, STEP_DTYPE)
    if temperature > 0.0:
        request, step = tl.load(REQUEST + row), tl.load(STEP + row * stride_step)
        w0, w1, w2, w3 = noise_words(seed, request, step, position, DRAFT_STREAM, token // 4)
        lane = token % 4
        bits = tl.where(lane == 0, w0, tl.where(lane == 1, w1, tl.where(lane == 2, w2, w3)))
        value = value / temperature - tl.log(exponential_of(bits))
    value = tl.where(known & (value == value), value, -float("inf"))
    bar = tl.max(value, 0)
    return tl.where(tl.abs(bar) < float("inf"), bar - 1e-5 * (tl.abs(bar) + 1.0), bar)


@triton.jit
def may_win(
    BEST, SIZE, BAR, PREVIOUS, LATENT, TABLE, CENTER, RADIUS, NORM, TEMPERATURE, row, inside, block, position, gamma,
    rank, blocks, error, unit, TABLED: tl.constexpr, ROWS: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    # Whether the best score that the bound allows in this block reaches the bar, by row.
    if TABLED:
        token = tl.load(PREVIOUS + row, inside, 0)
        bound = tl.load(TABLE + token * blocks + block, inside, 0.0).to(tl.float32)
    else:
        column = tl.arange(0, BLOCK_K)
        mask = inside[:, None] & (column < rank)[None, :]
        address = LATENT + (row.to(tl.int64) * gamma + position)[:, None] * rank + column[None, :]
        latent = tl.load(address, mask, 0.0).to(tl.float32)
        center = tl.load(CENTER + block.to(tl.int64) * rank + column, column < rank, 0.0)
        length = tl.sqrt(tl.sum(latent * latent, 1))
        bound = tl.sum(latent * center[None, :], 1) + length * tl.load(RADIUS + block)
        bound += length * tl.load(NORM + block) * (2.0 * error)
        # The bias itself is rounded, by at most its half unit.
        bound += tl.abs(bound) * unit
    out = (row.to(tl.int64) * gamma + position) * blocks + block
    best = tl.load(BEST + out, inside, -float("inf"))
    size = tl.load(SIZE + out, inside, 0.0) + tl.abs(bound)
    temperature = tl.load(TEMPERATURE + row, inside, 1.0)
    temperature = tl.where(temperature > 0.0, temperature, 1.0)
    # 1.2e-7: two roundings of float16 numbers too small to be normal.
    reach = best + (bound + unit * size + 1.2e-7) / temperature
    reach += 1e-5 * (tl.abs(best) + size / temperature + 1.0)
    reach = tl.where(best == -float("inf"), best, reach)
    return inside & ~(reach < tl.load(BAR + row, inside, -float("inf")))
