"""Packed rejection sampling in torch: its values, and the dense computation that the kernels must equal."""

from __future__ import annotations

from typing import NamedTuple

import torch

from dspark_kernels.philox import ACCEPT, RECOVER, gumbel_reference, uniform_reference, words_reference


class Sampling(NamedTuple):
    """What each request samples with, [R] each. temperatures: float32, 0 = greedy. top_k: int32, 1 = greedy, <= 0 or
    >= V = off.
    top_p: float32, >= 1 = off. min_p: float32, 0 = off. None = off for all. Also a kernel's argument."""

    temperatures: torch.Tensor
    top_k: torch.Tensor | None = None
    top_p: torch.Tensor | None = None
    min_p: torch.Tensor | None = None


class DraftLaw(NamedTuple):
    """The law that the draft tokens were drawn from: q(v) = exp(step_logits / temperature - log_normaliser), as
    `MarkovBlock` gives it. step_logits: [R, gamma, V] float. log_normaliser: [R, gamma] float32. temperatures: [R]
    float32, 0 counts as 1."""

    step_logits: torch.Tensor
    log_normaliser: torch.Tensor
    temperatures: torch.Tensor


class Verified(NamedTuple):
    """accepted: [R] int32 draft tokens accepted, 0..length. bonus: [R] int64 token that follows them."""

    accepted: torch.Tensor
    bonus: torch.Tensor


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


def verify_reference(
    target_logits: torch.Tensor,
    row_start: torch.Tensor,
    lengths: torch.Tensor,
    draft_tokens: torch.Tensor,
    sampling: Sampling,
    law: DraftLaw | None,
    *,
    seed: int,
    request: torch.Tensor,
    step: torch.Tensor,
) -> Verified:
    """`verify` in torch, with dense tables: what the kernels must equal, given the same random words."""
    num_requests, gamma = draft_tokens.shape
    vocab, device = target_logits.shape[1], target_logits.device
    lengths = lengths.long()
    position = torch.arange(gamma + 1, device=device)
    rows = row_start.long()[:, None] + torch.minimum(position[None, :], lengths[:, None])
    logits = target_logits[rows].float()
    logits = torch.where(torch.isnan(logits), float("-inf"), logits)
    temperature = torch.where(sampling.temperatures > 0, sampling.temperatures, 1.0)
    keep = keep_reference(logits, temperature, sampling.top_k, sampling.top_p, sampling.min_p)
    log_p = torch.log_softmax(torch.where(keep, logits / temperature[:, None, None], float("-inf")), dim=-1)
    p, q = log_p.exp(), torch.zeros(num_requests, gamma + 1, vocab, device=device)
    if law is None:
        q[:, :gamma].scatter_(-1, draft_tokens[:, :, None], 1.0)
    else:
        divisor = torch.where(law.temperatures > 0, law.temperatures, 1.0)[:, None, None]
        q[:, :gamma] = torch.exp(law.step_logits.float() / divisor - law.log_normaliser[:, :, None])
    coins = [uniform_reference(words_reference(seed, request, step, j, ACCEPT, 1)) for j in range(gamma)]
    p_x = p[:, :gamma].gather(-1, draft_tokens[:, :, None])[..., 0]
    q_x = q[:, :gamma].gather(-1, draft_tokens[:, :, None])[..., 0]
    accept = (p_x > 0) & (torch.cat(coins, dim=1) * q_x <= p_x)
    greedy = sampling.temperatures <= 0
    if sampling.top_k is not None:
        greedy = greedy | (sampling.top_k == 1)
    best = logits.argmax(dim=-1)
    accept = torch.where(greedy[:, None], best[:, :gamma] == draft_tokens, accept) & (
        position[:gamma] < lengths[:, None]
    )
    accepted = accept.long().cumprod(dim=1).sum(dim=1)
    each = torch.arange(num_requests, device=device)
    q[each[accepted == lengths], accepted[accepted == lengths]] = 0.0
    left = (p - q)[each, accepted].clamp(min=0.0)
    spare = left.sum(dim=-1) == 0
    left[spare] = p[each, accepted][spare]
    noise = torch.empty(num_requests, vocab, device=device)
    for j in range(gamma + 1):
        here = accepted == j
        steps = step if step.shape[0] == 1 else step[here]
        noise[here] = gumbel_reference(words_reference(seed, request[here], steps, j, RECOVER, vocab))
    bonus = torch.where(greedy, best[each, accepted], (left.log() + noise).argmax(dim=-1))
    return Verified(accepted.to(torch.int32), bonus)
