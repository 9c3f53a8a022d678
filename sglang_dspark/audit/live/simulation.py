"""A batch of requests on a real pair in plain PyTorch, decided by a policy: where, and how far, its output is biased.

SGLang's accept kernels judge the draft token after the last admitted one as well: its row of target logits is there,
so the token that ends a block is that draft token, accepted or replaced from the residual. Position j of a block thus
always follows K(. | draft token j) where j - 1 tokens were admitted and accepted. Where the decision cuts before it,
the position is drafted again and follows the target's p. The mean of K over the draft's own law is p, so the bias of a
token is exactly the mean of 1{cut before it} (p - K), which is far less noisy than counting simulated tokens. A block's
first token is never cut: no leak can bias it. (Our own rejection kernel, where it is chosen on a GPU, draws that last
token afresh: a leak then shows one position earlier.)
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import DynamicCache

from sglang_dspark.audit.live.prompts import Prompt
from sglang_dspark.audit.live.settings import AuditSettings
from sglang_dspark.cost import StepCost
from sglang_dspark.demo.draft import KeyValue, target_features
from sglang_dspark.demo.pair import Pair
from sglang_dspark.demo.reference import DraftBlock, draft_block, token_law
from sglang_dspark.policies import LiveBlock, Outcome, Past, Policy, SurvivalRing, learned

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

BATCHES = 16
_RING = 8


class _Prefilled:
    """A prompt that has been through the target once: the state that every request on it starts from."""

    def __init__(self, pair: Pair, prompt: Prompt) -> None:
        self.cache = DynamicCache(config=pair.target.config)
        out = pair.target(torch.tensor([prompt.tokens]), past_key_values=self.cache, output_hidden_states=True)
        features = target_features(out.hidden_states, pair.draft.config.target_layer_ids)
        self.length = len(prompt.tokens)
        self.context = pair.draft.context(features, torch.arange(self.length)[None])
        self.law = token_law(out.logits[0, -1], 1.0)


class _Request:
    """One simulated request: `generated` tokens so far, the anchor (last of them, not yet in the caches) included."""

    def __init__(self, prompt: int, batch: int, start: _Prefilled, length: int, generator: torch.Generator) -> None:
        self.prompt, self.batch, self.length = prompt, batch, length
        self.cache: DynamicCache = deepcopy(start.cache)
        self.context: list[KeyValue] = list(start.context)
        self.committed = start.length
        self.anchor = int(torch.multinomial(start.law, 1, generator=generator))
        self.generated = 1


@dataclass
class _Verified:
    """A block, the target's laws at all its positions and the next [gamma + 1, V], and its whole accepted depth."""

    block: DraftBlock
    laws: Tensor
    depth: int
    features: Tensor


class Leak:
    """What the simulated requests on one prompt say about its audited positions, in `BATCHES` groups of requests.

    For every drafted token whose predecessors would all have been accepted, s = p - K (see the module). `out` sums s
    over those that the decision cut before, `every` over all, whose mean is zero: it serves as a control variate. Both
    are [BATCHES, positions, V]; `laws` [positions, V] sums the target's laws.
    """

    def __init__(self, positions: int, vocab: int) -> None:
        self.out = np.zeros((BATCHES, positions, vocab))
        self.every = np.zeros((BATCHES, positions, vocab))
        self.weight = np.zeros((2, positions))  # of all drafted tokens, and of those cut off
        self.laws = np.zeros((positions, vocab))
        self.requests = np.zeros(BATCHES)
        self.blocks = 0
        self.cut = 0

    def add(self, batch: int, position: int, shift: Floats, cut: bool) -> None:
        """One drafted token: s [V] at an audited position."""
        self.every[batch, position] += shift
        self.weight[0, position] += 1
        if cut:
            self.out[batch, position] += shift
            self.weight[1, position] += 1

    def bias(self) -> Floats:
        """Estimated bias of the served law in every group of requests, [BATCHES, positions, V]."""
        beta = self.weight[1] / np.maximum(self.weight[0], 1e-9)
        return (self.out - beta[:, None] * self.every) / np.maximum(self.requests, 1.0)[:, None, None]


