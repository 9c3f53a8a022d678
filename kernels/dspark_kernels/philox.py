"""Counter-based random numbers: Philox4x32-10, the same words in torch and in Triton.

Key: the seed. Counter: (index / 4, request, step, position | stream | step's high bits). `step` counts decode steps,
so that a position that is drafted again meets fresh words: a reused draw would tie lagged survivals to the current
block (design.md 3). Draft noise, acceptance coins and recovery noise are separate streams.
Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011); Random123's constants.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from dspark_kernels.checks import expect_range, expect_tensor
from dspark_kernels.interpreter import runs_kernel

DRAFT = 0
ACCEPT = 1
RECOVER = 2
DRAFT_STREAM = tl.constexpr(DRAFT)
ACCEPT_STREAM = tl.constexpr(ACCEPT)
RECOVER_STREAM = tl.constexpr(RECOVER)
MAX_SEED = (1 << 63) - 1
_TWO_POW_MINUS_32 = tl.constexpr(2.0**-32)


class Counters(NamedTuple):
    """Where the draws of a batch stand, as one argument of a kernel.

    seed: 0..2^63-1. request: [R] int64, dense. step: [1] or [R] int64; stride_step is 0 where one step holds for all.
    """

    seed: int
    request: torch.Tensor
    step: torch.Tensor
    stride_step: int

    @classmethod
    def of(cls, seed: int, request: torch.Tensor, step: torch.Tensor) -> Counters:
        """The counters as public functions take them; they pass `check_counters` first."""
        return cls(seed, request.contiguous(), step, step.stride(0) if step.shape[0] > 1 else 0)


@triton.jit
def noise_words(seed, request, step, position, STREAM: tl.constexpr, quad):
    """Four uint32 words for every `quad` (index / 4); word k belongs to index 4 * quad + k. request, step: int64
    scalars or blocks."""
    zero = tl.zeros_like(quad).to(tl.int64)
    high = ((step >> 32) & 0xFFFF) << 16
    last = zero + (position + (STREAM << 8) + high)
    return tl.philox(
        seed,
        quad.to(tl.uint32),
        (zero + (request & 0xFFFFFFFF)).to(tl.uint32),
        (zero + (step & 0xFFFFFFFF)).to(tl.uint32),
        last.to(tl.uint32),
        10,
    )


@triton.jit
def uniform_of(bits):
    """A float32 in (0, 1] from a uint32 word."""
    return (bits.to(tl.float32) + 0.5) * _TWO_POW_MINUS_32


@triton.jit
def exponential_of(bits):
    """A standard exponential from a uint32 word: -log(1 - u), exact to float32 at both ends and without log1p."""
    small = uniform_of(bits)
    # The series keeps the small values, which win a race, precise.
    series = small * (1.0 + small * (0.5 + small * (0.33333334 + small * (0.25 + small * (0.2 + small * 0.16666667)))))
    return tl.where(small < 0.0625, series, -tl.log(uniform_of(bits ^ 0xFFFFFFFF)))


@triton.jit
def gumbel_row(seed, request, step, position, STREAM: tl.constexpr, first, BLOCK: tl.constexpr):
    """Standard Gumbel noise [BLOCK] of the indices first .. first + BLOCK - 1; `first` and BLOCK are multiples of
    4."""
    quad = first // 4 + tl.arange(0, BLOCK // 4)
    w0, w1, w2, w3 = noise_words(seed, request, step, position, STREAM, quad)
    bits = tl.interleave(tl.interleave(w0, w2), tl.interleave(w1, w3))
    return -tl.log(exponential_of(bits))


@triton.jit
def _words_kernel(counters, OUT, position, count, STREAM: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    quad = tl.program_id(1) * (BLOCK // 4) + tl.arange(0, BLOCK // 4)
    request, step = tl.load(counters.request + row), tl.load(counters.step + row * counters.stride_step)
    w0, w1, w2, w3 = noise_words(counters.seed, request, step, position, STREAM, quad)
    bits = tl.interleave(tl.interleave(w0, w2), tl.interleave(w1, w3))
    index = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    tl.store(OUT + row.to(tl.int64) * count + index, bits.to(tl.int64), index < count)


def _multiply(a: torch.Tensor, b: int) -> tuple[torch.Tensor, torch.Tensor]:
    # High and low word of a 32 x 32 bit product; b in halves, so that int64 does not overflow.
    low_half, high_half = a * (b & 0xFFFF), a * (b >> 16)
    low = (((high_half & 0xFFFF) << 16) + low_half) & 0xFFFFFFFF
    return (high_half + (low_half >> 16)) >> 16, low


def philox_reference(
    seed: int, c0: torch.Tensor, c1: torch.Tensor, c2: torch.Tensor, c3: torch.Tensor
) -> list[torch.Tensor]:
    """Philox4x32-10 in torch: four int64 tensors of 32-bit words, from broadcastable int64 counters."""
    k0, k1 = seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF
    for _ in range(10):
        high_b, low_b = _multiply(c2, 0xCD9E8D57)
        high_a, low_a = _multiply(c0, 0xD2511F53)
        c0, c1, c2, c3 = high_b ^ c1 ^ k0, low_b, high_a ^ c3 ^ k1, low_a
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return list(torch.broadcast_tensors(c0, c1, c2, c3))


def words_reference(
    seed: int, request: torch.Tensor, step: torch.Tensor, position: int, stream: int, count: int
) -> torch.Tensor:
    """`draw_words` in torch."""
    quads = torch.arange((count + 3) // 4, device=request.device)[None, :]
    request, step = request[:, None], step.expand(request.shape[0])[:, None]
    last = position + (stream << 8) + (((step >> 32) & 0xFFFF) << 16)
    words = philox_reference(seed, quads, request & 0xFFFFFFFF, step & 0xFFFFFFFF, last)
    return torch.stack(words, dim=-1).flatten(1)[:, :count]


def uniform_reference(words: torch.Tensor) -> torch.Tensor:
    """`uniform_of` in torch."""
    return (words.to(torch.float32) + 0.5) * 2.0**-32


def gumbel_reference(words: torch.Tensor) -> torch.Tensor:
    """Standard Gumbel noise from words, as `gumbel_row` computes it."""
    small = uniform_reference(words)
    series = small * (1 + small * (0.5 + small * (0.33333334 + small * (0.25 + small * (0.2 + small * 0.16666667)))))
    exponential = torch.where(small < 0.0625, series, -torch.log(uniform_reference(words ^ 0xFFFFFFFF)))
    return -torch.log(exponential)


def check_counters(seed: int, request: torch.Tensor, step: torch.Tensor, device: torch.device) -> None:
    """Refuse seeds and counters that no kernel takes."""
    expect_range("seed", seed, 0, MAX_SEED)
    expect_tensor("request", request, [None], torch.int64, device)
    expect_tensor(
        "step",
        step,
        [step.shape[0] if step.ndim == 1 and step.shape[0] == 1 else request.shape[0]],
        torch.int64,
        device,
    )


def draw_words(
    seed: int, request: torch.Tensor, step: torch.Tensor, position: int, stream: int, count: int
) -> torch.Tensor:
    """Random 32-bit words for every request.

    seed: 0..2^63-1. request: [R] int64, an identity that stays with the request (its low 32 bits count). step: [1] or
    [R] int64, the number of decode steps so far (48 bits count). position: 0..255. stream: DRAFT, ACCEPT or RECOVER.
    count: words per request.
    Returns [R, count] int64 in 0..2^32-1. Errors: ValueError or TypeError for what does not fit.
    """
    check_counters(seed, request, step, request.device)
    expect_range("position", position, 0, 255)
    expect_range("stream", stream, 0, 255)
    expect_range("count", count, 1, 1 << 31)
    if not runs_kernel(request) or request.shape[0] == 0:
        return words_reference(seed, request, step, position, stream, count)
    out = torch.empty(request.shape[0], count, dtype=torch.int64, device=request.device)
    _words_kernel[(request.shape[0], triton.cdiv(count, 1024))](
        Counters.of(seed, request, step), out, position, count, STREAM=stream, BLOCK=1024
    )
    return out
