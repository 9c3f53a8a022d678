"""What the kernels of packed rejection take: tensors beside the strides and sizes that say how to walk them.

Each group is one argument of a kernel. A group that is not there, and a tensor that is not there, is None, which a
kernel sees when it is compiled.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from dspark_kernels.rejection_reference import DraftLaw


class Target(NamedTuple):
    """Packed logits [B, vocab], rows dense and `stride_row` apart; request r reads rows row_start[r] to row_start[r] +
    lengths[r]."""

    logits: torch.Tensor
    stride_row: int
    row_start: torch.Tensor
    lengths: torch.Tensor
    vocab: int


class Parts(NamedTuple):
    """Statistics of every verified row, [R, width, splits] each: a row is cut into `splits` parts of `per_split`
    tokens."""

    largest: torch.Tensor
    total: torch.Tensor
    winner: torch.Tensor
    width: int
    splits: int
    per_split: int


class Kept(NamedTuple):
    """What the filters leave of every row, [R, gamma + 1] each: the logit from which a token is kept, and log sum
    exp((z - largest) / T) over the kept ones."""

    threshold: torch.Tensor
    normaliser: torch.Tensor


class Drafts(NamedTuple):
    """tokens: [R, gamma] int64, dense."""

    tokens: torch.Tensor
    gamma: int


class Law(NamedTuple):
    """`DraftLaw` with strides. log_normaliser: [R, gamma], dense."""

    step_logits: torch.Tensor
    stride_request: int
    stride_position: int
    log_normaliser: torch.Tensor
    temperature: torch.Tensor

    @classmethod
    def of(cls, law: DraftLaw) -> Law:
        """The draft's law as public functions take it."""
        return cls(law.step_logits, *law.step_logits.stride()[:2], law.log_normaliser.contiguous(), law.temperatures)


class Outcome(NamedTuple):
    """accepted: [R] int32. bonus: [R] int64, -1 until it is drawn. normaliser: [R] float32, of the row it is drawn
    from."""

    accepted: torch.Tensor
    bonus: torch.Tensor
    normaliser: torch.Tensor


class Races(NamedTuple):
    """The best score and its token in every part, [R, splits] each: of the residual, and of the target."""

    residual: torch.Tensor
    residual_token: torch.Tensor
    target: torch.Tensor
    target_token: torch.Tensor
