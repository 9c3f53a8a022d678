"""The operations that can be ours, each with the signature of the SGLang function that it replaces."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from dspark_kernels.admission import admit
from dspark_kernels.markov import sample_markov_block
from dspark_kernels.markov_bounds import MarkovBounds, markov_bounds
from dspark_kernels.markov_heads import MarkovHead
from dspark_kernels.rejection import verify
from dspark_kernels.rejection_reference import DraftLaw, Sampling
from dspark_kernels.rejection_statistics import draft_normaliser
from dspark_kernels.survival import confidence_survival, survival_units

from sglang_dspark.policies import Plan

_REJECTION_DOMAIN = 0x51F2C6A07B3D94E8
"""XORed into the server seed: recovery and acceptance share no key with SGLang's draft noise."""

_PROJECTIONS = {"VanillaMarkov": None, "GatedMarkovHead": "gate_proj", "RNNHead": "joint_proj"}


def markov_head_of(module: Any) -> MarkovHead | None:
    """SGLang's Markov head as ours, sharing its weights; None for a head that is not one of the three, or sharded."""
    name = type(module).__name__
    if name not in _PROJECTIONS or getattr(module, "vocab_shard", None) is not None:
        return None
    kinds = {"VanillaMarkov": "vanilla", "GatedMarkovHead": "gated", "RNNHead": "rnn"}
    projects = _PROJECTIONS[name]
    projection = None if projects is None else getattr(module, projects)
    weights = (None, None) if projection is None else (projection.weight.data, projection.bias.data)
    return MarkovHead(kinds[name], module.markov_w1.weight.data, module.markov_w2.weight.data, *weights)


@dataclass
class Rows:
    """Row numbers as request identities: unique within a step, and the step counter makes every step's draws
    fresh."""

    numbers: torch.Tensor | None = None

    def first(self, count: int, device: torch.device) -> torch.Tensor:
        """[count] int64, a view of one buffer that keeps its address for captured graphs."""
        if self.numbers is None or self.numbers.shape[0] < count:
            self.numbers = torch.arange(max(count, 1024), device=device)
        return self.numbers[:count]


