"""Training of the demo target (next-token cross-entropy) and of its draft (the paper's section 3.3 loss), on a CPU."""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM, StaticCache

from sglang_dspark.demo.draft import DSparkDraft, target_features
from sglang_dspark.demo.tokenizer import EOS_ID

Streams = dict[str, Tensor]
Progress = Callable[[int, str], None]
"""Called after each step with the steps done and a short text."""

LOSS_WEIGHTS = (0.1, 0.9, 1.0)
"""Weights of cross-entropy, total variation and confidence in the draft's loss."""


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train: `steps` of `batch` windows of `length` tokens, peak learning rate `rate`.

    Every `long_every`-th step takes one window of `batch * length` tokens instead (0: never): short windows learn
    soonest, the long ones keep the model sound in long contexts.
    """

    steps: int
    batch: int
    length: int
    rate: float
    long_every: int = 0


@dataclass(frozen=True)
class DraftLosses:
    """Means over blocks of one batch, positions weighted by exp(-k / gamma); `accept` [B, A, gamma] is 1 - TV."""

    cross_entropy: Tensor
    total_variation: Tensor
    confidence: Tensor
    accept: Tensor

    def weighted(self) -> Tensor:
        """The training loss."""
        terms = (self.cross_entropy, self.total_variation, self.confidence)
        return sum(weight * term for weight, term in zip(LOSS_WEIGHTS, terms, strict=True))


def token_streams(tokenizer: PreTrainedTokenizerFast, texts: dict[str, list[str]]) -> Streams:
    """Per domain, its documents as one row of token ids, each document followed by EOS."""
    backend = tokenizer.backend_tokenizer
    return {
        domain: torch.tensor([i for encoded in backend.encode_batch(documents) for i in (*encoded.ids, EOS_ID)])
        for domain, documents in texts.items()
    }


def random_windows(
    streams: Streams, shares: dict[str, float], count: int, length: int, generator: torch.Generator
) -> Tensor:
    """`count` random windows of `length` tokens; each window's domain is drawn with its share."""
    names, weights = list(shares), torch.tensor(list(shares.values()))
    rows = []
    for k in torch.multinomial(weights, count, replacement=True, generator=generator).tolist():
        stream = streams[names[k]]
        start = int(torch.randint(len(stream) - length + 1, (1,), generator=generator))
        rows.append(stream[start : start + length])
    return torch.stack(rows)


def batches(streams: Streams, shares: dict[str, float], schedule: Schedule, seed: int) -> Iterator[Tensor]:
    """Endless batches [B, S + 1] of random windows, as `schedule` says."""
    generator = torch.Generator().manual_seed(seed)
    for step in itertools.count(1):
        long = schedule.long_every and step % schedule.long_every == 0
        count, length = (1, schedule.batch * schedule.length) if long else (schedule.batch, schedule.length)
        yield random_windows(streams, shares, count, length + 1, generator)


@torch.inference_mode()
def continuations(target: Qwen3ForCausalLM, prompts: Tensor, new_tokens: int, greedy: Tensor, seed: int) -> Tensor:
    """The target's own continuations of `prompts` [N, S]: [N, S + new_tokens], prompts included.

    Rows where `greedy` [N] is true take the most likely token, the others are sampled at temperature 1.
    """
    generator = torch.Generator().manual_seed(seed)
    cache = StaticCache(config=target.config, max_cache_len=prompts.shape[1] + new_tokens)  # no copy at every token
    latest, columns = prompts, [prompts]
    for _ in range(new_tokens):
        logits = target(latest, past_key_values=cache, logits_to_keep=1).logits[:, -1]
        sampled = torch.multinomial(logits.softmax(-1), 1, generator=generator)
        latest = torch.where(greedy[:, None], logits.argmax(-1, keepdim=True), sampled)
        columns.append(latest)
    return torch.cat(columns, 1)


def blended(data: Iterator[Tensor], own: Tensor, seed: int) -> Iterator[Tensor]:
    """`data` with the first half of each batch's rows replaced by random rows of `own`, cut to the same length."""
    generator = torch.Generator().manual_seed(seed)
    for batch in data:
        half = len(batch) // 2
        rows = torch.randint(len(own), (half,), generator=generator)
        yield torch.cat([own[rows, : batch.shape[1]], batch[half:]])


def _optimizer(model: torch.nn.Module, rate: float) -> torch.optim.Optimizer:
    parameters = [p for p in model.parameters() if p.requires_grad]
    matrices, vectors = [p for p in parameters if p.ndim > 1], [p for p in parameters if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95), fused=True)


def _rate_at(step: int, schedule: Schedule, warmup: int = 40) -> float:
    """Linear warm-up, then a cosine down to 5 % of the peak."""
    cosine = 0.05 + 0.475 * (1 + math.cos(math.pi * step / schedule.steps))
    return schedule.rate * min((step + 1) / warmup, cosine)


def _descend(
    model: torch.nn.Module, schedule: Schedule, loss_of: Callable[[], tuple[Tensor, str]], progress: Progress
) -> None:
    optimizer = _optimizer(model, schedule.rate)
    parameters = [p for p in model.parameters() if p.requires_grad]
    for step in range(schedule.steps):
        for group in optimizer.param_groups:
            group["lr"] = _rate_at(step, schedule)
        loss, text = loss_of()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        progress(step + 1, text)


