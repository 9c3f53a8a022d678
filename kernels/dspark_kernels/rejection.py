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

from dspark_kernels.checks import FLOATS, expect_range, expect_rows, expect_tensor
from dspark_kernels.interpreter import runs_kernel
from dspark_kernels.philox import Counters, check_counters
from dspark_kernels.rejection_arguments import Drafts, Law, Outcome, Races, Target
from dspark_kernels.rejection_kernels import accept_kernel, pick_kernel, recover_kernel
from dspark_kernels.rejection_reference import DraftLaw, Sampling, Verified, verify_reference
from dspark_kernels.rejection_statistics import block_of, row_statistics
from dspark_kernels.sampling_filter import row_thresholds
from dspark_kernels.survival import MAX_GAMMA


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


def verify(
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
    num_requests, gamma = draft_tokens.shape
    sampling = sampling._replace(temperatures=sampling.temperatures.contiguous())
    target = Target(target_logits, target_logits.stride(0), row_start, lengths, target_logits.shape[1])
    drafts = Drafts(draft_tokens.contiguous(), gamma)
    parts = row_statistics(target, sampling.temperatures, gamma + 1)
    kept = None if all(each is None for each in sampling[1:]) else row_thresholds(target, sampling, parts)
    drawn_from = None if law is None else Law.of(law)
    counters = Counters.of(seed, request, step)

    def empty(kind: torch.dtype, *shape: int) -> torch.Tensor:
        return torch.empty(num_requests, *shape, dtype=kind, device=target_logits.device)

    outcome = Outcome(empty(torch.int32), empty(torch.int64), empty(torch.float32))
    races = Races(*(empty(kind, parts.splits) for kind in (torch.float32, torch.int32) * 2))
    block_s = triton.next_power_of_2(parts.splits)
    accept_kernel[(num_requests,)](
        target,
        sampling,
        drafts,
        drawn_from,
        parts,
        kept,
        counters,
        outcome,
        BLOCK_G=triton.next_power_of_2(gamma + 1),
        BLOCK_S=block_s,
        num_warps=1,
    )
    recover_kernel[(num_requests, parts.splits)](
        target,
        sampling,
        drafts,
        drawn_from,
        parts,
        kept,
        counters,
        outcome,
        races,
        BLOCK=block_of(target.vocab),
        num_warps=8,
    )
    pick_kernel[(num_requests,)](outcome, races, parts.splits, BLOCK_S=block_s, num_warps=1)
    return Verified(outcome.accepted, outcome.bonus)
