"""Step logits and their normalisers for all positions of a drafted block, in one matrix product.

Once the tokens are drawn, so are the latents of all gamma steps, and W2 is read once for all of them instead of once
a step.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from dspark_kernels.markov_arguments import TRITON_TYPES, Batch, Weights
from dspark_kernels.markov_kernels import bias_of
from dspark_kernels.markov_screening import round_to


@triton.jit
def _normaliser_kernel(
    batch,
    weights,
    latent,
    logits,
    PARTIAL,
    STEP_DTYPE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    CHUNK_K: tl.constexpr,
):
    # One tile of ROWS rows (request, position) and BLOCK tokens: its logits, and log sum exp(logit / T) over it.
    block = tl.program_id(1)
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    request, position = row // batch.gamma, row % batch.gamma
    token = block * BLOCK + tl.arange(0, BLOCK)
    inside = row < batch.num_requests * batch.gamma
    valid = inside[:, None] & (token < batch.vocab)[None, :]
    bias = bias_of(latent, weights, row, inside, token, batch.vocab, ROWS, BLOCK, CHUNK_K)
    address = (request * batch.stride_request + position * batch.stride_position)[:, None] + token[None, :]
    base = tl.load(batch.base + address, valid, -float("inf")).to(tl.float32)
    value = round_to(base + round_to(bias, weights.w2.dtype.element_ty), STEP_DTYPE)
    if logits is not None:
        tl.store(logits + row[:, None] * batch.vocab + token[None, :], value.to(logits.dtype.element_ty), valid)
    temperature = tl.load(batch.temperatures + request, inside, 1.0)
    value = value / tl.where(temperature > 0.0, temperature, 1.0)[:, None]
    value = tl.where(valid & (value == value), value, -float("inf"))
    largest = tl.max(value, 1)
    shift = tl.where(largest == -float("inf"), 0.0, largest)
    total = tl.sum(tl.exp(value - shift[:, None]), 1)
    partial = tl.where(total > 0.0, shift + tl.log(total), -float("inf"))
    tl.store(PARTIAL + row * batch.blocks + block, partial, inside)


def tile_rows(num_rows: int) -> int:
    """Rows of a tile for so many (request, position) pairs; each value is a kernel of its own."""
    return min(128, max(16, triton.next_power_of_2(num_rows)))


def block_normaliser(
    batch: Batch,
    weights: Weights,
    latent: torch.Tensor,
    dtype: torch.dtype,
    keep_logits: bool,
    logits_out: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """log sum_v exp(step logit / T) of every position, and the step logits on request.

    latent: [R, gamma, rank] in w2's dtype. dtype: what step logits are rounded to.
    logits_out: where to write the step logits instead of a new tensor, contiguous.
    Returns ([R, gamma] float32, [R, gamma, V] in the step dtype or None). A part of `sample_markov_block`, which
    checks its input.
    """
    num_requests, gamma, vocab = batch.base.shape
    num_rows, block = num_requests * gamma, 128
    rows = tile_rows(num_rows)
    batch = batch._replace(blocks=triton.cdiv(vocab, block))
    partial = torch.empty(num_requests, gamma, batch.blocks, dtype=torch.float32, device=latent.device)
    logits = logits_out
    if keep_logits and logits is None:
        logits = torch.empty(num_requests, gamma, vocab, dtype=dtype, device=latent.device)
    # Row groups vary fastest: they run side by side and share the tile of W2 in the cache.
    _normaliser_kernel[(triton.cdiv(num_rows, rows), batch.blocks)](
        batch,
        weights,
        latent,
        logits,
        partial,
        STEP_DTYPE=TRITON_TYPES[dtype],
        ROWS=rows,
        BLOCK=block,
        CHUNK_K=max(16, min(64, triton.next_power_of_2(weights.rank))),
        num_warps=8,
    )
    return torch.logsumexp(partial, dim=-1), logits
