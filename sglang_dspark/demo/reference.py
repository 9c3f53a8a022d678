"""Speculative decoding with the demo pair in plain PyTorch: what a served pair must do, one request at a time.

Each round drafts a block after the anchor, verifies it with one target forward, commits the accepted draft tokens and
draws the next anchor (the bonus token). Acceptance is exact at any temperature: greedy match at 0, rejection sampling
(Leviathan et al. 2023) otherwise. Draft, acceptance and recovery draws come from one generator and are never reused.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache, Qwen3ForCausalLM

from sglang_dspark.demo.draft import DSparkDraft, KeyValue, target_features
from sglang_dspark.demo.pair import Pair
from sglang_dspark.errors import InputError

VerifyLength = Callable[[Sequence[float]], int]
"""Number of draft tokens to verify (0..gamma) from a block's confidences; to stay lossless it must decide position by
position, from the confidences up to that position alone (a length rule)."""


@dataclass(frozen=True)
class Round:
    """One round: `accepted` of the `verified` draft tokens; for each of the gamma positions the confidence, and for the
    verified ones the exact acceptance probability 1 - TV(target, draft)."""

    accepted: int
    verified: int
    confidence: tuple[float, ...]
    overlap: tuple[float, ...]


@dataclass(frozen=True)
class Generation:
    """Token ids after the prompt (the first one comes from the prefill) and the rounds that made the rest."""

    tokens: list[int]
    rounds: list[Round]

    @property
    def accept_length(self) -> float:
        """Mean tokens committed per round, bonus included."""
        return 1 + sum(r.accepted for r in self.rounds) / max(1, len(self.rounds))


@dataclass(frozen=True)
class DraftBlock:
    """Drafted tokens, the laws that they were drawn from [gamma, V], and confidences."""

    tokens: list[int]
    laws: Tensor
    confidence: tuple[float, ...]


def token_law(logits: Tensor, temperature: float) -> Tensor:
    """Probabilities [..., V] of logits [..., V]; temperature 0 puts all mass on the largest."""
    if temperature == 0:
        return torch.nn.functional.one_hot(logits.argmax(-1), logits.shape[-1]).float()
    return (logits.float() / temperature).softmax(-1)


def _draw(law: Tensor, generator: torch.Generator) -> int:
    return int(torch.multinomial(law, 1, generator=generator))


@torch.inference_mode()
def next_token_probabilities(
    target: Qwen3ForCausalLM, tokens: Sequence[int], temperature: float = 1.0, last: int = 1
) -> Tensor:
    """The target's exact law of the token after each of the `last` longest prefixes of `tokens`: [last, V]."""
    if not 1 <= last <= len(tokens):
        raise InputError(f"last is {last}; it must lie between 1 and the number of tokens, {len(tokens)}")
    logits = target(torch.tensor([list(tokens)]), use_cache=False).logits[0, -last:]
    return token_law(logits, temperature)


def draft_block(
    draft: DSparkDraft,
    anchor: int,
    position: int,
    context: list[KeyValue],
    temperature: float,
    generator: torch.Generator,
) -> DraftBlock:
    """Draft gamma tokens after `anchor`, which stands at `position`, behind the committed `context`."""
    positions = torch.arange(position, position + draft.gamma)[None]
    hidden = draft.backbone(torch.tensor([[anchor]]), positions, context)[0, 0]  # [gamma, H]
    base, state = draft.lm_head(hidden), draft.markov_head.initial_state(hidden[0])
    previous, laws = [anchor], []
    for k in range(draft.gamma):
        bias, state = draft.markov_head.step(torch.tensor(previous[-1]), hidden[k], state)
        laws.append(token_law(base[k] + bias, temperature))
        previous.append(_draw(laws[-1], generator))
    confidence = draft.confidence_logits(hidden, torch.tensor(previous[:-1])).sigmoid()
    return DraftBlock(previous[1:], torch.stack(laws), tuple(confidence.tolist()))