def _next_token_loss(target: Qwen3ForCausalLM, ids: Tensor) -> Tensor:
    logits = target(ids[:, :-1], use_cache=False).logits
    return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


def train_target(
    config: Qwen3Config, data: Iterator[Tensor], schedule: Schedule, seed: int, progress: Progress
) -> Qwen3ForCausalLM:
    """A trained target, in evaluation mode and frozen; its first weights depend on `seed` alone."""
    with torch.random.fork_rng(devices=[]):  # transformers draws initial weights from the global generator
        torch.manual_seed(seed)
        target = Qwen3ForCausalLM(config).train()

    def loss_of() -> tuple[Tensor, str]:
        loss = _next_token_loss(target, next(data))
        return loss, f"loss {loss.item():.2f}"

    _descend(target, schedule, loss_of, progress)
    return target.eval().requires_grad_(False)


def block_mask(anchor_positions: Tensor, gamma: int, length: int) -> Tensor:
    """Attention mask [B, 1, A * gamma, length + A * gamma]: the context before the anchor, and the block itself."""
    before = torch.arange(length) < anchor_positions.repeat_interleave(gamma, 1)[..., None]
    block = torch.arange(anchor_positions.shape[1]).repeat_interleave(gamma)
    same = (block[:, None] == block).expand(len(anchor_positions), -1, -1)
    return torch.cat([before, same], -1)[:, None]


def _pick(x: Tensor, positions: Tensor) -> Tensor:
    """x [B, S, ...] at positions [B, A, gamma] -> [B, A, gamma, ...]."""
    return x[torch.arange(len(x))[:, None, None], positions]


def draft_losses(
    draft: DSparkDraft, target: Qwen3ForCausalLM, ids: Tensor, anchors: int, generator: torch.Generator
) -> DraftLosses:
    """Losses of `anchors` random blocks in each sequence of `ids` [B, S], S > gamma."""
    gamma, (batch, length) = draft.gamma, ids.shape
    with torch.no_grad():
        out = target(ids, output_hidden_states=True, use_cache=False)
    anchor = torch.rand(batch, length - gamma, generator=generator).topk(anchors).indices
    positions = anchor[..., None] + torch.arange(gamma)
    features = target_features(out.hidden_states, draft.config.target_layer_ids)
    context = draft.context(features, torch.arange(length)[None])
    mask = block_mask(anchor, gamma, length)
    hidden = draft.backbone(ids.gather(1, anchor), positions.flatten(1), context, mask)
    previous = _pick(ids, positions)
    logits = draft.forced_logits(hidden, previous)
    distance = (_pick(out.logits, positions).softmax(-1) - logits.softmax(-1)).abs().sum(-1) / 2
    accept = 1 - distance.detach()
    nll = F.cross_entropy(logits.flatten(0, 2), _pick(ids, positions + 1).flatten(), reduction="none")
    bce = F.binary_cross_entropy_with_logits(draft.confidence_logits(hidden, previous), accept, reduction="none")
    weight = torch.exp(-torch.arange(gamma) / gamma)
    weight = weight / (weight.sum() * batch * anchors)
    means = ((x.view(batch, anchors, gamma) * weight).sum() for x in (nll, distance, bce))
    cross_entropy, total_variation, confidence = means
    return DraftLosses(cross_entropy, total_variation, confidence, accept)


def train_draft(
    config: Qwen3Config,
    target: Qwen3ForCausalLM,
    data: Iterator[Tensor],
    schedule: Schedule,
    seed: int,
    progress: Progress,
) -> DSparkDraft:
    """A trained draft for `target`, in evaluation mode."""
    draft = DSparkDraft(config)
    draft.initialize(torch.Generator().manual_seed(seed))
    draft.share(target)
    generator = torch.Generator().manual_seed(seed + 1)

    def loss_of() -> tuple[Tensor, str]:
        losses = draft_losses(draft, target, next(data), config.num_anchors, generator)
        expected = 1 + losses.accept.cumprod(-1).sum(-1).mean().item()
        return losses.weighted(), f"expected accept length {expected:.2f}"

    _descend(draft, schedule, loss_of, progress)
    return draft.eval()


@torch.inference_mode()
def held_out_losses(
    draft: DSparkDraft, target: Qwen3ForCausalLM, data: Iterator[Tensor], count: int, seed: int
) -> dict[str, float]:
    """Means over `count` held-out batches: the target's loss and the draft's three terms."""
    generator = torch.Generator().manual_seed(seed)
    sums = torch.zeros(4)
    for _ in range(count):
        ids = next(data)
        losses = draft_losses(draft, target, ids, draft.config.num_anchors, generator)
        terms = (losses.cross_entropy, losses.total_variation, losses.confidence)
        sums += torch.stack([_next_token_loss(target, ids), *terms])
    names = ("target_cross_entropy", "draft_cross_entropy", "draft_total_variation", "draft_confidence_bce")
    return dict(zip(names, (round(x, 4) for x in (sums / count).tolist()), strict=True))
