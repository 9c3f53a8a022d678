"""top-k, top-p and min-p as one logit threshold per row, without sorting and without a table of probabilities.

The order of the three is SGLang's for speculative verification: top-k, then top-p on what is left, then min-p; tokens
that tie with the last one kept are kept too. The threshold is found by 16-way search on the ordered bits of the
logits, counting tokens (top-k) or summing their probability (top-p).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from dspark_kernels.rejection_arguments import Kept, Parts, Target
from dspark_kernels.rejection_reference import Sampling
from dspark_kernels.rejection_statistics import divisor_of


@triton.jit
def _ordered(logit):
    # A uint32 that sorts as the float does.
    bits = logit.to(tl.uint32, bitcast=True)
    return tl.where((bits >> 31) > 0, bits ^ 0xFFFFFFFF, bits | 0x80000000)


@triton.jit
def _from_ordered(key):
    return tl.where((key >> 31) > 0, key ^ 0x80000000, key ^ 0xFFFFFFFF).to(tl.float32, bitcast=True)


@triton.jit
def _search(
    ROW, vocab, least, temperature, largest, kept_from, MASS: tl.constexpr, LEVELS: tl.constexpr, BLOCK: tl.constexpr
):
    # The largest key t such that the tokens with kept_from <= key and t <= key number (or weigh) at least `least`.
    base = tl.zeros([], tl.uint32)
    digit = tl.arange(0, 16)
    for level in range(0, LEVELS):
        shift = 28 - 4 * level
        total = tl.zeros([16], tl.float32)
        for start in range(0, vocab, BLOCK):
            token = start + tl.arange(0, BLOCK)
            logit = tl.load(ROW + token, token < vocab, -float("inf")).to(tl.float32)
            key = _ordered(logit)
            counted = (token < vocab) & (logit == logit) & (key >= base) & (key >= kept_from)
            place = tl.minimum((key - base) >> shift, 15).to(tl.int32)
            weight = tl.where(counted, 1.0, 0.0)
            if MASS:
                weight = tl.where(counted, tl.exp((logit - largest) / temperature), 0.0)
            total += tl.sum(tl.where(place[None, :] >= digit[:, None], weight[None, :], 0.0), 1)
        chosen = tl.max(tl.where((total >= least) | (digit == 0), digit, 0), 0)
        base += chosen.to(tl.uint32) << shift
    return base


@triton.jit
def _weight_from(ROW, vocab, temperature, largest, key_from, BLOCK: tl.constexpr):
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, vocab, BLOCK):
        token = start + tl.arange(0, BLOCK)
        logit = tl.load(ROW + token, token < vocab, -float("inf")).to(tl.float32)
        kept = (token < vocab) & (logit == logit) & (_ordered(logit) >= key_from)
        total += tl.where(kept, tl.exp((logit - largest) / temperature), 0.0)
    return tl.sum(total, 0)


@triton.jit
def _threshold_kernel(target, sampling, parts, kept, LEVELS: tl.constexpr, BLOCK: tl.constexpr, BLOCK_S: tl.constexpr):
    request, position = tl.program_id(0).to(tl.int64), tl.program_id(1)
    vocab = target.vocab
    if position <= tl.load(target.lengths + request):
        temperature = divisor_of(tl.load(sampling.temperatures + request))
        out = request * parts.width + position
        split = tl.arange(0, BLOCK_S)
        largest = tl.load(parts.largest + out * parts.splits + split, split < parts.splits, -float("inf"))
        largest = tl.max(largest, 0)
        ROW = target.logits + (tl.load(target.row_start + request).to(tl.int64) + position) * target.stride_row
        key = tl.zeros([], tl.uint32)
        if sampling.top_k is not None:
            top_k = tl.load(sampling.top_k + request)
            if (top_k > 0) & (top_k < vocab):
                key = _search(ROW, vocab, top_k.to(tl.float32), temperature, largest, key, False, LEVELS, BLOCK)
        if sampling.top_p is not None:
            top_p = tl.load(sampling.top_p + request)
            if top_p < 1.0:
                least = top_p * _weight_from(ROW, vocab, temperature, largest, key, BLOCK)
                found = _search(ROW, vocab, least, temperature, largest, key, True, LEVELS, BLOCK)
                key = tl.maximum(key, found)
        if sampling.min_p is not None:
            min_p = tl.load(sampling.min_p + request)
            if min_p > 0.0:
                key = tl.maximum(key, _ordered(tl.minimum(largest, largest + temperature * tl.log(min_p))))
        tl.store(kept.threshold + out, tl.where(key == 0, -float("inf"), _from_ordered(key)))
        tl.store(kept.normaliser + out, tl.log(_weight_from(ROW, vocab, temperature, largest, key, BLOCK)))


# Ordered keys of 16-bit floats differ in their first 16 (bfloat16) or 19 (float16) bits alone: 4 bits a level.
_LEVELS = {torch.bfloat16: 4, torch.float16: 5, torch.float32: 8}


def row_thresholds(target: Target, sampling: Sampling, parts: Parts) -> Kept:
    """What the filters keep of every verified row; rows past a request's length are not written.

    parts: the rows' `row_statistics`. A part of `verify`, which checks its input.
    """
    rows = parts.largest.shape[:2]
    kept = Kept(*(torch.empty(rows, dtype=torch.float32, device=target.logits.device) for _ in range(2)))
    _threshold_kernel[rows](
        target,
        sampling,
        parts,
        kept,
        LEVELS=_LEVELS[target.logits.dtype],
        BLOCK=1024,
        BLOCK_S=triton.next_power_of_2(parts.splits),
        num_warps=8,
    )
    return kept
