"""Acceptance of the drafted tokens, and the race that draws the token after them."""

from __future__ import annotations

import triton
import triton.language as tl

from dspark_kernels.philox import ACCEPT_STREAM, RECOVER_STREAM, gumbel_row, noise_words, uniform_of
from dspark_kernels.rejection_statistics import NO_TOKEN, divisor_of


@triton.jit
def _row_laws(parts, kept, temperature, request, position, length, BLOCK_G: tl.constexpr, BLOCK_S: tl.constexpr):
    # By position: the argmax, the logit from which tokens are kept, and log sum exp(z / T) over them.
    split = tl.arange(0, BLOCK_S)
    row, there = request * parts.width + position, position <= length
    mask = there[:, None] & (split < parts.splits)[None, :]
    address = row[:, None] * parts.splits + split[None, :]
    largest = tl.load(parts.largest + address, mask, -float("inf"))
    top = tl.max(largest, 1)
    winner = tl.load(parts.winner + address, mask, NO_TOKEN)
    winner = tl.min(tl.where(largest == top[:, None], winner, NO_TOKEN), 1)
    if kept is not None:
        threshold = tl.load(kept.threshold + row, there, -float("inf"))
        normaliser = top / temperature + tl.load(kept.normaliser + row, there, 0.0)
    else:
        threshold = tl.full([BLOCK_G], -float("inf"), tl.float32)
        shift = tl.where(top == -float("inf"), 0.0, top)[:, None]
        total = tl.load(parts.total + address, mask, 0.0) * tl.exp((largest - shift) / temperature)
        normaliser = top / temperature + tl.log(tl.sum(tl.where(mask, total, 0.0), 1))
    return winner, threshold, normaliser


@triton.jit
def accept_kernel(
    target, sampling, drafts, law, parts, kept, counters, outcome, BLOCK_G: tl.constexpr, BLOCK_S: tl.constexpr
):
    """How many tokens each request accepts, and the bonus of greedy ones; one program a request."""
    request = tl.program_id(0).to(tl.int64)
    position = tl.arange(0, BLOCK_G)
    length = tl.load(target.lengths + request)
    drafted = position < length
    temperature = tl.load(sampling.temperatures + request)
    greedy = temperature <= 0.0
    if sampling.top_k is not None:
        greedy = greedy | (tl.load(sampling.top_k + request) == 1)
    temperature = divisor_of(temperature)
    winner, threshold, normaliser = _row_laws(parts, kept, temperature, request, position, length, BLOCK_G, BLOCK_S)
    token = tl.load(drafts.tokens + request * drafts.gamma + position, drafted, 0)
    row = tl.load(target.row_start + request).to(tl.int64) + position
    logit = tl.load(target.logits + row * target.stride_row + token, drafted, -float("inf")).to(tl.float32)
    p = tl.where(logit >= threshold, tl.exp(logit / temperature - normaliser), 0.0)
    q = tl.full([BLOCK_G], 1.0, tl.float32)
    if law is not None:
        address = law.step_logits + request * law.stride_request + position * law.stride_position + token
        draft_logit = tl.load(address, drafted, 0.0).to(tl.float32)
        draft_normaliser = tl.load(law.log_normaliser + request * drafts.gamma + position, drafted, 0.0)
        q = tl.exp(draft_logit / divisor_of(tl.load(law.temperature + request)) - draft_normaliser)
    identity, step = tl.load(counters.request + request), tl.load(counters.step + request * counters.stride_step)
    quad = tl.zeros([BLOCK_G], tl.int32)
    coin, _1, _2, _3 = noise_words(counters.seed, identity, step, position, ACCEPT_STREAM, quad)
    accept = (p > 0.0) & (uniform_of(coin) * q <= p)
    accept = tl.where(greedy, winner == token, accept)
    accepted = tl.min(tl.where(drafted & ~accept, position, length), 0)
    at = position == accepted
    tl.store(outcome.accepted + request, accepted)
    # Greedy requests are done; the others draw below, and -1 says so.
    greedy_token = tl.max(tl.where(at, winner, -1), 0)
    tl.store(outcome.bonus + request, tl.where(greedy, greedy_token, -1).to(tl.int64))
    tl.store(outcome.normaliser + request, tl.max(tl.where(at, normaliser, -float("inf")), 0))