class SimulatedBatch:
    """Closed loop: lanes 0..background-1 run on, the others follow the audited prompts in turn."""

    def __init__(
        self,
        pair: Pair,
        policy: Policy,
        cost: StepCost | None,
        prompts: Sequence[Prompt],
        beside: Sequence[Prompt],
        settings: AuditSettings,
    ) -> None:
        """beside: prompts of the background."""
        self._pair, self._policy, self._cost, self._settings = pair, policy, cost, settings
        self.gamma = pair.draft.gamma
        policy.check(self.gamma)
        self._generator = torch.Generator().manual_seed(settings.seed)
        with torch.inference_mode():
            self._prefilled = [_Prefilled(pair, prompt) for prompt in prompts]
            self._beside = [_Prefilled(pair, prompt) for prompt in (beside if settings.background else ())]
        lanes = settings.background + settings.concurrency
        self._ring = SurvivalRing(lanes, self.gamma, _RING)
        self._owner = np.zeros(lanes, dtype=np.int64)
        self._carry: Any = policy.start(self.gamma)
        self._next_prompt = 0
        vocab = pair.target.config.vocab_size
        self.leaks = [Leak(settings.tokens, vocab) for _ in prompts]
        self._lanes = [self._fresh(lane) for lane in range(lanes)]

    def _fresh(self, lane: int) -> _Request:
        self._owner[lane] += 1
        settings = self._settings
        if lane < settings.background:
            prompt = int(torch.randint(len(self._beside), (1,), generator=self._generator))
            return _Request(prompt, 0, self._beside[prompt], settings.background_tokens, self._generator)
        turn, prompt = divmod(self._next_prompt, len(self._prefilled))
        self._next_prompt += 1
        return _Request(prompt, turn % BATCHES, self._prefilled[prompt], settings.length, self._generator)

    @torch.inference_mode()
    def step(self) -> int:
        """One decode step of every lane; how many audited requests it finished."""
        drafted = [self._draft(request) for request in self._lanes]
        units = self._decide_and_commit(drafted)
        self._ring.publish(np.arange(len(self._lanes)), self._owner, units)
        finished = 0
        for lane, request in enumerate(self._lanes):
            if request.generated >= request.length:
                if lane >= self._settings.background:
                    finished += 1
                self._lanes[lane] = self._fresh(lane)
        return finished

    def _draft(self, request: _Request) -> _Verified:
        """Draft a block, and what verifying all of it would say."""
        pair, generator = self._pair, self._generator
        block = draft_block(pair.draft, request.anchor, request.committed, request.context, 1.0, generator)
        ids = torch.tensor([[request.anchor, *block.tokens]])
        out = pair.target(ids, past_key_values=request.cache, output_hidden_states=True)
        laws = token_law(out.logits[0], 1.0)
        tokens = torch.tensor(block.tokens)[:, None]
        ratio = (laws[:-1].gather(1, tokens) / block.laws.gather(1, tokens))[:, 0]
        accepted = torch.rand(self.gamma, generator=generator) < ratio
        depth = int(accepted.long().cumprod(0).sum())
        return _Verified(block, laws, depth, target_features(out.hidden_states, pair.draft.config.target_layer_ids))

    def _decide_and_commit(self, drafted: list[_Verified]) -> Ints:
        """Decide, account for what was cut, commit; returns the survivals that this step publishes."""
        live = LiveBlock.of(np.array([v.block.confidence for v in drafted], dtype=np.float32))
        past = self._past()
        lengths = self._policy.decide(past, live).lengths
        committed = [min(int(length), v.depth) for length, v in zip(lengths, drafted, strict=True)]
        for lane, (request, verified, length) in enumerate(zip(self._lanes, drafted, lengths.tolist(), strict=True)):
            if lane >= self._settings.background:
                self._account(request, verified, length)
            self._commit(request, verified, committed[lane])
        if self._policy.learns:
            outcome = Outcome(live.units, lengths, np.asarray(committed, dtype=np.int64))
            self._carry, _ = learned(self._policy, self._carry, outcome)
        return live.units

    def _past(self) -> Past:
        lanes = np.arange(len(self._lanes))
        context = float(sum(request.committed for request in self._lanes))
        prices: Any = None if self._cost is None else self._cost.prices(len(lanes), self.gamma, context)
        return Past(len(lanes), self.gamma, prices, lambda lag: self._ring.look(lanes, self._owner, lag), self._carry)

    def _account(self, request: _Request, verified: _Verified, length: int) -> None:
        """What a block says about the audited positions that it reaches."""
        leak, first = self.leaks[request.prompt], self._settings.skip
        last = first + self._settings.tokens
        leak.blocks, leak.cut = leak.blocks + 1, leak.cut + (length < self.gamma)
        for j in range(2, min(verified.depth, self.gamma - 1) + 2):
            position = request.generated + j - 1
            if first <= position < last:
                shift = _shift(verified.laws[j - 1], verified.block, j)
                leak.add(request.batch, position - first, shift, length < j - 1)
        for j in range(1, min(length, verified.depth) + 2):
            position = request.generated + j - 1
            if first <= position < last:
                leak.laws[position - first] += verified.laws[j - 1].double().numpy()
        if request.generated + min(length, verified.depth) + 1 >= last:
            leak.requests[request.batch] += 1

    def _commit(self, request: _Request, verified: _Verified, accepted: int) -> None:
        if accepted < verified.depth:
            request.anchor = verified.block.tokens[accepted]
        else:
            law = verified.laws[accepted]
            if accepted < self.gamma:
                law = (law - verified.block.laws[accepted]).clamp(min=0)
            request.anchor = int(torch.multinomial(law, 1, generator=self._generator))
        request.cache.crop(accepted - self.gamma)
        features = verified.features[:, : accepted + 1]
        positions = torch.arange(request.committed, request.committed + accepted + 1)[None]
        new = self._pair.draft.context(features, positions)
        request.context = [
            (torch.cat([k, nk], 2), torch.cat([v, nv], 2))
            for (k, v), (nk, nv) in zip(request.context, new, strict=True)
        ]
        request.committed += accepted + 1
        request.generated += accepted + 1


def _shift(law: Tensor, block: DraftBlock, j: int) -> Floats:
    """p - K(. | drafted token) [V] at position j of a block, where p is `law`."""
    return (law - after_draft_token(law, block.laws[j - 1], block.tokens[j - 1])).double().numpy()


def after_draft_token(law: Tensor, draft: Tensor, token: int) -> Tensor:
    """Law [V] of the next token once draft token `token`, drawn from `draft` [V], is verified against `law` [V]."""
    chance = min(1.0, float(law[token] / draft[token]))
    residual = (law - draft).clamp(min=0)
    mass = float(residual.sum())
    residual = residual / mass if mass > 0 else law
    outcome = (1.0 - chance) * residual
    outcome[token] += chance
    return outcome
