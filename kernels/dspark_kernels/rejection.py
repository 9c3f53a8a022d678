"""Packed rejection sampling: which draft tokens of a ragged verify are accepted, and the token that follows them.

Reads the packed target logits [B, V] once for their normalisers, then one row per request for the residual (or bonus)
draw. Nothing is scattered to [R * (gamma + 1), V] and no probability table is written. Draft token j is accepted with
probability min(1, p / q); the first rejected one is replaced by a draw from max(p - q, 0); when all verified ones are
accepted, the bonus is a fresh draw from the target at the last verified row, which keeps any lossless choice of
verify lengths lossless (design.md 3).
Source: Leviathan et al., arXiv 2211.17192; SGLang 0.5.23 `dspark_accept.py` for the order of temperature and filters.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from dspark_kernels.checks import FLOATS, expect_range, expect_rows, expect_tensor
from dspark_kernels.interpreter import runs_kernel
from dspark_kernels.philox import ACCEPT_STREAM, RECOVER_STREAM, check_counters, gumbel_row, noise_words, uniform_of
from dspark_kernels.rejection_reference import DraftLaw, Sampling, Verified, verify_reference
from dspark_kernels.sampling_filter import row_thresholds
from dspark_kernels.survival import MAX_GAMMA

_NO_TOKEN = tl.constexpr(2147483647)


@triton.jit
def _statistics_kernel(
    LOGITS, ROW_START, LENGTHS, TEMPERATURE, LARGEST, TOTAL, WINNER,
    stride_row, vocab, width, splits, per_split, BLOCK: tl.constexpr,
):  # fmt: skip
    # Largest logit, where it is, and sum exp((z - largest) / T), over one split of one verified row.
    request, position = tl.program_id(0).to(tl.int64), tl.program_id(1)
    if position <= tl.load(LENGTHS + request):
        temperature = tl.load(TEMPERATURE + request)
        temperature = tl.where(temperature > 0.0, temperature, 1.0)
        row = tl.load(ROW_START + request).to(tl.int64) + position
        first = tl.program_id(2) * per_split
        largest = tl.full([BLOCK], -float("inf"), tl.float32)
        winner = tl.full([BLOCK], _NO_TOKEN, tl.int32)
        total = tl.zeros([BLOCK], tl.float32)
        for start in range(first, tl.minimum(first + per_split, vocab), BLOCK):
            token = start + tl.arange(0, BLOCK)
            logit = tl.load(
                LOGITS + row * stride_row + token, token < tl.minimum(first + per_split, vocab), -float("inf")
            )
            logit = logit.to(tl.float32)
            logit = tl.where(logit == logit, logit, -float("inf"))
            higher = tl.maximum(largest, logit)
            shift = tl.where(higher == -float("inf"), 0.0, higher)
            total = total * tl.exp((largest - shift) / temperature) + tl.exp((logit - shift) / temperature)
            winner = tl.where((logit > largest) | ((winner == _NO_TOKEN) & (token < vocab)), token, winner)
            largest = higher
        top = tl.max(largest, 0)
        shift = tl.where(top == -float("inf"), 0.0, top)
        out = (request * width + position) * splits + tl.program_id(2)
        tl.store(LARGEST + out, top)
        tl.store(WINNER + out, tl.min(tl.where(largest == top, winner, _NO_TOKEN), 0))
        tl.store(TOTAL + out, tl.sum(total * tl.exp((largest - shift) / temperature), 0))


@triton.jit
def _accept_kernel(
    LOGITS, ROW_START, LENGTHS, DRAFT_TOKENS, TEMPERATURE, TOP_K, LARGEST, TOTAL, WINNER, THRESHOLD, NORMALISER,
    STEP_LOGITS, LOG_NORMALISER, DRAFT_TEMPERATURE, REQUEST, STEP, ACCEPTED, BONUS, ROW_NORMALISER,
    seed, stride_row, stride_dr, stride_dk, stride_step, gamma, vocab, splits,
    FILTERED: tl.constexpr, HAS_K: tl.constexpr, HAS_LAW: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    request = tl.program_id(0).to(tl.int64)
    length = tl.load(LENGTHS + request)
    temperature = tl.load(TEMPERATURE + request)
    greedy = temperature <= 0.0
    if HAS_K:
        greedy = greedy | (tl.load(TOP_K + request) == 1)
    temperature = tl.where(temperature > 0.0, temperature, 1.0)
    position, split = tl.arange(0, BLOCK_G), tl.arange(0, BLOCK_S)
    row = request * (gamma + 1) + position
    there = position <= length
    mask = there[:, None] & (split < splits)[None, :]
    address = row[:, None] * splits + split[None, :]
    largest = tl.load(LARGEST + address, mask, -float("inf"))
    top = tl.max(largest, 1)
    winner = tl.load(WINNER + address, mask, _NO_TOKEN)
    winner = tl.min(tl.where(largest == top[:, None], winner, _NO_TOKEN), 1)
    if FILTERED:
        threshold = tl.load(THRESHOLD + row, there, -float("inf"))
        normaliser = top / temperature + tl.load(NORMALISER + row, there, 0.0)
    else:
        threshold = tl.full([BLOCK_G], -float("inf"), tl.float32)
        shift = tl.where(top == -float("inf"), 0.0, top)[:, None]
        total = tl.load(TOTAL + address, mask, 0.0) * tl.exp((largest - shift) / temperature)
        normaliser = top / temperature + tl.log(tl.sum(tl.where(mask, total, 0.0), 1))
    drafted = position < length
    token = tl.load(DRAFT_TOKENS + request * gamma + position, drafted, 0)
    start = tl.load(ROW_START + request).to(tl.int64)
    logit = tl.load(LOGITS + (start + position) * stride_row + token, drafted, -float("inf")).to(tl.float32)
    p = tl.where(logit >= threshold, tl.exp(logit / temperature - normaliser), 0.0)
    q = tl.full([BLOCK_G], 1.0, tl.float32)
    if HAS_LAW:
        draft_temperature = tl.load(DRAFT_TEMPERATURE + request)
        draft_temperature = tl.where(draft_temperature > 0.0, draft_temperature, 1.0)
        draft_logit = tl.load(STEP_LOGITS + request * stride_dr + position * stride_dk + token, drafted, 0.0).to(
            tl.float32
        )
        q = tl.exp(draft_logit / draft_temperature - tl.load(LOG_NORMALISER + request * gamma + position, drafted, 0.0))
    request_id, step = tl.load(REQUEST + request), tl.load(STEP + request * stride_step)
    coin, _1, _2, _3 = noise_words(seed, request_id, step, position, ACCEPT_STREAM, tl.zeros([BLOCK_G], tl.int32))
    accept = (p > 0.0) & (uniform_of(coin) * q <= p)
    accept = tl.where(greedy, winner == token, accept)
    accepted = tl.min(tl.where(drafted & ~accept, position, length), 0)
    at = position == accepted
    tl.store(ACCEPTED + request, accepted)
    # Greedy requests are done; the others draw below, and -1 says so.
    greedy_token = tl.max(tl.where(at, winner, -1), 0)
    tl.store(BONUS + request, tl.where(greedy, greedy_token, -1).to(tl.int64))
    tl.store(ROW_NORMALISER + request, tl.max(tl.where(at, normaliser, -float("inf")), 0))


@triton.jit
def _recover_kernel(
    LOGITS, ROW_START, LENGTHS, DRAFT_TOKENS, TEMPERATURE, THRESHOLD, STEP_LOGITS, LOG_NORMALISER, DRAFT_TEMPERATURE,
    REQUEST, STEP, ACCEPTED, BONUS, ROW_NORMALISER, RESIDUAL, RESIDUAL_TOKEN, TARGET, TARGET_TOKEN,
    seed, stride_row, stride_dr, stride_dk, stride_step, gamma, vocab, splits, per_split,
    FILTERED: tl.constexpr, HAS_LAW: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    # One split of two races with the same noise: the residual's, and the target's in case rounding leaves no
    # residual.
    request = tl.program_id(0).to(tl.int64)
    if tl.load(BONUS + request) < 0:
        accepted = tl.load(ACCEPTED + request)
        rejected = accepted < tl.load(LENGTHS + request)
        temperature = tl.load(TEMPERATURE + request)
        row = tl.load(ROW_START + request).to(tl.int64) + accepted
        normaliser = tl.load(ROW_NORMALISER + request)
        threshold = -float("inf")
        if FILTERED:
            threshold = tl.load(THRESHOLD + request * (gamma + 1) + accepted)
        refused = tl.load(DRAFT_TOKENS + request * gamma + accepted, rejected, -1)
        request_id, step = tl.load(REQUEST + request), tl.load(STEP + request * stride_step)
        if HAS_LAW:
            draft_temperature = tl.load(DRAFT_TEMPERATURE + request)
            draft_temperature = tl.where(draft_temperature > 0.0, draft_temperature, 1.0)
            draft_normaliser = tl.load(LOG_NORMALISER + request * gamma + accepted, rejected, 0.0)
        first = tl.program_id(1) * per_split
        residual, target = tl.full([BLOCK], -float("inf"), tl.float32), tl.full([BLOCK], -float("inf"), tl.float32)
        residual_token, target_token = tl.full([BLOCK], _NO_TOKEN, tl.int32), tl.full([BLOCK], _NO_TOKEN, tl.int32)
        for start in range(first, tl.minimum(first + per_split, vocab), BLOCK):
            token = start + tl.arange(0, BLOCK)
            inside = token < tl.minimum(first + per_split, vocab)
            logit = tl.load(LOGITS + row * stride_row + token, inside, -float("inf")).to(tl.float32)
            kept = inside & (logit >= threshold) & (logit > -float("inf"))
            log_p = logit / temperature - normaliser
            left = tl.where(kept, tl.exp(log_p), 0.0)
            if HAS_LAW:
                address = STEP_LOGITS + request * stride_dr + accepted * stride_dk + token
                draft_logit = tl.load(address, inside & rejected, -float("inf")).to(tl.float32)
                left -= tl.where(rejected, tl.exp(draft_logit / draft_temperature - draft_normaliser), 0.0)
            else:
                left = tl.where(token == refused, 0.0, left)
            noise = gumbel_row(seed, request_id, step, accepted, RECOVER_STREAM, start, BLOCK)
            score = tl.where(left > 0.0, tl.log(tl.where(left > 0.0, left, 1.0)) + noise, -float("inf"))
            residual_token = tl.where(score > residual, token, residual_token)
            residual = tl.maximum(residual, score)
            score = tl.where(kept, log_p + noise, -float("inf"))
            target_token = tl.where(score > target, token, target_token)
            target = tl.maximum(target, score)
        out = request * splits + tl.program_id(1)
        best = tl.max(residual, 0)
        tl.store(RESIDUAL + out, best)
        tl.store(RESIDUAL_TOKEN + out, tl.min(tl.where(residual == best, residual_token, _NO_TOKEN), 0))
        best = tl.max(target, 0)
        tl.store(TARGET + out, best)
        tl.store(TARGET_TOKEN + out, tl.min(tl.where(target == best, target_token, _NO_TOKEN), 0))


@triton.jit
def _pick_kernel(BONUS, RESIDUAL, RESIDUAL_TOKEN, TARGET, TARGET_TOKEN, splits, BLOCK_S: tl.constexpr):
    request = tl.program_id(0).to(tl.int64)
    if tl.load(BONUS + request) < 0:
        split = tl.arange(0, BLOCK_S)
        inside, address = split < splits, request * splits + split
        residual = tl.load(RESIDUAL + address, inside, -float("inf"))
        target = tl.load(TARGET + address, inside, -float("inf"))
        token = tl.min(
            tl.where(residual == tl.max(residual, 0), tl.load(RESIDUAL_TOKEN + address, inside, _NO_TOKEN), _NO_TOKEN),
            0,
        )
        spare = tl.min(
            tl.where(target == tl.max(target, 0), tl.load(TARGET_TOKEN + address, inside, _NO_TOKEN), _NO_TOKEN), 0
        )
        token = tl.where(tl.max(residual, 0) > -float("inf"), token, spare)
        tl.store(BONUS + request, tl.where(token == _NO_TOKEN, 0, token).to(tl.int64))


def _check(target_logits, row_start, lengths, draft_tokens, sampling, law, seed, request, step) -> None:
    device = target_logits.device
    expect_tensor("target_logits", target_logits, [None, None], FLOATS, device)
    expect_rows("target_logits", target_logits)
    expect_tensor("draft_tokens", draft_tokens, [None, None], torch.int64, device)
    num_requests, gamma = draft_tokens.shape
    expect_range("gamma", gamma, 1, MAX_GAMMA)
    expect_tensor("row_start", row_start, [num_requests], (torch.int32, torch.int64), device)
    expect_tensor("lengths", lengths, [num_requests], torch.int32, device)
    expect_tensor("temperatures", sampling.temperatures, [num_requests], torch.float32, device)
    for name, dtype in (("top_k", torch.int32), ("top_p", torch.float32), ("min_p", torch.float32)):
        if getattr(sampling, name) is not None:
            expect_tensor(name, getattr(sampling, name), [num_requests], dtype, device)
    if law is not None:
        expect_tensor("step_logits", law.step_logits, [num_requests, gamma, target_logits.shape[1]], FLOATS, device)
        expect_rows("step_logits", law.step_logits)
        expect_tensor("log_normaliser", law.log_normaliser, [num_requests, gamma], torch.float32, device)
        expect_tensor("draft temperatures", law.temperatures, [num_requests], torch.float32, device)
    expect_tensor("request", request, [num_requests], torch.int64, device)
    check_counters(seed, request, step, device)


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
    block, splits, per_split = _splits(vocab)
    shape = (num_requests, gamma, splits)
    largest, total = (torch.empty(shape, dtype=torch.float32, device=device) for _ in range(2))
    winner = torch.empty(shape, dtype=torch.int32, device=device)
    row_start = gamma * torch.arange(num_requests, device=device)
    _statistics_kernel[shape](
        step_logits, row_start, lengths - 1, temperatures.contiguous(), largest, total, winner,
        vocab, vocab, gamma, splits, per_split, BLOCK=block, num_warps=8,
    )  # fmt: skip
    top = largest.amax(dim=-1)
    return top / divisor + torch.log((total * torch.exp((largest - top[..., None]) / divisor[..., None])).sum(dim=-1))


def _splits(vocab: int) -> tuple[int, int, int]:
    """Tokens a block, programs a row, tokens a program."""
    block = min(2048, max(16, triton.next_power_of_2(vocab)))
    splits = min(8, triton.cdiv(vocab, block))
    return block, splits, triton.cdiv(triton.cdiv(vocab, splits), block) * block


def verify(
    target_logits: torch.Tensor, row_start: torch.Tensor, lengths: torch.Tensor, draft_tokens: torch.Tensor,
    sampling: Sampling, law: DraftLaw | None, *, seed: int, request: torch.Tensor, step: torch.Tensor,
) -> Verified:  # fmt: skip
    """Accept or replace the draft tokens of a packed verify.

    target_logits: [B, V] float, rows of request r at row_start[r] .. row_start[r] + lengths[r] (its anchor first);
    other rows are not read. row_start: [R] int32 or int64 (the layout's qo_indptr without its end). lengths: [R]
    int32, verified draft tokens 0..gamma.
    draft_tokens: [R, gamma] int64. sampling: how each request samples. law: what the draft tokens were drawn from;
    None for tokens taken by argmax (one-hot q). seed, request, step: the counters of `philox`, streams ACCEPT and
    RECOVER.
    Returns `Verified`. NaN logits count as -inf. Errors: ValueError or TypeError for shapes, dtypes or devices that
    do not fit.
    """
    _check(target_logits, row_start, lengths, draft_tokens, sampling, law, seed, request, step)
    if not runs_kernel(target_logits) or draft_tokens.shape[0] == 0:
        return verify_reference(
            target_logits, row_start, lengths, draft_tokens, sampling, law, seed=seed, request=request, step=step
        )
    device, vocab = target_logits.device, target_logits.shape[1]
    num_requests, gamma = draft_tokens.shape
    block, splits, per_split = _splits(vocab)
    grid_shape = (num_requests, gamma + 1, splits)
    largest, total = (torch.empty(grid_shape, dtype=torch.float32, device=device) for _ in range(2))
    winner = torch.empty(grid_shape, dtype=torch.int32, device=device)
    temperatures = sampling.temperatures.contiguous()
    _statistics_kernel[grid_shape](
        target_logits, row_start, lengths, temperatures, largest, total, winner,
        target_logits.stride(0), vocab, gamma + 1, splits, per_split, BLOCK=block, num_warps=8,
    )  # fmt: skip
    filtered = any(each is not None for each in (sampling.top_k, sampling.top_p, sampling.min_p))
    threshold = normaliser = total
    if filtered:
        threshold, normaliser = row_thresholds(
            target_logits, row_start, lengths, temperatures, largest, sampling.top_k, sampling.top_p, sampling.min_p
        )
    has_law = law is not None
    law = DraftLaw(total, total, temperatures) if law is None else law
    drafts = (law.step_logits, law.log_normaliser.contiguous(), law.temperatures)
    strides = (target_logits.stride(0), *law.step_logits.stride()[:2], step.stride(0) if step.shape[0] > 1 else 0)
    out = Verified(
        torch.empty(num_requests, dtype=torch.int32, device=device),
        torch.empty(num_requests, dtype=torch.int64, device=device),
    )
    row_normaliser = torch.empty(num_requests, dtype=torch.float32, device=device)
    draft_tokens, request = draft_tokens.contiguous(), request.contiguous()
    _accept_kernel[(num_requests,)](
        target_logits, row_start, lengths, draft_tokens, temperatures,
        total if sampling.top_k is None else sampling.top_k, largest, total, winner, threshold, normaliser,
        *drafts, request, step, *out, row_normaliser,
        seed, *strides, gamma, vocab, splits,
        FILTERED=filtered, HAS_K=sampling.top_k is not None, HAS_LAW=has_law,
        BLOCK_G=triton.next_power_of_2(gamma + 1), BLOCK_S=triton.next_power_of_2(splits), num_warps=1,
    )  # fmt: skip
    races = [torch.empty(num_requests, splits, dtype=kind, device=device) for kind in (torch.float32, torch.int32) * 2]
    _recover_kernel[(num_requests, splits)](
        target_logits, row_start, lengths, draft_tokens, temperatures, threshold, *drafts, request, step, *out,
        row_normaliser, *races, seed, *strides, gamma, vocab, splits, per_split,
        FILTERED=filtered, HAS_LAW=has_law, BLOCK=block, num_warps=8,
    )  # fmt: skip
    _pick_kernel[(num_requests,)](out.bonus, *races, splits, BLOCK_S=triton.next_power_of_2(splits), num_warps=1)
    return out
