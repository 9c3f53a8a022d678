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

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl

from dspark_kernels.checks import FLOATS, expect_range, expect_rows, expect_tensor
from dspark_kernels.interpreter import runs_kernel
from dspark_kernels.markov_heads import MarkovHead
from dspark_kernels.markov_normaliser import block_normaliser
from dspark_kernels.markov_screening import (
    NO_TOKEN,
    MarkovBounds,
    dot_error,
    may_win,
    prepare_kernel,
    probe_bar,
    probe_kernel,
    round_to,
)
from dspark_kernels.philox import (
    DRAFT,
    DRAFT_STREAM,
    check_counters,
    exponential_of,
    gumbel_reference,
    noise_words,
    words_reference,
)
from dspark_kernels.survival import MAX_GAMMA

Keep = Literal["nothing", "normaliser", "logits"]
PROBES = 8
ROWS = 16


class MarkovBlock(NamedTuple):
    """tokens: [R, gamma] int64. log_normaliser: [R, gamma] float32, log sum_v exp(step logit / T), so that
    q(v) = exp(step logit / T - log_normaliser) (T = 1 on greedy rows). step_logits: [R, gamma, V] in the step dtype.
    tiles_read: [gamma] int32, vocabulary tiles that the screening could not skip, when `count_tiles` was set."""

    tokens: torch.Tensor
    log_normaliser: torch.Tensor | None = None
    step_logits: torch.Tensor | None = None
    tiles_read: torch.Tensor | None = None


@triton.jit
def _advance_kernel(
    SCORE, WINNER, PREVIOUS, TOKENS, W1, W2, LATENT, BASE, PROBE, TEMPERATURE, REQUEST, STEP, BAR,
    seed, stride_br, stride_w1, stride_w2, stride_step, position, gamma, rank, vocab, blocks, error,
    FINISH: tl.constexpr, EMBED: tl.constexpr, BARRED: tl.constexpr,
    COUNT: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_K: tl.constexpr, STEP_DTYPE: tl.constexpr,
):  # fmt: skip
    # FINISH: pick the token of the step before from its tiles. EMBED: write this step's latent. BARRED: set the bar.
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK_K)
    if FINISH:
        block = tl.arange(0, BLOCK_B)
        score = tl.load(SCORE + row * blocks + block, block < blocks, -float("inf"))
        winner = tl.load(WINNER + row * blocks + block, block < blocks, NO_TOKEN)
        token = tl.min(tl.where(score == tl.max(score, 0), winner, NO_TOKEN), 0).to(tl.int64)
        tl.store(TOKENS + row * gamma + position - 1, token)
        tl.store(PREVIOUS + row, token)
    else:
        token = tl.load(PREVIOUS + row)
    here = LATENT + (row * gamma + position) * rank
    if EMBED:
        embedding = tl.load(W1 + token * stride_w1 + column, column < rank, 0.0)
        tl.store(here + column, embedding, column < rank)
        latent = embedding.to(tl.float32)
    elif BARRED:
        latent = tl.load(here + column, column < rank, 0.0).to(tl.float32)
    if BARRED:
        bar = probe_bar(
            latent, BASE, PROBE, W2, REQUEST, STEP, row, tl.load(TEMPERATURE + row), seed, stride_br, stride_w2,
            stride_step, position, rank, vocab, row * gamma + position, error, COUNT, BLOCK_K, STEP_DTYPE,
        )  # fmt: skip
        tl.store(BAR + row, bar)


