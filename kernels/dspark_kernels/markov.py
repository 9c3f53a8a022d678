"""Markov block sampling: gamma dependent draft steps, each one pass over the vocabulary, most of it screened away.

Step k adds the bias W2 . latent(x_{k-1}) to the base logits, rounds as SGLang does, and takes the largest logit
(temperature 0) or a Gumbel-max sample. SGLang materialises [R, V] biases and reads W2 once a step. Here bias, noise
and selection are one pass over tiles of V; and a tile is not even read when no row can win in it: the noisy base
logits of all gamma positions are known up front, the bias is bounded per tile (`MarkovBounds`), and a few probes give
a score that the winner must reach. Tiles that survive are computed by the same instructions as in the full pass, so
that the token is the same, bit for bit; when nothing can be pruned, it is the full pass.
Source of the semantics: SGLang 0.5.23 `srt/models/dspark.py`, `kernels/ops/speculative/dspark/markov_sample.py`.
"""

from __future__ import annotations

from typing import Literal

import torch
import triton

from dspark_kernels.checks import FLOATS, expect_range, expect_rows, expect_tensor
from dspark_kernels.interpreter import runs_kernel
from dspark_kernels.markov_bounds import MarkovBounds
from dspark_kernels.markov_heads import MarkovHead
from dspark_kernels.markov_normaliser import block_normaliser
from dspark_kernels.markov_reference import MarkovBlock, markov_reference
from dspark_kernels.markov_run import MarkovRun
from dspark_kernels.philox import Counters, check_counters
from dspark_kernels.survival import MAX_GAMMA

Keep = Literal["nothing", "normaliser", "logits"]


def _check(head, base_logits, anchor, temperatures, seed, request, step, hidden, bounds, keep) -> None:
    device = base_logits.device
    expect_tensor("base_logits", base_logits, [None, None, head.vocab], FLOATS, device)
    num_requests, gamma, vocab = base_logits.shape
    expect_range("gamma", gamma, 1, MAX_GAMMA)
    expect_rows("base_logits", base_logits)
    expect_tensor("w2", head.w2, [vocab, None], FLOATS, device)
    expect_tensor("anchor", anchor, [num_requests], torch.int64, device)
    expect_tensor("temperatures", temperatures, [num_requests], torch.float32, device)
    expect_tensor("request", request, [num_requests], torch.int64, device)
    check_counters(seed, request, step, device)
    if keep not in ("nothing", "normaliser", "logits"):
        raise ValueError(f"keep={keep!r} is refused, expected nothing, normaliser or logits")
    if head.kind != "vanilla":
        if hidden is None:
            raise ValueError(f"a {head.kind} head needs hidden")
        expect_tensor("hidden", hidden, [num_requests, gamma, None], FLOATS, device)
    if bounds is not None and bounds.norm.shape[0] != triton.cdiv(vocab, bounds.block):
        raise ValueError(f"bounds cover {bounds.norm.shape[0]} blocks of {bounds.block}, expected those of V={vocab}")


def _check_out(head: MarkovHead, base_logits: torch.Tensor, keep: Keep, logits_out: torch.Tensor) -> None:
    if keep != "logits":
        raise ValueError(f"logits_out needs keep='logits', got keep={keep!r}")
    dtype = head.step_dtype(base_logits.dtype)
    expect_tensor("logits_out", logits_out, list(base_logits.shape), dtype, base_logits.device)
    if not logits_out.is_contiguous():
        raise ValueError("logits_out is not contiguous")


def sample_markov_block(
    head: MarkovHead,
    base_logits: torch.Tensor,
    anchor: torch.Tensor,
    temperatures: torch.Tensor,
    *,
    seed: int,
    request: torch.Tensor,
    step: torch.Tensor,
    hidden: torch.Tensor | None = None,
    bounds: MarkovBounds | None = None,
    keep: Keep = "normaliser",
    logits_out: torch.Tensor | None = None,
    count_tiles: bool = False,
) -> MarkovBlock:
    """Draft gamma tokens for every request.

    base_logits: [R, gamma, V] float, the draft's logits before the Markov bias. anchor: [R] int64, each request's
    last token.
    temperatures: [R] float32; 0 takes the argmax (ties: the lowest token), > 0 samples softmax(step logits /
    temperature).
    seed, request, step: the counters of `philox`, stream DRAFT. hidden: [R, gamma, H] for gated and RNN heads.
    bounds: `markov_bounds(head)` screens the vocabulary; None reads all of it. The tokens are the same.
    keep: what to return for rejection sampling besides the tokens: nothing (greedy drafts), the normalisers, or the
    step logits too; those go to `logits_out`, [R, gamma, V] in the step dtype and contiguous, when it is given.
    NaN logits never win. Returns `MarkovBlock`. Errors: ValueError or TypeError for shapes, dtypes
    or devices that do not fit.
    """
    _check(head, base_logits, anchor, temperatures, seed, request, step, hidden, bounds, keep)
    if logits_out is not None:
        _check_out(head, base_logits, keep, logits_out)
    if not runs_kernel(base_logits) or base_logits.shape[0] == 0:
        block = markov_reference(
            head, base_logits, anchor, temperatures, seed=seed, request=request, step=step, hidden=hidden
        )
        if logits_out is not None:
            block = block._replace(step_logits=logits_out.copy_(block.step_logits))
        kept = {"nothing": (), "normaliser": (block.log_normaliser,), "logits": block[1:3]}
        return MarkovBlock(block.tokens, *kept[keep])
    run = MarkovRun(head, base_logits, temperatures, Counters.of(seed, request, step), bounds, count_tiles)
    run.state.previous.copy_(anchor)
    state = head.first_state(hidden)
    for position in range(base_logits.shape[1]):
        if head.kind == "vanilla":
            run.advance(position, finish=position > 0, embed=True, barred=bounds is not None)
        else:
            if position:
                run.advance(position, finish=True, embed=False, barred=False)
            latent = run.state.latent
            latent[:, position], state = head.latent(run.state.previous, hidden[:, position], state)
            if bounds is not None:
                run.advance(position, finish=False, embed=False, barred=True)
        run.tile(position)
    run.advance(base_logits.shape[1], finish=True, embed=False, barred=False)
    tokens, read = run.state.tokens, run.tiles.read
    if keep == "nothing":
        return MarkovBlock(tokens, tiles_read=read)
    normaliser, step_logits = block_normaliser(
        run.batch, run.weights, run.state.latent, run.step_dtype, keep == "logits", logits_out
    )
    return MarkovBlock(tokens, normaliser, step_logits, read)
