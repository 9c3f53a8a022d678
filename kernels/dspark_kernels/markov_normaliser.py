"""Step logits and their normalisers for all positions of a drafted block, in one matrix product.

Once the tokens are drawn, so are the latents of all gamma steps, and W2 is read once for all of them instead of once
a step.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from dspark_kernels.markov_heads import MarkovHead
from dspark_kernels.markov_screening import round_to


@triton.jit
def _normaliser_kernel(
    BASE, LATENT, W2, TEMPERATURE, LOGITS, PARTIAL,
    stride_br, stride_bk, stride_w2, num_rows, gamma, rank, vocab, blocks,
    STORE: tl.constexpr, STEP_DTYPE: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, CHUNK_K: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(1)
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    token = block * BLOCK + tl.arange(0, BLOCK)
    inside = row < num_rows
    valid = inside[:, None] & (token < vocab)[None, :]
    bias = tl.zeros([ROWS, BLOCK], tl.float32)
    for start in range(0, rank, CHUNK_K):
        column = start + tl.arange(0, CHUNK_K)
        latent = tl.load(
            LATENT + row[:, None] * rank + column[None, :], inside[:, None] & (column < rank)[None, :], 0.0
        )
        mask = (token < vocab)[:, None] & (column < rank)[None, :]
        weight = tl.load(W2 + token.to(tl.int64)[:, None] * stride_w2 + column[None, :], mask, 0.0)
        bias = tl.dot(latent, tl.trans(weight), bias, input_precision="ieee")
    address = (row // gamma * stride_br + row % gamma * stride_bk)[:, None] + token[None, :]
    base = tl.load(BASE + address, valid, -float("inf")).to(tl.float32)
    value = round_to(base + round_to(bias, W2.dtype.element_ty), STEP_DTYPE)
    if STORE:
        tl.store(LOGITS + row[:, None] * vocab + token[None, :], value.to(LOGITS.dtype.element_ty), valid)
    temperature = tl.load(TEMPERATURE + row // gamma, inside, 1.0)
    value = value / tl.where(temperature > 0.0, temperature, 1.0)[:, None]
    value = tl.where(valid & (value == value), value, -float("inf"))
    largest = tl.max(value, 1)
    shift = tl.where(largest == -float("inf"), 0.0, largest)
    total = tl.sum(tl.exp(value - shift[:, None]), 1)
    tl.store(PARTIAL + row * blocks + block, tl.where(total > 0.0, shift + tl.log(total), -float("inf")), inside)


_TRITON_TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


def block_normaliser(
    head: MarkovHead, latent: torch.Tensor, base_logits: torch.Tensor, temperatures: torch.Tensor, keep_logits: bool,
    logits_out: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:  # fmt: skip
    """log sum_v exp(step logit / T) of every position, and the step logits on request.

    latent: [R, gamma, rank] in w2's dtype. base_logits: [R, gamma, V] float. temperatures: [R] float32, 0 counts as
    1.
    logits_out: where to write the step logits instead of a new tensor, contiguous.
    Returns ([R, gamma] float32, [R, gamma, V] in the step dtype or None). A part of `sample_markov_block`, which
    checks its input.
    """
    num_requests, gamma, vocab = base_logits.shape
    num_rows, dtype = num_requests * gamma, head.step_dtype(base_logits.dtype)
    rows = min(128, max(16, triton.next_power_of_2(num_rows)))
    block = 128
    blocks = triton.cdiv(vocab, block)
    partial = torch.empty(num_requests, gamma, blocks, dtype=torch.float32, device=latent.device)
    logits = logits_out
    if keep_logits and logits is None:
        logits = torch.empty(num_requests, gamma, vocab, dtype=dtype, device=latent.device)
    # Row groups vary fastest: they run side by side and share the tile of W2 in the cache.
    _normaliser_kernel[(triton.cdiv(num_rows, rows), blocks)](
        base_logits, latent, head.w2, temperatures, partial if logits is None else logits, partial,
        base_logits.stride(0), base_logits.stride(1), head.w2.stride(0), num_rows, gamma, head.rank, vocab, blocks,
        STORE=keep_logits, STEP_DTYPE=_TRITON_TYPES[dtype], ROWS=rows, BLOCK=block,
        CHUNK_K=max(16, min(64, triton.next_power_of_2(head.rank))), num_warps=8,
    )  # fmt: skip
    return torch.logsumexp(partial, dim=-1), logits
