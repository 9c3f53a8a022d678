"""What the kernels of the Markov block take: tensors beside the strides and sizes that say how to walk them.

Each group is one argument of a kernel. A group that is not there, and a tensor that is not there, is None, which a
kernel sees when it is compiled.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton.language as tl

from dspark_kernels.philox import Counters

TRITON_TYPES = {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}


class Batch(NamedTuple):
    """What a block is drafted from. base: [num_requests, gamma, vocab] logits before the bias, rows dense.
    temperatures: [R] float32, 0 takes the argmax. blocks: how many tiles the vocabulary is cut into."""

    base: torch.Tensor
    stride_request: int
    stride_position: int
    temperatures: torch.Tensor
    counters: Counters
    num_requests: int
    gamma: int
    vocab: int
    blocks: int


class Weights(NamedTuple):
    """The head's weights. w1, w2: [V, rank], rows dense."""

    w1: torch.Tensor
    stride_w1: int
    w2: torch.Tensor
    stride_w2: int
    rank: int


class State(NamedTuple):
    """What is drafted so far. previous: [R] int64, the token before this step. tokens: [R, gamma] int64. latent: [R,
    gamma, rank] in w2's dtype."""

    previous: torch.Tensor
    tokens: torch.Tensor
    latent: torch.Tensor


class Tiles(NamedTuple):
    """One step's best score and its token in every tile, [R, blocks] float32 and int32. read: [gamma] int32, tiles that
    were computed, or None."""

    score: torch.Tensor
    winner: torch.Tensor
    read: torch.Tensor | None


class Screen(NamedTuple):
    """What decides whether a tile can be skipped. best, token, size: [R, gamma, blocks], a tile's largest noisy base
    logit, where it is, and its largest |base logit|. probe: [R, gamma, probes] int32 tokens whose scores are computed
    first. bar: [R] float32, the score that this step's winner reaches at least. error, unit: relative error of a dot
    product, and of rounding to the step's dtype."""

    best: torch.Tensor
    token: torch.Tensor
    size: torch.Tensor
    probe: torch.Tensor
    bar: torch.Tensor
    error: float
    unit: float


class Bounds(NamedTuple):
    """`MarkovBounds` as kernels read them: the table, or else what bounds the bias of any latent."""

    table: torch.Tensor | None = None
    center: torch.Tensor | None = None
    radius: torch.Tensor | None = None
    norm: torch.Tensor | None = None