@triton.jit
def _tile_kernel(
    BASE, LATENT, W2, TEMPERATURE, REQUEST, STEP, SCORE, WINNER,
    BEST, SIZE, BAR, PREVIOUS, TABLE, CENTER, RADIUS, NORM, READ,
    seed, stride_br, stride_w2, stride_step, position, num_requests, gamma, rank, vocab, blocks, error, unit,
    SCREEN: tl.constexpr, TABLED: tl.constexpr, COUNTED: tl.constexpr, STEP_DTYPE: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr, CHUNK_K: tl.constexpr,
):  # fmt: skip
    # Bias, noise and selection of ROWS rows over one block of the vocabulary, unless none of them can win in it.
    block = tl.program_id(1)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    inside = row < num_requests
    out = row.to(tl.int64) * blocks + block
    wanted = True
    if SCREEN:
        alive = may_win(
            BEST, SIZE, BAR, PREVIOUS, LATENT, TABLE, CENTER, RADIUS, NORM, TEMPERATURE, row, inside, block, position,
            gamma, rank, blocks, error, unit, TABLED, ROWS, BLOCK_K,
        )  # fmt: skip
        wanted = tl.max(alive.to(tl.int32), 0) > 0
    if wanted:
        if COUNTED:
            tl.atomic_add(READ + position, 1)
        token = block * BLOCK + tl.arange(0, BLOCK)
        valid = inside[:, None] & (token < vocab)[None, :]
        bias = tl.zeros([ROWS, BLOCK], tl.float32)
        for start in range(0, rank, CHUNK_K):
            column = start + tl.arange(0, CHUNK_K)
            address = LATENT + (row.to(tl.int64) * gamma + position)[:, None] * rank + column[None, :]
            latent = tl.load(address, inside[:, None] & (column < rank)[None, :], 0.0)
            mask = (token < vocab)[:, None] & (column < rank)[None, :]
            weight = tl.load(W2 + token.to(tl.int64)[:, None] * stride_w2 + column[None, :], mask, 0.0)
            bias = tl.dot(latent, tl.trans(weight), bias, input_precision="ieee")
        base = tl.load(BASE + row.to(tl.int64)[:, None] * stride_br + token[None, :], valid, -float("inf")).to(
            tl.float32
        )
        value = round_to(base + round_to(bias, W2.dtype.element_ty), STEP_DTYPE)
        temperature = tl.load(TEMPERATURE + row, inside, 0.0)
        if tl.max(temperature, 0) > 0.0:
            request = tl.load(REQUEST + row, inside, 0)
            step = tl.load(STEP + row * stride_step, inside, 0)
            quad = block * (BLOCK // 4) + tl.arange(0, BLOCK // 4)[None, :] + tl.zeros([ROWS, 1], tl.int32)
            w0, w1, w2, w3 = noise_words(seed, request[:, None], step[:, None], position, DRAFT_STREAM, quad)
            noise = -tl.log(exponential_of(tl.interleave(tl.interleave(w0, w2), tl.interleave(w1, w3))))
            sampled = (temperature > 0.0)[:, None]
            value = tl.where(sampled, value / tl.where(sampled, temperature[:, None], 1.0) + noise, value)
        value = tl.where(valid & (value == value), value, -float("inf"))
        best = tl.max(value, 1)
        winner = tl.min(tl.where((token < vocab)[None, :] & (value == best[:, None]), token[None, :], NO_TOKEN), 1)
        tl.store(SCORE + out, best, inside)
        tl.store(WINNER + out, winner, inside)
    else:
        tl.store(SCORE + out, tl.full([ROWS], -float("inf"), tl.float32), inside)
        tl.store(WINNER + out, tl.full([ROWS], NO_TOKEN, tl.int32), inside)


def markov_reference(
    head: MarkovHead, base_logits: torch.Tensor, anchor: torch.Tensor, temperatures: torch.Tensor, *, seed: int,
    request: torch.Tensor, step: torch.Tensor, hidden: torch.Tensor | None = None,
) -> MarkovBlock:  # fmt: skip
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
    head: MarkovHead, base_logits: torch.Tensor, anchor: torch.Tensor, temperatures: torch.Tensor, *, seed: int,
    request: torch.Tensor, step: torch.Tensor, hidden: torch.Tensor | None = None, bounds: MarkovBounds | None = None,
    keep: Keep = "normaliser", logits_out: torch.Tensor | None = None, count_tiles: bool = False,
) -> MarkovBlock:  # fmt: skip
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
    run = _Run(head, base_logits, temperatures, seed, request.contiguous(), step, bounds, count_tiles)
    run.previous.copy_(anchor)
    state = head.first_state(hidden)
    for position in range(base_logits.shape[1]):
        if head.kind == "vanilla":
            run.advance(position, finish=position > 0, embed=True, barred=bounds is not None)
        else:
            if position:
                run.advance(position, finish=True, embed=False, barred=False)
            run.latent[:, position], state = head.latent(run.previous, hidden[:, position], state)
            if bounds is not None:
                run.advance(position, finish=False, embed=False, barred=True)
        run.tile(position)
    run.advance(base_logits.shape[1], finish=True, embed=False, barred=False)
    if keep == "nothing":
        return MarkovBlock(run.tokens, tiles_read=run.read)
    normaliser, step_logits = block_normaliser(
        head, run.latent, base_logits, temperatures, keep == "logits", logits_out
    )
    return MarkovBlock(run.tokens, normaliser, step_logits, run.read)


