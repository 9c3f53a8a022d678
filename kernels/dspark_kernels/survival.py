"""Confidence and survival of a drafted block in one pass.

Confidence is SGLang's head: sigmoid(proj([h_k ; W1[x_{k-1}]]) / T_k), in float32 (`srt/models/dspark.py`,
`DSparkConfidenceHead`). Survival is the left-to-right float32 product of the confidences, rounded to integer
multiples of 2^-24 (design.md 3), so that every implementation orders a batch alike.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from dspark_kernels.checks import FLOATS, expect_range, expect_rows, expect_tensor
from dspark_kernels.interpreter import runs_kernel

SURVIVAL_SCALE = 1 << 24
"""Survival 1.0 in units."""
MAX_GAMMA = 16


class Confidence(NamedTuple):
    """confidence: [R, gamma] float32 in 0..1. raw: [R, gamma] float32, before temperature and sigmoid.
    units: [R, gamma] int32 survival in 0..2^24, non-increasing along gamma."""

    confidence: torch.Tensor
    raw: torch.Tensor
    units: torch.Tensor


@triton.jit
def _survival_of(confidence, position, GAMMA: tl.constexpr):
    # A scan would multiply in another order and round differently: the product is taken left to right.
    confidence = tl.where((confidence >= 0.0) & (confidence <= 1.0), confidence, 0.0)  # NaN compares false
    units = tl.zeros_like(confidence).to(tl.int32)
    survival = 1.0
    for j in tl.static_range(GAMMA):
        survival = survival * tl.sum(tl.where(position == j, confidence, 0.0), 0)
        scaled = survival * 16777216.0
        # Round half to even without libdevice: adding 2^23 drops the fraction; from 2^23 on there is none.
        rounded = tl.where(scaled < 8388608.0, (scaled + 8388608.0) - 8388608.0, scaled)
        units = tl.where(position == j, rounded.to(tl.int32), units)
    return units


@triton.jit
def _survival_kernel(CONFIDENCE, UNITS, GAMMA: tl.constexpr, BLOCK_G: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    position = tl.arange(0, BLOCK_G)
    confidence = tl.load(CONFIDENCE + row * GAMMA + position, position < GAMMA, 0.0)
    tl.store(UNITS + row * GAMMA + position, _survival_of(confidence, position, GAMMA), position < GAMMA)


class _Drafted(NamedTuple):
    """hidden: [R, gamma, width], rows dense. anchor: [R] int64. draft: [R, gamma] int64, dense."""

    hidden: torch.Tensor
    stride_request: int
    stride_position: int
    width: int
    anchor: torch.Tensor
    draft: torch.Tensor


class _Head(NamedTuple):
    """weight: [width + rank]. bias: [1] or None. temperature: [] or [gamma] float32. w1: [V, rank], rows dense, or
    None."""

    weight: torch.Tensor
    bias: torch.Tensor | None
    temperature: torch.Tensor
    stride_temperature: int
    w1: torch.Tensor | None
    stride_w1: int
    rank: int


@triton.jit
def _confidence_kernel(
    drafted, head, out, GAMMA: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_K: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    position = tl.arange(0, BLOCK_G)
    inside = position < GAMMA
    HIDDEN = drafted.hidden + row * drafted.stride_request + position[:, None] * drafted.stride_position
    products = tl.zeros([BLOCK_G, BLOCK_H], tl.float32)
    for start in range(0, drafted.width, BLOCK_H):
        column = start + tl.arange(0, BLOCK_H)
        mask = inside[:, None] & (column < drafted.width)[None, :]
        weight = tl.load(head.weight + column, column < drafted.width, 0.0).to(tl.float32)
        products += tl.load(HIDDEN + column[None, :], mask, 0.0).to(tl.float32) * weight[None, :]
    raw = tl.sum(products, 1)
    if head.w1 is not None:
        before = tl.load(drafted.draft + row * GAMMA + position - 1, inside & (position > 0), 0)
        token = tl.where(position == 0, tl.load(drafted.anchor + row), before)
        column = tl.arange(0, BLOCK_K)
        mask = inside[:, None] & (column < head.rank)[None, :]
        embedding = tl.load(head.w1 + token[:, None] * head.stride_w1 + column[None, :], mask, 0.0)
        # SGLang casts the embedding to the hidden states' dtype before it goes to float32.
        embedding = embedding.to(drafted.hidden.dtype.element_ty).to(tl.float32)
        weight = tl.load(head.weight + drafted.width + column, column < head.rank, 0.0).to(tl.float32)
        raw += tl.sum(embedding * weight[None, :], 1)
    if head.bias is not None:
        raw += tl.load(head.bias).to(tl.float32)
    temperature = tl.load(head.temperature + position * head.stride_temperature, inside, 1.0)
    confidence = 1.0 / (1.0 + tl.exp(-raw / temperature))
    tl.store(out.raw + row * GAMMA + position, raw, inside)
    tl.store(out.confidence + row * GAMMA + position, confidence, inside)
    tl.store(out.units + row * GAMMA + position, _survival_of(confidence, position, GAMMA), inside)


def survival_reference(confidence: torch.Tensor) -> torch.Tensor:
    """`survival_units` in torch."""
    confidence = torch.where((confidence >= 0) & (confidence <= 1), confidence, 0.0)
    survival = torch.empty_like(confidence)
    running = torch.ones_like(confidence[:, 0])
    for position in range(confidence.shape[1]):
        running = running * confidence[:, position]
        survival[:, position] = running
    return torch.round(survival * float(SURVIVAL_SCALE)).to(torch.int32)


def survival_units(confidence: torch.Tensor) -> torch.Tensor:
    """Survivals of a block as integers.

    confidence: [R, gamma] float32 in 0..1, gamma 1..16. Returns [R, gamma] int32, multiples of 2^-24, non-increasing
    along gamma. A confidence that is no probability (NaN, infinite, outside 0..1) counts as 0.
    Errors: ValueError or TypeError for another shape or dtype. Source: design.md 3.
    """
    expect_tensor("confidence", confidence, [None, None], torch.float32, confidence.device)
    num_requests, gamma = confidence.shape
    expect_range("gamma", gamma, 1, MAX_GAMMA)
    if not runs_kernel(confidence) or num_requests == 0:
        return survival_reference(confidence)
    units = torch.empty(num_requests, gamma, dtype=torch.int32, device=confidence.device)
    _survival_kernel[(num_requests,)](
        confidence.contiguous(), units, GAMMA=gamma, BLOCK_G=triton.next_power_of_2(gamma), num_warps=1
    )
    return units


def confidence_reference(
    hidden: torch.Tensor,
    anchor: torch.Tensor,
    draft: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    temperatures: torch.Tensor,
    w1: torch.Tensor | None,
) -> Confidence:
    """`confidence_survival` in torch, written as SGLang's head is."""
    features = hidden
    if w1 is not None:
        previous = torch.cat([anchor[:, None], draft[:, :-1]], dim=1)
        features = torch.cat([hidden, w1[previous].to(hidden.dtype)], dim=-1)
    raw = features.float() @ weight.float().view(-1)
    if bias is not None:
        raw = raw + bias.float()
    confidence = torch.sigmoid(raw / temperatures)
    return Confidence(confidence, raw, survival_reference(confidence))