def accept(tokens: Sequence[int], draft: Tensor, target: Tensor, generator: torch.Generator) -> tuple[int, int]:
    """Rejection sampling: accepted draft tokens, and the next anchor.

    `tokens` [n] were drawn from `draft` [n, V]; `target` [n + 1, V] is the target's law there and at the next.
    """
    for k, token in enumerate(tokens):
        if torch.rand((), generator=generator) * draft[k, token] >= target[k, token]:
            return k, _draw((target[k] - draft[k]).clamp(min=0), generator)
    return len(tokens), _draw(target[len(tokens)], generator)


class _Session:
    """Target cache and draft context of one request."""

    def __init__(self, pair: Pair) -> None:
        self.target, self.draft = pair.target, pair.draft
        self.cache = DynamicCache(config=pair.target.config)
        self.context: list[KeyValue] = []
        self.committed = 0

    def forward(self, tokens: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Target logits [n, V] and features [1, n, m * H] of the next n tokens."""
        out = self.target(torch.tensor([list(tokens)]), past_key_values=self.cache, output_hidden_states=True)
        return out.logits[0], target_features(out.hidden_states, self.draft.config.target_layer_ids)

    def commit(self, features: Tensor, drop: int) -> None:
        """Keep the features' tokens in the draft context and drop the last `drop` tokens of the target's cache."""
        if drop:
            self.cache.crop(-drop)
        new = self.draft.context(features, torch.arange(self.committed, self.committed + features.shape[1])[None])
        if self.context:
            new = [
                (torch.cat([k0, k1], 2), torch.cat([v0, v1], 2))
                for (k0, v0), (k1, v1) in zip(self.context, new, strict=True)
            ]
        self.context, self.committed = new, self.committed + features.shape[1]


def _one_round(
    session: _Session, anchor: int, temperature: float, generator: torch.Generator, verify_length: VerifyLength | None
) -> tuple[list[int], int, Round]:
    """Tokens committed by one round (the anchor first), the next anchor, and the round's record."""
    block = draft_block(session.draft, anchor, session.committed, session.context, temperature, generator)
    verified = session.draft.gamma if verify_length is None else verify_length(block.confidence)
    tokens, laws = block.tokens[:verified], block.laws[:verified]
    logits, features = session.forward([anchor, *tokens])
    target = token_law(logits, temperature)
    accepted, following = accept(tokens, laws, target, generator)
    session.commit(features[:, : accepted + 1], verified - accepted)
    overlap = torch.minimum(laws, target[:verified]).sum(-1)
    return [anchor, *tokens[:accepted]], following, Round(accepted, verified, block.confidence, tuple(overlap.tolist()))


@torch.inference_mode()
def generate(
    pair: Pair,
    prompt: Sequence[int],
    max_new_tokens: int,
    temperature: float,
    generator: torch.Generator,
    *,
    eos: int | None = None,
    verify_length: VerifyLength | None = None,
) -> Generation:
    """Continue `prompt` (token ids) by `max_new_tokens`, or up to and with `eos`; a last block's overshoot is cut.

    `verify_length` decides how many draft tokens of each block are verified (default: all gamma).
    """
    if not prompt or max_new_tokens < 1 or temperature < 0:
        raise InputError(
            f"generate needs a prompt (got {len(prompt)} tokens), max_new_tokens >= 1 (got "
            f"{max_new_tokens}) and temperature >= 0 (got {temperature})"
        )
    session = _Session(pair)
    logits, features = session.forward(prompt)
    session.commit(features, 0)
    anchor = _draw(token_law(logits[-1], temperature), generator)
    tokens: list[int] = []
    rounds: list[Round] = []
    while len(tokens) + 1 < max_new_tokens and eos not in (anchor, *tokens):
        committed, anchor, record = _one_round(session, anchor, temperature, generator, verify_length)
        tokens += committed
        rounds.append(record)
    tokens = [*tokens, anchor][:max_new_tokens]
    return Generation(tokens[: tokens.index(eos) + 1] if eos in tokens else tokens, rounds)
