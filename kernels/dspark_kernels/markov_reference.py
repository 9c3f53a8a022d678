"""The Markov block in torch: its value, and SGLang's loop over the whole vocabulary, which the kernels must equal."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

from dspark_kernels.markov_heads import MarkovHead
from dspark_kernels.philox import DRAFT, gumbel_reference, words_reference


class MarkovBlock(NamedTuple):
    """tokens: [R, gamma] int64. log_normaliser: [R, gamma] float32, log sum_v exp(step logit / T), so that
    q(v) = exp(step logit / T - log_normaliser) (T = 1 on greedy rows). step_logits: [R, gamma, V] in the step dtype.
    tiles_read: [gamma] int32, vocabulary tiles that the screening could not skip, when `count_tiles` was set."""

    tokens: torch.Tensor
    log_normaliser: torch.Tensor | None = None
    step_logits: torch.Tensor | None = None
    tiles_read: torch.Tensor | None = None


def shortfall(
    head: MarkovHead,
    base_logits: torch.Tensor,
    anchor: torch.Tensor,
    temperatures: torch.Tensor,
    tokens: torch.Tensor,
    *,
    seed: int,
    request: torch.Tensor,
    step: torch.Tensor,
    hidden: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """How far drafted tokens [R, gamma] are from having been the best choice, each after the ones drafted before it.

    Returns (best score - the token's score [R, gamma] float32, at least 0; the step logits [R, gamma, V] that the
    reference computes on these tokens). Two right implementations differ by a rounding of the logits.
    """
    gamma, vocab = base_logits.shape[1:]
    dtype = head.step_dtype(base_logits.dtype)
    sampled = (temperatures > 0)[:, None]
    divisor = torch.where(sampled, temperatures[:, None], 1.0)
    previous, state, gaps, kept = anchor, head.first_state(hidden), [], []
    for position in range(gamma):
        latent, state = head.latent(previous, None if hidden is None else hidden[:, position], state)
        bias = F.linear(latent.float(), head.w2.float()).to(head.w2.dtype).float()
        logits = (base_logits[:, position].float() + bias).to(dtype)
        words = words_reference(seed, request, step, position, DRAFT, vocab)
        score = torch.where(sampled, logits.float() / divisor + gumbel_reference(words), logits.float())
        previous = tokens[:, position]
        gaps.append(score.amax(dim=1) - score.gather(1, previous[:, None])[:, 0])
        kept.append(logits)
    return torch.stack(gaps, dim=1), torch.stack(kept, dim=1)


def markov_reference(
    head: MarkovHead,
    base_logits: torch.Tensor,
    anchor: torch.Tensor,
    temperatures: torch.Tensor,
    *,
    seed: int,
    request: torch.Tensor,
    step: torch.Tensor,
    hidden: torch.Tensor | None = None,
) -> MarkovBlock:
    """`sample_markov_block(..., keep="logits")` in torch: the whole vocabulary at every step, as SGLang's loop does
    it."""
    num_requests, gamma, vocab = base_logits.shape
    dtype = head.step_dtype(base_logits.dtype)
    sampled = (temperatures > 0)[:, None]
    divisor = torch.where(sampled, temperatures[:, None], 1.0)
    previous, state, tokens, kept = anchor, head.first_state(hidden), [], []
    for position in range(gamma):
        latent, state = head.latent(previous, None if hidden is None else hidden[:, position], state)
        bias = F.linear(latent.float(), head.w2.float()).to(head.w2.dtype).float()
        logits = (base_logits[:, position].float() + bias).to(dtype)
        words = words_reference(seed, request, step, position, DRAFT, vocab)
        score = torch.where(sampled, logits.float() / divisor + gumbel_reference(words), logits.float())
        previous = torch.nan_to_num(score, nan=float("-inf"), posinf=float("inf"), neginf=float("-inf")).argmax(dim=1)
        tokens.append(previous)
        kept.append(logits)
    step_logits = torch.stack(kept, dim=1)
    normaliser = torch.logsumexp(step_logits.float() / divisor[:, :, None], dim=-1)
    return MarkovBlock(torch.stack(tokens, dim=1), normaliser, step_logits)
