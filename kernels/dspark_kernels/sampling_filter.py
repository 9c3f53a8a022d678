"""top-k, top-p and min-p as one logit threshold per row, without sorting and without a table of probabilities.

The order of the three is SGLang's for speculative verification: top-k, then top-p on what is left, then min-p; tokens
that tie with the last one kept are kept too. The threshold is found by 16-way search on the ordered bits of the
logits, counting tokens (top-k) or summing their probability (top-p).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl


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
    for level in tl.static_range(LEVELS):
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
def _threshold_kernel(
    LOGITS, ROW_START, LENGTHS, TEMPERATURE, TOP_K, TOP_P, MIN_P, LARGEST, THRESHOLD, NORMALISER,
    stride_row, vocab, width, splits,
    HAS_K: tl.constexpr, HAS_P: tl.constexpr, HAS_MIN: tl.constexpr,
    LEVELS: tl.constexpr, BLOCK: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    request, position = tl.program_id(0).to(tl.int64), tl.program_id(1)
    if position <= tl.load(LENGTHS + request):
        temperature = tl.load(TEMPERATURE + request)
        temperature = tl.where(temperature > 0.0, temperature, 1.0)
        out = request * width + position
        split = tl.arange(0, BLOCK_S)
        largest = tl.max(tl.load(LARGEST + out * splits + split, split < splits, -float("inf")), 0)
        ROW = LOGITS + (tl.load(ROW_START + request).to(tl.int64) + position) * stride_row
        key = tl.zeros([], tl.uint32)
        if HAS_K:
            top_k = tl.load(TOP_K + request)
            if (top_k > 0) & (top_k < vocab):
                key = _search(ROW, vocab, top_k.to(tl.float32), temperature, largest, key, False, LEVELS, BLOCK)
        if HAS_P:
            top_p = tl.load(TOP_P + request)
            if top_p < 1.0:
                least = top_p * _weight_from(ROW, vocab, temperature, largest, key, BLOCK)
                found = _search(ROW, vocab, least, temperature, largest, key, True, LEVELS, BLOCK)
                key = tl.maximum(key, found)
        if HAS_MIN:
            min_p = tl.load(MIN_P + request)
            if min_p > 0.0:
                key = tl.maximum(key, _ordered(tl.minimum(largest, largest + temperature * tl.log(min_p))))
        tl.store(THRESHOLD + out, tl.where(key == 0, -float("inf"), _from_ordered(key)))
        tl.store(NORMALISER + out, tl.log(_weight_from(ROW, vocab, temperature, largest, key, BLOCK)))


# Ordered keys of 16-bit floats differ in their first 16 (bfloat16) or 19 (float16) bits alone: 4 bits a level.
_LEVELS = {torch.bfloat16: 4, torch.float16: 5, torch.float32: 8}


def row_thresholds(
    logits: torch.Tensor, row_start: torch.Tensor, lengths: torch.Tensor, temperatures: torch.Tensor,
    largest: torch.Tensor, top_k: torch.Tensor | None, top_p: torch.Tensor | None, min_p: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """The logit from which a token is kept, and log sum exp((z - largest) / T) over the kept ones, for every verified
    row.

    logits: [B, V] packed. row_start: [R], lengths: [R] int32. largest: [R, gamma + 1, splits] float32, partial row
    maxima.
    top_k: [R] int32 (<= 0 or >= V: off), top_p: [R] float32 (>= 1: off), min_p: [R] float32 (0: off), or None.
    Returns two [R, gamma + 1] float32; rows past a request's length are not written. A part of `verify`, which checks
    its input.
    """
    num_requests, width, splits = largest.shape
    threshold, normaliser = (
        torch.empty(num_requests, width, dtype=torch.float32, device=logits.device) for _ in range(2)
    )
    none = threshold
    _threshold_kernel[(num_requests, width)](
        logits, row_start, lengths, temperatures, none if top_k is None else top_k, none if top_p is None else top_p,
        none if min_p is None else min_p, largest, threshold, normaliser,
        logits.stride(0), logits.shape[1], width, splits,
        HAS_K=top_k is not None, HAS_P=top_p is not None, HAS_MIN=min_p is not None,
        LEVELS=_LEVELS[logits.dtype], BLOCK=1024, BLOCK_S=triton.next_power_of_2(splits), num_warps=8,
    )  # fmt: skip
    return threshold, normaliser


def keep_reference(
    logits: torch.Tensor,
    temperatures: torch.Tensor,
    top_k: torch.Tensor | None,
    top_p: torch.Tensor | None,
    min_p: torch.Tensor | None,
) -> torch.Tensor:
    """Which tokens the filters keep, in torch. logits: [R, n, V]; the rest [R]. Returns [R, n, V] bool."""
    scaled = logits.float() / torch.where(temperatures > 0, temperatures, 1.0)[:, None, None]
    vocab = logits.shape[-1]
    keep = ~torch.isnan(scaled)
    scaled = torch.where(keep, scaled, float("-inf"))
    ranked = scaled.sort(dim=-1, descending=True)[0]
    if top_k is not None:
        off = (top_k <= 0) | (top_k >= vocab)
        last = ranked.gather(-1, top_k.clamp(1, vocab).long().sub(1)[:, None, None].expand(-1, logits.shape[1], 1))
        keep &= off[:, None, None] | (scaled >= last)
    if top_p is not None:
        law = torch.softmax(torch.where(keep, scaled, float("-inf")), dim=-1)
        ordered, index = law.sort(dim=-1, descending=True)
        before = ordered.cumsum(dim=-1) - ordered
        needed = (before < top_p[:, None, None]).sum(dim=-1, keepdim=True).clamp(min=1)
        least = scaled.gather(-1, index.gather(-1, needed - 1))
        keep &= (top_p >= 1)[:, None, None] | (scaled >= least)
    if min_p is not None:
        with torch.no_grad():
            floor = torch.where(min_p > 0, torch.log(min_p), float("-inf"))[:, None, None]
        keep &= scaled >= ranked[..., :1] + floor
    return keep
