"""What drafting one block costs: a small model over R * gamma tokens, the injection of target states, and the heads."""

from __future__ import annotations

from dataclasses import dataclass

from sglang_dspark.cost.estimate.fit import fit_context
from sglang_dspark.cost.estimate.forward import Forward
from sglang_dspark.cost.estimate.library import Precisions
from sglang_dspark.cost.estimate.models import Draft, Model

_WINDOW = 128  # tokens that the draft layers of DeepSeek-V4 look back
_LOGIT_PASSES = 3  # over the float32 logits of a position: softmax, draw, and keeping them for the verify step
_FLOAT32 = 4


@dataclass(frozen=True)
class DraftCost:
    """seconds: of a block, by requests. context_s: per context token of the batch. head_s: of one position, at least.

    weight_bytes, kv_bytes_per_token: on one GPU, beside the target's.
    """

    seconds: list[float]
    context_s: float
    head_s: float
    weight_bytes: float
    kv_bytes_per_token: float


def price_draft(
    draft: Draft, target: Model, forward: Forward, gpu: str, tp: int, requests: list[int], data: str
) -> DraftCost:
    """The draft of `draft.gamma` tokens for each of `requests`. forward: the target's, for a draft of its own layers.

    Verified states are projected for as many tokens as a whole block has. Errors: InputError.
    """
    hidden, vocab = int(target.facts["hidden_size"]), int(target.facts["vocab"]) // tp
    if draft.config is None:
        backbone, share, context = forward, draft.layers / int(target.facts["layers"]), 0.0
    else:
        dense = Precisions("bfloat16", None, "bfloat16")
        backbone = Forward(target.name, gpu, dense, config=draft.config, ranks=tp, data=data)
        share, context = 1.0, fit_context(backbone, 2048, forward.kv_room, (draft.gamma,)).context_s
    seconds = []
    for batch in requests:
        tokens = batch * draft.gamma
        body = backbone.body_s(tokens) + backbone.attention_s(batch, draft.gamma, _WINDOW)
        logits = forward.gemm_s(tokens, vocab, hidden)  # the target's head, over every position at once
        states = forward.gemm_s(batch * (1 + draft.gamma), hidden, draft.features * hidden)
        heads = draft.gamma * _head_s(forward, draft, batch, vocab)
        seconds.append(share * body + logits + states + heads)
    weights = 2.0 * draft.features * hidden**2 + 4.0 * draft.rank * vocab
    return DraftCost(
        seconds,
        context,
        _head_s(forward, draft, 1, vocab),
        weights + share * backbone.weight_bytes(body_only=True),
        share * backbone.kv_bytes_per_token(),
    )


def _head_s(forward: Forward, draft: Draft, batch: int, vocab: int) -> float:
    """The Markov head of one position, [R, rank] x [rank, V], and drawing a token from its logits."""
    bias = forward.gemm_s(batch, vocab, draft.rank) if draft.rank else 0.0
    return bias + forward.traffic_s(batch, vocab * _FLOAT32 * _LOGIT_PASSES)
