"""The two launches of one draft step: settle the step before, and race over the vocabulary."""

from __future__ import annotations

import triton
import triton.language as tl

from dspark_kernels.markov_screening import NO_TOKEN, may_win, probe_bar, round_to
from dspark_kernels.philox import DRAFT_STREAM, exponential_of, noise_words


@triton.jit(do_not_specialize=["position"])
def advance_kernel(
    batch,
    weights,
    state,
    tiles,
    screen,
    position,
    FINISH: tl.constexpr,
    EMBED: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PROBES: tl.constexpr,
    STEP_DTYPE: tl.constexpr,
):
    """FINISH: pick the token of the step before from its tiles. EMBED: write this step's latent. With a screen: set the
    bar."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK_K)
    if FINISH:
        block = tl.arange(0, BLOCK_B)
        score = tl.load(tiles.score + row * batch.blocks + block, block < batch.blocks, -float("inf"))
        winner = tl.load(tiles.winner + row * batch.blocks + block, block < batch.blocks, NO_TOKEN)
        token = tl.min(tl.where(score == tl.max(score, 0), winner, NO_TOKEN), 0).to(tl.int64)
        # Only wrong bounds leave no tile computed; even then the token is one whose row can be read.
        token = tl.minimum(token, batch.vocab - 1)
        tl.store(state.tokens + row * batch.gamma + position - 1, token)
        tl.store(state.previous + row, token)
    else:
        token = tl.load(state.previous + row)
    here = state.latent + (row * batch.gamma + position) * weights.rank
    if EMBED:
        embedding = tl.load(weights.w1 + token * weights.stride_w1 + column, column < weights.rank, 0.0)
        tl.store(here + column, embedding, column < weights.rank)
        latent = embedding.to(tl.float32)
    elif screen is not None:
        latent = tl.load(here + column, column < weights.rank, 0.0).to(tl.float32)
    if screen is not None:
        bar = probe_bar(batch, weights, screen, latent, row, position, PROBES, BLOCK_K, STEP_DTYPE)
        tl.store(screen.bar + row, bar)


@triton.jit
def bias_of(latent, weights, row, inside, token, vocab, ROWS: tl.constexpr, BLOCK: tl.constexpr, CHUNK_K: tl.constexpr):
    """latent[row] . w2[token], [ROWS, BLOCK] float32: what decides and what is returned are the same instructions."""
    bias = tl.zeros([ROWS, BLOCK], tl.float32)
    rank = weights.rank
    for start in range(0, rank, CHUNK_K):
        column = start + tl.arange(0, CHUNK_K)
        mask = inside[:, None] & (column < rank)[None, :]
        left = tl.load(latent + row.to(tl.int64)[:, None] * rank + column[None, :], mask, 0.0)
        mask = (token < vocab)[:, None] & (column < rank)[None, :]
        right = tl.load(weights.w2 + token.to(tl.int64)[:, None] * weights.stride_w2 + column[None, :], mask, 0.0)
        bias = tl.dot(left, tl.trans(right), bias, input_precision="ieee")
    return bias


@triton.jit
def _noisy(value, temperature, counters, row, inside, block, position, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    # Sampled rows divided by their temperature, with Gumbel noise; greedy rows as they are.
    request = tl.load(counters.request + row, inside, 0)
    step = tl.load(counters.step + row * counters.stride_step, inside, 0)
    quad = block * (BLOCK // 4) + tl.arange(0, BLOCK // 4)[None, :] + tl.zeros([ROWS, 1], tl.int32)
    w0, w1, w2, w3 = noise_words(counters.seed, request[:, None], step[:, None], position, DRAFT_STREAM, quad)
    noise = -tl.log(exponential_of(tl.interleave(tl.interleave(w0, w2), tl.interleave(w1, w3))))
    sampled = (temperature > 0.0)[:, None]
    return tl.where(sampled, value / tl.where(sampled, temperature[:, None], 1.0) + noise, value)


@triton.jit(do_not_specialize=["position"])
def tile_kernel(
    batch,
    weights,
    state,
    tiles,
    screen,
    bounds,
    position,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_K: tl.constexpr,
    CHUNK_K: tl.constexpr,
    STEP_DTYPE: tl.constexpr,
):
    """Bias, noise and selection of ROWS rows over one block of the vocabulary, unless none of them can win in it."""
    block = tl.program_id(1)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = row < batch.num_requests
    out = row.to(tl.int64) * batch.blocks + block
    wanted = True
    if screen is not None:
        alive = may_win(batch, weights.rank, state, screen, bounds, row, inside, block, position, BLOCK_K)
        wanted = tl.max(alive.to(tl.int32), 0) > 0
    if wanted:
        if tiles.read is not None:
            tl.atomic_add(tiles.read + position, 1)
        token = block * BLOCK + tl.arange(0, BLOCK)
        valid = inside[:, None] & (token < batch.vocab)[None, :]
        latent_row = row.to(tl.int64) * batch.gamma + position
        bias = bias_of(state.latent, weights, latent_row, inside, token, batch.vocab, ROWS, BLOCK, CHUNK_K)
        BASE_ROWS = batch.base + row.to(tl.int64)[:, None] * batch.stride_request + position * batch.stride_position
        base = tl.load(BASE_ROWS + token[None, :], valid, -float("inf")).to(tl.float32)
        value = round_to(base + round_to(bias, weights.w2.dtype.element_ty), STEP_DTYPE)
        temperature = tl.load(batch.temperatures + row, inside, 0.0)
        if tl.max(temperature, 0) > 0.0:
            value = _noisy(value, temperature, batch.counters, row, inside, block, position, ROWS, BLOCK)
        value = tl.where(valid & (value == value), value, -float("inf"))
        best = tl.max(value, 1)
        winner = tl.where((token < batch.vocab)[None, :] & (value == best[:, None]), token[None, :], NO_TOKEN)
        tl.store(tiles.score + out, best, inside)
        tl.store(tiles.winner + out, tl.min(winner, 1), inside)
    else:
        tl.store(tiles.score + out, tl.full([ROWS], -float("inf"), tl.float32), inside)
        tl.store(tiles.winner + out, tl.full([ROWS], NO_TOKEN, tl.int32), inside)