@triton.jit
def recover_kernel(target, sampling, drafts, law, parts, kept, counters, outcome, races, BLOCK: tl.constexpr):
    """One part of two races with the same noise: the residual's, and the target's in case rounding leaves no
    residual."""
    request = tl.program_id(0).to(tl.int64)
    if tl.load(outcome.bonus + request) < 0:
        accepted = tl.load(outcome.accepted + request)
        rejected = accepted < tl.load(target.lengths + request)
        temperature = divisor_of(tl.load(sampling.temperatures + request))
        normaliser = tl.load(outcome.normaliser + request)
        threshold = -float("inf")
        if kept is not None:
            threshold = tl.load(kept.threshold + request * parts.width + accepted)
        refused = tl.load(drafts.tokens + request * drafts.gamma + accepted, rejected, -1)
        identity, step = tl.load(counters.request + request), tl.load(counters.step + request * counters.stride_step)
        ROW = target.logits + (tl.load(target.row_start + request).to(tl.int64) + accepted) * target.stride_row
        if law is not None:
            DRAFT_ROW = law.step_logits + request * law.stride_request + accepted * law.stride_position
            draft_temperature = divisor_of(tl.load(law.temperature + request))
            draft_normaliser = tl.load(law.log_normaliser + request * drafts.gamma + accepted, rejected, 0.0)
        first = tl.program_id(1) * parts.per_split
        end = tl.minimum(first + parts.per_split, target.vocab)
        best, best_target = tl.full([BLOCK], -float("inf"), tl.float32), tl.full([BLOCK], -float("inf"), tl.float32)
        best_token, target_token = tl.full([BLOCK], NO_TOKEN, tl.int32), tl.full([BLOCK], NO_TOKEN, tl.int32)
        for start in range(first, end, BLOCK):
            token = start + tl.arange(0, BLOCK)
            inside = token < end
            logit = tl.load(ROW + token, inside, -float("inf")).to(tl.float32)
            kept_here = inside & (logit >= threshold) & (logit > -float("inf"))
            log_p = logit / temperature - normaliser
            left = tl.where(kept_here, tl.exp(log_p), 0.0)
            if law is not None:
                draft_logit = tl.load(DRAFT_ROW + token, inside & rejected, -float("inf")).to(tl.float32)
                left -= tl.where(rejected, tl.exp(draft_logit / draft_temperature - draft_normaliser), 0.0)
            else:
                left = tl.where(token == refused, 0.0, left)
            noise = gumbel_row(counters.seed, identity, step, accepted, RECOVER_STREAM, start, BLOCK)
            score = tl.where(left > 0.0, tl.log(tl.where(left > 0.0, left, 1.0)) + noise, -float("inf"))
            best_token = tl.where(score > best, token, best_token)
            best = tl.maximum(best, score)
            score = tl.where(kept_here, log_p + noise, -float("inf"))
            target_token = tl.where(score > best_target, token, target_token)
            best_target = tl.maximum(best_target, score)
        out = request * parts.splits + tl.program_id(1)
        top = tl.max(best, 0)
        tl.store(races.residual + out, top)
        tl.store(races.residual_token + out, tl.min(tl.where(best == top, best_token, NO_TOKEN), 0))
        top = tl.max(best_target, 0)
        tl.store(races.target + out, top)
        tl.store(races.target_token + out, tl.min(tl.where(best_target == top, target_token, NO_TOKEN), 0))


@triton.jit
def _winner_of(SCORE, TOKEN, splits, BLOCK_S: tl.constexpr):
    split = tl.arange(0, BLOCK_S)
    score = tl.load(SCORE + split, split < splits, -float("inf"))
    token = tl.load(TOKEN + split, split < splits, NO_TOKEN)
    top = tl.max(score, 0)
    return top, tl.min(tl.where(score == top, token, NO_TOKEN), 0)


@triton.jit
def pick_kernel(outcome, races, splits, BLOCK_S: tl.constexpr):
    """The winner of the parts' races, for requests whose bonus is not drawn yet."""
    request = tl.program_id(0).to(tl.int64)
    if tl.load(outcome.bonus + request) < 0:
        first = request * splits
        top, token = _winner_of(races.residual + first, races.residual_token + first, splits, BLOCK_S)
        _, spare = _winner_of(races.target + first, races.target_token + first, splits, BLOCK_S)
        token = tl.where(top > -float("inf"), token, spare)
        tl.store(outcome.bonus + request, tl.where(token == NO_TOKEN, 0, token).to(tl.int64))
