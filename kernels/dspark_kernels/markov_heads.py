"""The three Markov heads of a DSpark draft: what turns the previous token into the latent that W2 projects to a bias.

Formulas and rounding are SGLang's (`srt/models/dspark.py`: `VanillaMarkov`, `GatedMarkovHead`, `RNNHead`). The latent
costs R * rank numbers a step; the expensive part, [R, V] biases and the choice among them, is `markov.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F

from dspark_kernels.checks import FLOATS, expect_rows, expect_tensor

Kind = Literal["vanilla", "gated", "rnn"]


@dataclass(frozen=True)
class MarkovHead:
    """Weights of a Markov head, in the model's dtype.

    w1: [V, rank] embedding of the previous token. w2: [V, rank], bias of token v = w2[v] . latent.
    vanilla: latent = w1[x]. gated: proj_weight [rank, H + rank], proj_bias [rank]; latent = sigmoid(proj([h ;
    w1[x]])) * w1[x].
    rnn: proj_weight [3 rank, 2 rank + H], proj_bias [3 rank] over [state ; w1[x] ; h]; latent = tanh(output).
    """

    kind: Kind
    w1: torch.Tensor
    w2: torch.Tensor
    proj_weight: torch.Tensor | None = None
    proj_bias: torch.Tensor | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("vanilla", "gated", "rnn"):
            raise ValueError(f"kind={self.kind!r} is refused, expected vanilla, gated or rnn")
        device = self.w2.device
        expect_tensor("w2", self.w2, [None, None], FLOATS, device)
        expect_tensor("w1", self.w1, list(self.w2.shape), self.w2.dtype, device)
        expect_rows("w1", self.w1)
        expect_rows("w2", self.w2)
        if (self.kind == "vanilla") != (self.proj_weight is None) or (self.proj_weight is None) != (
            self.proj_bias is None
        ):
            raise ValueError(
                f"a {self.kind} head {'takes no' if self.kind == 'vanilla' else 'needs a'} projection with bias"
            )

    @property
    def vocab(self) -> int:
        """V."""
        return self.w2.shape[0]

    @property
    def rank(self) -> int:
        """Width of the latent."""
        return self.w2.shape[1]

    def step_dtype(self, base: torch.dtype) -> torch.dtype:
        """The dtype that base logits plus bias are rounded to."""
        return torch.promote_types(base, self.w1.dtype)

    def first_state(self, hidden: torch.Tensor | None) -> torch.Tensor | None:
        """The state before the block: zeros [R, rank] for an RNN head. hidden: [R, gamma, H]."""
        if self.kind != "rnn":
            return None
        return hidden.new_zeros(hidden.shape[0], self.rank)

    def latent(
        self, previous: torch.Tensor, hidden: torch.Tensor | None, state: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The latent [R, rank] of one step and the next state. previous: [R] int64; hidden: [R, H] of this
        position."""
        embedding = F.embedding(previous, self.w1)
        if self.kind == "vanilla":
            return embedding, state
        if self.kind == "gated":
            gate = torch.sigmoid(F.linear(torch.cat([hidden, embedding], dim=-1), self.proj_weight, self.proj_bias))
            return gate.to(embedding.dtype) * embedding, state
        joint = F.linear(torch.cat([state, embedding, hidden], dim=-1), self.proj_weight, self.proj_bias)
        gate_raw, candidate_raw, output_raw = joint.chunk(3, dim=-1)
        gate = torch.sigmoid(gate_raw)
        state = gate * state + (1.0 - gate) * torch.tanh(candidate_raw)
        return torch.tanh(output_raw), state
