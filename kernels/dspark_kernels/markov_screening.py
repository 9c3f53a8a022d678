"""Screening for the Markov block: which tiles of the vocabulary could still hold the winner.

A tile is skipped when its largest noisy base logit plus the largest bias that it can get stays below a score that
some probed token is sure to reach. Bounds are inflated, and the bar lowered, by more than every rounding on the way,
so that skipping never changes a token.
"""

from __future__ import annotations

import triton
import triton.language as tl

from dspark_kernels.philox import DRAFT_STREAM, exponential_of, gumbel_row, noise_words

NO_TOKEN = tl.constexpr(2147483647)


@triton.jit
def round_to(value, DTYPE: tl.constexpr):
    """float32 rounded to DTYPE and back."""
    return value.to(DTYPE).to(tl.float32)


@triton.jit
def prepare_kernel(batch, screen, SUB: tl.constexpr, BLOCK: tl.constexpr):
    """The largest noisy base logit of SUB blocks, where it is, and the largest finite |base logit|."""
    row = tl.program_id(0).to(tl.int64)
    position = tl.program_id(1)
    first = tl.program_id(2) * (SUB * BLOCK)
    token = first + tl.arange(0, SUB * BLOCK)
    inside = token < batch.vocab
    ROW = batch.base + row * batch.stride_request + position * batch.stride_position
    base = tl.load(ROW + token, inside, -float("inf")).to(tl.float32)
    base = tl.where(base != base, -float("inf"), base)
    temperature = tl.load(batch.temperatures + row)
    score = base
    counters = batch.counters
    if temperature > 0.0:
        request, step = tl.load(counters.request + row), tl.load(counters.step + row * counters.stride_step)
        noise = gumbel_row(counters.seed, request, step, position, DRAFT_STREAM, first, SUB * BLOCK)
        score = base / temperature + noise
    score = tl.reshape(tl.where(inside, score, -float("inf")), [SUB, BLOCK])
    best = tl.max(score, 1)
    lane = tl.reshape(tl.arange(0, SUB * BLOCK), [SUB, BLOCK])
    where = tl.min(tl.where(score == best[:, None], lane, NO_TOKEN), 1)
    size = tl.where(inside & (tl.abs(base) < float("inf")), tl.abs(base), 0.0)
    block = tl.program_id(2) * SUB + tl.arange(0, SUB)
    out = (row * batch.gamma + position) * batch.blocks + block
    tl.store(screen.best + out, best, block < batch.blocks)
    tl.store(screen.token + out, first + where, block < batch.blocks)
    tl.store(screen.size + out, tl.max(tl.reshape(size, [SUB, BLOCK]), 1), block < batch.blocks)


@triton.jit
def probe_kernel(screen, blocks, COUNT: tl.constexpr, BLOCK: tl.constexpr):
    """The tokens of the COUNT best blocks; their exact scores will be the bar that a tile has to reach."""
    row = tl.program_id(0).to(tl.int64)
    block = tl.arange(0, BLOCK)
    best = tl.load(screen.best + row * blocks + block, block < blocks, -float("inf"))
    left = block < blocks
    for index in tl.static_range(COUNT):
        top = tl.max(tl.where(left, best, -float("inf")), 0)
        pick = tl.min(tl.where(left & (best == top), block, BLOCK), 0)
        chosen = tl.load(screen.token + row * blocks + pick, pick < blocks, 0)
        tl.store(screen.probe + row * COUNT + index, chosen)
        left = left & (block != pick)


@triton.jit
def probe_bar(
    batch, weights, screen, latent, row, position, COUNT: tl.constexpr, BLOCK_K: tl.constexpr, STEP_DTYPE: tl.constexpr
):
    """A lower bound of the best score: every operation is monotone, the dot product's error is taken off first."""
    column = tl.arange(0, BLOCK_K)
    token = tl.load(screen.probe + (row * batch.gamma + position) * COUNT + tl.arange(0, COUNT))
    known = (token >= 0) & (token < batch.vocab)
    token = tl.where(known, token, 0)
    W2_ROWS = weights.w2 + token.to(tl.int64)[:, None] * weights.stride_w2
    weight = tl.load(W2_ROWS + column[None, :], (column < weights.rank)[None, :], 0.0).to(tl.float32)
    bias = tl.sum(weight * latent[None, :], 1)
    slack = tl.sqrt(tl.sum(weight * weight, 1) * tl.sum(latent * latent, 0)) * screen.error
    bias = round_to(bias - slack, weights.w2.dtype.element_ty)
    ROW = batch.base + row * batch.stride_request + position * batch.stride_position
    value = round_to(tl.load(ROW + token).to(tl.float32) + bias, STEP_DTYPE)
    temperature = tl.load(batch.temperatures + row)
    counters = batch.counters
    if temperature > 0.0:
        request, step = tl.load(counters.request + row), tl.load(counters.step + row * counters.stride_step)
        w0, w1, w2, w3 = noise_words(counters.seed, request, step, position, DRAFT_STREAM, token // 4)
        lane = token % 4
        bits = tl.where(lane == 0, w0, tl.where(lane == 1, w1, tl.where(lane == 2, w2, w3)))
        value = value / temperature - tl.log(exponential_of(bits))
    value = tl.where(known & (value == value), value, -float("inf"))
    bar = tl.max(value, 0)
    return tl.where(tl.abs(bar) < float("inf"), bar - 1e-5 * (tl.abs(bar) + 1.0), bar)


@triton.jit
def _largest_bias(batch, rank, state, screen, bounds, row, inside, block, position, BLOCK_K: tl.constexpr):
    # By row: no token of the block gets a larger bias than this.
    if bounds.table is not None:
        token = tl.load(state.previous + row, inside, 0)
        bound = tl.load(bounds.table + token * batch.blocks + block, inside, 0.0).to(tl.float32)
    else:
        column = tl.arange(0, BLOCK_K)
        mask = inside[:, None] & (column < rank)[None, :]
        address = (row.to(tl.int64) * batch.gamma + position)[:, None] * rank + column[None, :]
        latent = tl.load(state.latent + address, mask, 0.0).to(tl.float32)
        center = tl.load(bounds.center + block.to(tl.int64) * rank + column, column < rank, 0.0)
        length = tl.sqrt(tl.sum(latent * latent, 1))
        bound = tl.sum(latent * center[None, :], 1) + length * tl.load(bounds.radius + block)
        bound += length * tl.load(bounds.norm + block) * (2.0 * screen.error)
        # The bias itself is rounded, by at most its half unit.
        bound += tl.abs(bound) * screen.unit
    return bound


@triton.jit
def may_win(batch, rank, state, screen, bounds, row, inside, block, position, BLOCK_K: tl.constexpr):
    """By row: whether the best score that the bound allows in this block reaches the bar."""
    bound = _largest_bias(batch, rank, state, screen, bounds, row, inside, block, position, BLOCK_K)
    out = (row.to(tl.int64) * batch.gamma + position) * batch.blocks + block
    best = tl.load(screen.best + out, inside, -float("inf"))
    size = tl.load(screen.size + out, inside, 0.0) + tl.abs(bound)
    temperature = tl.load(batch.temperatures + row, inside, 1.0)
    temperature = tl.where(temperature > 0.0, temperature, 1.0)
    # 1.2e-7: two roundings of float16 numbers too small to be normal.
    reach = best + (bound + screen.unit * size + 1.2e-7) / temperature
    reach += 1e-5 * (tl.abs(best) + size / temperature + 1.0)
    reach = tl.where(best == -float("inf"), best, reach)
    return inside & ~(reach < tl.load(screen.bar + row, inside, -float("inf")))
