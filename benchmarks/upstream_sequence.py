"""SGLang 0.5.23's sequences, re-implemented on torch and Triton alone so that they can be timed where SGLang is not
installed.

Markov block: per step an embedding, a GEMM that writes [R, V] biases, a kernel that adds, rounds, stores the step
logits and picks by block, and one that finishes (`kernels/ops/speculative/dspark/markov_sample.py`,
`speculative/dspark_components/dspark_draft.py`).
Accept: scatter of the packed logits to [R * (gamma + 1), V], float32 softmax tables of target and draft, then one
program per request that walks them (`dspark_verify.py`, `dspark_accept.py`, `reject_sampling.py`).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from dspark_kernels.philox import gumbel_row

_BLOCK = 1024
_NO_TOKEN = tl.constexpr(2147483647)


@triton.jit
def _select_kernel(
    BIAS, BASE, TEMPERATURE, STEP, LOGITS, SCORE, TOKEN, stride_base, stride_logits, vocab, parts, key, position,
    STORE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    token = part * BLOCK + tl.arange(0, BLOCK)
    inside = token < vocab
    value = tl.load(BASE + row * stride_base + token, inside, -float("inf")).to(tl.float32)
    value += tl.load(BIAS + row * vocab + token, inside, 0.0).to(tl.float32)
    value = value.to(BIAS.dtype.element_ty).to(tl.float32)
    if STORE:
        tl.store(LOGITS + row * stride_logits + token, value.to(LOGITS.dtype.element_ty), inside)
    temperature = tl.load(TEMPERATURE + row)
    if temperature != 0.0:
        value = value / temperature + gumbel_row(key, row, tl.load(STEP), position, 0, part * BLOCK, BLOCK)
    best = tl.max(tl.where(inside, value, -float("inf")), 0)
    tl.store(SCORE + row * parts + part, best)
    tl.store(TOKEN + row * parts + part, tl.min(tl.where(inside & (value == best), token, _NO_TOKEN), 0))


@triton.jit
def _finish_kernel(SCORE, TOKEN, OUT, parts, BLOCK: tl.constexpr):
    row, part = tl.program_id(0), tl.arange(0, BLOCK)
    score = tl.load(SCORE + row * parts + part, part < parts, -float("inf"))
    token = tl.load(TOKEN + row * parts + part, part < parts, _NO_TOKEN)
    tl.store(OUT + row, tl.min(tl.where(score == tl.max(score, 0), token, _NO_TOKEN), 0).to(tl.int64))


def markov_block(
    w1: torch.Tensor, w2: torch.Tensor, base_logits: torch.Tensor, anchor: torch.Tensor, temperatures: torch.Tensor,
    step: torch.Tensor, *, keep: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:  # fmt: skip
    """gamma steps of GEMM and select. base_logits: [R, gamma, V]. Returns tokens [R, gamma] and the step logits when
    kept."""
    rows, gamma, vocab = base_logits.shape
    parts = triton.cdiv(vocab, _BLOCK)
    logits = torch.empty_like(base_logits) if keep else None
    score = torch.empty(rows, parts, dtype=torch.float32, device=base_logits.device)
    token = torch.empty(rows, parts, dtype=torch.int32, device=base_logits.device)
    previous, tokens = anchor, []
    for position in range(gamma):
        bias = F.linear(F.embedding(previous, w1), w2)
        base = base_logits[:, position]
        store = base if logits is None else logits[:, position]
        _select_kernel[(rows, parts)](
            bias, base, temperatures, step, store, score, token, base.stride(0), store.stride(0), vocab, parts, 7,
            position, STORE=keep, BLOCK=_BLOCK, num_warps=4,
        )  # fmt: skip
        previous = torch.empty(rows, dtype=torch.int64, device=base_logits.device)
        _finish_kernel[(rows,)](score, token, previous, parts, BLOCK=triton.next_power_of_2(parts), num_warps=4)
        tokens.append(previous)
    return torch.stack(tokens, dim=1), logits


@triton.jit
def _scatter_kernel(PACKED, LENGTHS, START, OUT, stride, vocab, width, BLOCK: tl.constexpr):
    request, position = tl.program_id(0).to(tl.int64), tl.program_id(1)
    token = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    source = (tl.load(START + request).to(tl.int64) + position) * stride
    there = (position <= tl.load(LENGTHS + request)) & (token < vocab)
    value = tl.load(PACKED + source + token, there, 0.0)
    tl.store(OUT + (request * width + position) * vocab + token, value, token < vocab)


@triton.jit
def _softmax_kernel(LOGITS, TEMPERATURE, OUT, vocab, per_request, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    temperature = tl.load(TEMPERATURE + row // per_request)
    largest, total = -float("inf"), 0.0
    for start in range(0, vocab, BLOCK):
        token = start + tl.arange(0, BLOCK)
        logit = tl.load(LOGITS + row * vocab + token, token < vocab, -float("inf")).to(tl.float32) / temperature
        higher = tl.maximum(largest, tl.max(logit, 0))
        total = total * tl.exp(largest - higher) + tl.sum(tl.exp(logit - higher), 0)
        largest = higher
    for start in range(0, vocab, BLOCK):
        token = start + tl.arange(0, BLOCK)
        logit = tl.load(LOGITS + row * vocab + token, token < vocab, -float("inf")).to(tl.float32) / temperature
        tl.store(OUT + row * vocab + token, tl.exp(logit - largest) / total, token < vocab)


@triton.jit
def _chain_kernel(P, Q, DRAFT, LENGTHS, COIN, LAST_COIN, ACCEPTED, BONUS, gamma, vocab, BLOCK: tl.constexpr):
    request = tl.program_id(0).to(tl.int64)
    length = tl.load(LENGTHS + request)
    accepted, going = 0, True
    for position in range(0, gamma):
        if going & (position < length):
            token = tl.load(DRAFT + request * gamma + position)
            p = tl.load(P + (request * (gamma + 1) + position) * vocab + token)
            q = tl.load(Q + (request * gamma + position) * vocab + token)
            going = tl.load(COIN + request * gamma + position) * q <= p
            accepted += going.to(tl.int32)
    rejected = accepted < length
    row = (request * (gamma + 1) + accepted) * vocab
    draft_row = (request * gamma + tl.minimum(accepted, gamma - 1)) * vocab
    total = 0.0
    for start in range(0, vocab, BLOCK):
        token = start + tl.arange(0, BLOCK)
        left = tl.load(P + row + token, token < vocab, 0.0)
        left -= tl.load(Q + draft_row + token, (token < vocab) & rejected, 0.0)
        total += tl.sum(tl.maximum(left, 0.0), 0)
    wanted = tl.load(LAST_COIN + request) * total
    before, chosen = 0.0, vocab - 1
    for start in range(0, vocab, BLOCK):
        token = start + tl.arange(0, BLOCK)
        left = tl.load(P + row + token, token < vocab, 0.0)
        left = tl.maximum(left - tl.load(Q + draft_row + token, (token < vocab) & rejected, 0.0), 0.0)
        reached = before + tl.cumsum(left, 0)
        chosen = tl.minimum(chosen, tl.min(tl.where((reached >= wanted) & (token < vocab), token, vocab - 1), 0))
        before += tl.sum(left, 0)
    tl.store(ACCEPTED + request, accepted)
    tl.store(BONUS + request, chosen.to(tl.int64))


def accept(
    packed: torch.Tensor, row_start: torch.Tensor, lengths: torch.Tensor, draft_tokens: torch.Tensor,
    temperatures: torch.Tensor, step_logits: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Scatter, two softmax tables, chain rejection. Returns accepted [R] int32 and bonus [R] int64."""
    (rows, gamma), vocab, device = draft_tokens.shape, packed.shape[1], packed.device
    width = gamma + 1
    strided = torch.empty(rows * width, vocab, dtype=packed.dtype, device=device)
    _scatter_kernel[(rows, width, triton.cdiv(vocab, 4096))](
        packed, lengths, row_start, strided, packed.stride(0), vocab, width, BLOCK=4096
    )
    p = torch.empty(rows * width, vocab, dtype=torch.float32, device=device)
    q = torch.empty(rows * gamma, vocab, dtype=torch.float32, device=device)
    _softmax_kernel[(rows * width,)](strided, temperatures, p, vocab, width, BLOCK=4096)
    _softmax_kernel[(rows * gamma,)](step_logits.view(rows * gamma, vocab), temperatures, q, vocab, gamma, BLOCK=4096)
    coins, last = torch.rand(rows, gamma, device=device), torch.rand(rows, device=device)
    accepted = torch.empty(rows, dtype=torch.int32, device=device)
    bonus = torch.empty(rows, dtype=torch.int64, device=device)
    _chain_kernel[(rows,)](
        p, q, draft_tokens, lengths, coins, last, accepted, bonus, gamma, vocab, BLOCK=4096, num_warps=4
    )
    return accepted, bonus