def confidence_survival(
    hidden: torch.Tensor,
    anchor: torch.Tensor,
    draft: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    temperatures: torch.Tensor,
    w1: torch.Tensor | None = None,
) -> Confidence:
    """Confidence and survival of every draft token; c[r, k] sees x_{r, <k} only.

    hidden: [R, gamma, H] float, the draft's final hidden states. anchor: [R] int64. draft: [R, gamma] int64 drafted
    tokens.
    weight: [1, H + rank] or [H + rank] float (SGLang keeps float32). bias: [1] or None. temperatures: [] or [gamma]
    float32, STS.
    w1: [V, rank] float Markov embedding, or None for a head without it (then weight has H entries).
    Returns `Confidence`. Errors: ValueError or TypeError for a shape, dtype or device that does not fit.
    Source: SGLang 0.5.23 `DSparkConfidenceHead.predict`; design.md 3 for the survival.
    """
    device = hidden.device
    expect_tensor("hidden", hidden, [None, None, None], FLOATS, device)
    num_requests, gamma, width = hidden.shape
    expect_range("gamma", gamma, 1, MAX_GAMMA)
    expect_rows("hidden", hidden)
    expect_tensor("anchor", anchor, [num_requests], torch.int64, device)
    expect_tensor("draft", draft, [num_requests, gamma], torch.int64, device)
    rank = 0
    if w1 is not None:
        expect_tensor("w1", w1, [None, None], FLOATS, device)
        expect_rows("w1", w1)
        rank = w1.shape[1]
    expect_tensor("weight", weight.view(-1), [width + rank], FLOATS, device)
    if bias is not None:
        expect_tensor("bias", bias.view(-1), [1], FLOATS, device)
    expect_tensor("temperatures", temperatures, [] if temperatures.ndim == 0 else [gamma], torch.float32, device)
    if not runs_kernel(hidden) or num_requests == 0:
        return confidence_reference(hidden, anchor, draft, weight, bias, temperatures, w1)
    kinds = (torch.float32, torch.float32, torch.int32)
    out = Confidence(*(torch.empty(num_requests, gamma, dtype=kind, device=device) for kind in kinds))
    drafted = _Drafted(hidden, *hidden.stride()[:2], width, anchor.contiguous(), draft.contiguous())
    head = _Head(
        weight.view(-1).contiguous(),
        bias,
        temperatures,
        temperatures.stride(0) if temperatures.ndim else 0,
        w1,
        0 if w1 is None else w1.stride(0),
        rank,
    )
    _confidence_kernel[(num_requests,)](
        drafted,
        head,
        out,
        GAMMA=gamma,
        BLOCK_G=triton.next_power_of_2(gamma),
        BLOCK_H=512,
        BLOCK_K=triton.next_power_of_2(max(rank, 1)),
        num_warps=8,
    )
    return out