class _Run:
    """The buffers of one block and its launches."""

    def __init__(self, head, base_logits, temperatures, seed, request, step, bounds, count_tiles) -> None:
        self.head, self.base, self.bounds = head, base_logits, bounds
        self.temperatures, self.seed, self.request, self.step = temperatures, seed, request, step
        self.num_requests, self.gamma, self.vocab = base_logits.shape
        self.block = 256 if bounds is None else bounds.block
        self.blocks = triton.cdiv(self.vocab, self.block)
        self.step_dtype = _TRITON_TYPES[head.step_dtype(base_logits.dtype)]
        device, rows = base_logits.device, self.num_requests
        self.previous = torch.empty(rows, dtype=torch.int64, device=device)
        self.tokens = torch.empty(rows, self.gamma, dtype=torch.int64, device=device)
        self.latent = torch.empty(rows, self.gamma, head.rank, dtype=head.w2.dtype, device=device)
        self.score = torch.empty(rows, self.blocks, dtype=torch.float32, device=device)
        self.winner = torch.empty(rows, self.blocks, dtype=torch.int32, device=device)
        self.bar = torch.empty(rows, dtype=torch.float32, device=device)
        self.read = torch.zeros(self.gamma, dtype=torch.int32, device=device) if count_tiles else None
        self.best = self.size = self.probe = self.bar
        if bounds is not None:
            self._prepare(device)

    def _prepare(self, device: torch.device) -> None:
        shape = (self.num_requests, self.gamma, self.blocks)
        self.best, self.size = (torch.empty(shape, dtype=torch.float32, device=device) for _ in range(2))
        token = torch.empty(shape, dtype=torch.int32, device=device)
        self.probe = torch.empty(self.num_requests, self.gamma, PROBES, dtype=torch.int32, device=device)
        sub = max(1, 1024 // self.block)
        prepare_kernel[(self.num_requests, self.gamma, triton.cdiv(self.blocks, sub))](
            self.base, self.temperatures, self.request, self.step, self.best, token, self.size, self.seed,
            self.base.stride(0), self.base.stride(1), self._step_stride, self.gamma, self.vocab, self.blocks,
            SUB=sub, BLOCK=self.block,
        )  # fmt: skip
        probe_kernel[(self.num_requests * self.gamma,)](
            self.best, token, self.probe, self.blocks, COUNT=PROBES, BLOCK=triton.next_power_of_2(self.blocks)
        )

    @property
    def _step_stride(self) -> int:
        return self.step.stride(0) if self.step.shape[0] > 1 else 0

    def advance(self, position: int, *, finish: bool, embed: bool, barred: bool) -> None:
        """Before step `position`: finish the step before, embed its token, set the bar."""
        head = self.head
        _advance_kernel[(self.num_requests,)](
            self.score, self.winner, self.previous, self.tokens, head.w1, head.w2, self.latent,
            self.base[:, min(position, self.gamma - 1)], self.probe, self.temperatures, self.request, self.step,
            self.bar,
            self.seed, self.base.stride(0), head.w1.stride(0), head.w2.stride(0), self._step_stride,
            position, self.gamma, head.rank, self.vocab, self.blocks, dot_error(head.rank),
            FINISH=finish, EMBED=embed, BARRED=barred, COUNT=PROBES,
            BLOCK_B=triton.next_power_of_2(self.blocks), BLOCK_K=triton.next_power_of_2(head.rank),
            STEP_DTYPE=self.step_dtype,
        )  # fmt: skip

    def tile(self, position: int) -> None:
        """Bias, noise and selection of step `position`."""
        head, bounds = self.head, self.bounds
        tabled = bounds is not None and bounds.table is not None
        none = self.bar
        center, radius, norm = (none,) * 3 if bounds is None else (bounds.center, bounds.radius, bounds.norm)
        unit = max(torch.finfo(dtype).eps for dtype in (head.w2.dtype, head.step_dtype(self.base.dtype))) / 2
        # Row groups vary fastest: they run side by side and share the tile of W2 in the cache.
        _tile_kernel[(triton.cdiv(self.num_requests, ROWS), self.blocks)](
            self.base[:, position], self.latent, head.w2, self.temperatures, self.request, self.step, self.score,
            self.winner, self.best, self.size, self.bar, self.previous,
            bounds.table if tabled else none, center, radius, norm,
            none if self.read is None else self.read,
            self.seed, self.base.stride(0), head.w2.stride(0), self._step_stride, position, self.num_requests,
            self.gamma, head.rank, self.vocab, self.blocks, dot_error(head.rank), unit,
            SCREEN=bounds is not None, TABLED=tabled, COUNTED=self.read is not None, STEP_DTYPE=self.step_dtype,
            ROWS=ROWS, BLOCK=self.block, BLOCK_K=triton.next_power_of_2(head.rank),
            CHUNK_K=max(16, min(64, triton.next_power_of_2(head.rank))), num_warps=8,
        )  # fmt: skip


_TRITON_TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}