@dataclass
class MarkovOperation:
    """Replaces `dspark_draft.draft_markov_block`: one rank, an unsharded head of the three kinds."""

    upstream: Callable[..., Any]
    module: Any
    head: MarkovHead
    bounds: MarkovBounds | None
    rows: Rows = field(default_factory=Rows)

    @classmethod
    def of(cls, upstream: Callable[..., Any], module: Any, *, screened: bool) -> MarkovOperation:
        """Bounds are computed here, once, when asked for."""
        head = markov_head_of(module)
        assert head is not None, "the caller checks markov_head_of"
        return cls(upstream, module, head, markov_bounds(head) if screened else None)

    def drop_bounds(self) -> None:
        """Before the weights change in place: screen nothing."""
        if self.bounds is not None:
            self.bounds.drop()

    def refill_bounds(self) -> None:
        """After it: screen by the weights that are there now."""
        head = markov_head_of(self.module)
        if head is None or head.vocab != self.head.vocab:
            raise ValueError("the draft's Markov head is another one after a weight update")
        self.head = head
        if self.bounds is not None:
            try:
                self.bounds.refill(head)
            except BaseException:
                self.bounds.drop()  # half of them may be new
                raise

    def __call__(
        self,
        *,
        markov_head: Any,
        base_logits: torch.Tensor,
        anchor_tokens: torch.Tensor,
        draft_hidden: torch.Tensor | None,
        step_temperatures: torch.Tensor,
        noise: Any,
        tp_sync: Any,
        logits_out: torch.Tensor | None = None,
        greedy_draft: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Drafted tokens [R, gamma] and the step logits, as upstream returns them; advances the noise as upstream
        does."""
        if markov_head is not self.module:
            return self.upstream(
                markov_head=markov_head,
                base_logits=base_logits,
                anchor_tokens=anchor_tokens,
                draft_hidden=draft_hidden,
                step_temperatures=step_temperatures,
                noise=noise,
                tp_sync=tp_sync,
                logits_out=logits_out,
                greedy_draft=greedy_draft,
            )
        temperatures = torch.zeros_like(step_temperatures) if greedy_draft else step_temperatures.contiguous()
        block = sample_markov_block(
            self.head,
            base_logits,
            anchor_tokens.long().contiguous(),
            temperatures,
            seed=noise.key,
            request=self.rows.first(base_logits.shape[0], base_logits.device),
            step=noise.offset,
            bounds=self.bounds,
            hidden=None if self.head.kind == "vanilla" else draft_hidden,
            keep="nothing" if greedy_draft else "logits",
            logits_out=None if greedy_draft else logits_out,
        )
        if not greedy_draft:
            noise.offset.add_(1)
        return block.tokens, block.step_logits


UNFILTERED, FILTERED = "unfiltered", "filtered"
"""Forms of a batch: whether any request has a top-k or top-p."""


@dataclass
class RejectionOperation:
    """Replaces `dspark_verify.accept_draft_tokens` for sampled and mixed batches of a compact verify.

    Upstream hands it logits in strides of gamma + 1; rows past a request's verify length are not read. Greedy batches
    keep upstream's argmax, which its verify graph has folded, and so do the forms in `leaves`, at which it is faster.
    """

    upstream: Callable[..., Any]
    seed: int
    step: torch.Tensor
    rows: Rows = field(default_factory=Rows)
    leaves: frozenset[str] = frozenset()

    @classmethod
    def of(cls, upstream: Callable[..., Any], server_seed: int, device: torch.device) -> RejectionOperation:
        """A fresh counter; the key differs from the draft's."""
        seed = (int(server_seed) ^ _REJECTION_DOMAIN) & 0x7FFFFFFFFFFFFFFF
        return cls(upstream, seed, torch.zeros(1, dtype=torch.int64, device=device))

    def __call__(self, **step: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(correct_len [R] int32, bonus [R] int64, cap_trim_lens [R] int32 zeros)."""
        sampling, layout = step["sampling_info"], step.get("cutoff_layout")
        if sampling is None or sampling.is_all_greedy or layout is None or step.get("block_verification"):
            return self.upstream(**step)
        if (FILTERED if sampling.need_top_k_sampling or sampling.need_top_p_sampling else UNFILTERED) in self.leaves:
            return self.upstream(**step)
        block, width = step["draft_block"], int(step["verify_num_draft_tokens"])
        tokens = block.draft_tokens.contiguous()
        requests, device = tokens.shape[0], tokens.device
        rows = self.rows.first(requests, device)
        lengths = (layout.verify_lens - 1).to(torch.int32)
        law = None
        if not block.greedy_draft:
            logits, temperatures = block.corrected_logits.contiguous(), block.temperatures.contiguous()
            law = DraftLaw(logits, draft_normaliser(logits, temperatures, lengths), temperatures)
        accepted, bonus = verify(
            step["target_logits"],
            rows * width,
            lengths,
            tokens,
            _sampling_of(sampling, block.greedy_mask, requests),
            law,
            seed=self.seed,
            request=rows,
            step=self.step,
        )
        self.step.add_(1)
        return accepted, bonus, torch.zeros_like(accepted)


def _sampling_of(info: Any, greedy: torch.Tensor, requests: int) -> Sampling:
    """SGLang's sampling parameters; its greedy requests carry top_k 1 and temperature 1.

    min_p is left out because SGLang 0.5.23 leaves it out when it verifies drafts: which kernels a start-up measurement
    chose must not decide what is sampled.
    """
    temperatures = info.temperatures.view(-1)[:requests].to(torch.float32)

    def wanted(needed: bool, name: str, dtype: torch.dtype) -> torch.Tensor | None:
        return getattr(info, name).view(-1)[:requests].to(dtype).contiguous() if needed else None

    return Sampling(
        torch.where(greedy[:requests], 0.0, temperatures),
        wanted(info.need_top_k_sampling, "top_ks", torch.int32),
        wanted(info.need_top_p_sampling, "top_ps", torch.float32),
    )


@dataclass
class ConfidenceOperation:
    """Replaces `compute_confidence` of a draft model with a confidence head."""

    head: Any
    w1: torch.Tensor | None

    @classmethod
    def of(cls, draft_model: Any) -> ConfidenceOperation:
        """Shares the weights of SGLang's head."""
        head = draft_model.confidence_head
        return cls(head, draft_model.markov_head.markov_w1.weight.data if head.with_markov else None)

    def __call__(
        self, *, anchor_tokens: torch.Tensor, draft_tokens: torch.Tensor, confidence_features: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Confidence [R, gamma] and its raw logit, as upstream returns them."""
        requests, gamma = draft_tokens.shape
        bias = None if self.head.proj.bias is None else self.head.proj.bias.data
        found = confidence_survival(
            confidence_features.view(requests, gamma, -1),
            anchor_tokens.long(),
            draft_tokens.long(),
            self.head.proj.weight.data,
            bias,
            self.head.sts_temperatures,
            self.w1,
        )
        return found.confidence, found.raw


def admit_plan(confidence: torch.Tensor, plan: Plan) -> torch.Tensor:
    """Replaces `serving.admission.allocate_on_device`: admitted draft tokens [R] int64 of a plan."""
    units = survival_units(confidence.to(torch.float32))
    return admit(units, "budget", budget=plan.budget, floor=plan.floor, cap=plan.cap).lengths.to(torch.int64)
