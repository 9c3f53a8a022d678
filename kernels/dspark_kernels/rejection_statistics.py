"""Largest logit, where it is, and normaliser of logit rows, each row cut into parts that run side by side."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from dspark_kernels.checks import FLOATS, expect_tensor
from dspark_kernels.interpreter import runs_kernel
from dspark_kernels.rejection_arguments import Parts, Target

NO_TOKEN = tl.constexpr(2147483647)


@triton.jit
def divisor_of(temperature):
    """A temperature to divide by: greedy rows, which are at 0, take 1."""
    return tl.where(temperature > 0.0, temperature, 1.0)


@triton.jit
def _statistics_kernel(target, temperatures, parts, BLOCK: tl.constexpr):
    # Largest logit, where it is, and sum exp((z - largest) / T), over one part of one verified row.
    request, position = tl.program_id(0).to(tl.int64), tl.program_id(1)
    if position <= tl.load(target.lengths + request):
        temperature = divisor_of(tl.load(temperatures + request))
        ROW = target.logits + (tl.load(target.row_start + request).to(tl.int64) + position) * target.stride_row
        first = tl.program_id(2) * parts.per_split
        end = tl.minimum(first + parts.per_split, target.vocab)
        largest = tl.full([BLOCK], -float("inf"), tl.float32)
        winner = tl.full([BLOCK], NO_TOKEN, tl.int32)
        total = tl.zeros([BLOCK], tl.float32)
        for start in range(first, end, BLOCK):
            token = start + tl.arange(0, BLOCK)
            logit = tl.load(ROW + token, token < end, -float("inf")).to(tl.float32)
            logit = tl.where(logit == logit, logit, -float("inf"))
            higher = tl.maximum(largest, logit)
            shift = tl.where(higher == -float("inf"), 0.0, higher)
            total = total * tl.exp((largest - shift) / temperature) + tl.exp((logit - shift) / temperature)
            winner = tl.where((logit > largest) | ((winner == NO_TOKEN) & (token < target.vocab)), token, winner)
            largest = higher
        top = tl.max(largest, 0)
        shift = tl.where(top == -float("inf"), 0.0, top)
        out = (request * parts.width + position) * parts.splits + tl.program_id(2)
        tl.store(parts.largest + out, top)
        tl.store(parts.winner + out, tl.min(tl.where(largest == top, winner, NO_TOKEN), 0))
        tl.store(parts.total + out, tl.sum(total * tl.exp((largest - shift) / temperature), 0))


def block_of(vocab: int) -> int:
    """Tokens that one program takes at a time."""
    return min(2048, max(16, triton.next_power_of_2(vocab)))


def row_statistics(target: Target, temperatures: torch.Tensor, width: int) -> Parts:
    """The parts of `width` rows a request. temperatures: [R] float32, dense, 0 counts as 1. Rows past a request's
    length are not read, and their entries mean nothing."""
    device, block = target.logits.device, block_of(target.vocab)
    splits = min(8, triton.cdiv(target.vocab, block))
    per_split = triton.cdiv(triton.cdiv(target.vocab, splits), block) * block
    shape, kinds = (temperatures.shape[0], width, splits), (torch.float32, torch.float32, torch.int32)
    parts = Parts(*(torch.empty(shape, dtype=kind, device=device) for kind in kinds), width, splits, per_split)
    _statistics_kernel[shape](target, temperatures, parts, BLOCK=block, num_warps=8)
    return parts


def draft_normaliser(step_logits: torch.Tensor, temperatures: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """log sum_v exp(step logit / T) of the verified positions, for drafts that come without it.

    step_logits: [R, gamma, V] float, contiguous. temperatures: [R] float32, 0 counts as 1. lengths: [R] int32;
    positions from lengths[r] on are not read, and their entries mean nothing. Returns [R, gamma] float32. Errors:
    ValueError, TypeError.
    """
    device = step_logits.device
    expect_tensor("step_logits", step_logits, [None, None, None], FLOATS, device)
    if not step_logits.is_contiguous():
        raise ValueError("step_logits is not contiguous")
    num_requests, gamma, vocab = step_logits.shape
    expect_tensor("temperatures", temperatures, [num_requests], torch.float32, device)
    expect_tensor("lengths", lengths, [num_requests], torch.int32, device)
    divisor = torch.where(temperatures > 0, temperatures, 1.0)[:, None]
    if not runs_kernel(step_logits) or num_requests == 0:
        return torch.logsumexp(step_logits.float() / divisor[:, :, None], dim=-1)
    row_start = gamma * torch.arange(num_requests, device=device)
    target = Target(step_logits, vocab, row_start, lengths - 1, vocab)
    parts = row_statistics(target, temperatures.contiguous(), gamma)
    top = parts.largest.amax(dim=-1)
    scale = torch.exp((parts.largest - top[..., None]) / divisor[..., None])
    return top / divisor + torch.log((parts.total * scale).sum(dim=-1))
