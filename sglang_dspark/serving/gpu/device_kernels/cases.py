"""The four operations that can be ours: whether each may be, how it is built, checked, warmed and fed for timing.

A case checks its operation against the torch reference of its kernel, on this device and with this server's weights.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from dspark_kernels.admission import MAX_REQUESTS
from dspark_kernels.markov_bounds import bounds_bytes
from dspark_kernels.markov_normaliser import tile_rows
from dspark_kernels.markov_reference import shortfall
from dspark_kernels.rejection_reference import DraftLaw, Sampling, verify_reference
from dspark_kernels.survival import MAX_GAMMA, confidence_reference
from sglang.srt.layers.dp_attention import get_dp_tp_group
from sglang.srt.speculative.dspark_components import dspark_draft, dspark_verify
from sglang.srt.speculative.dspark_components.dspark_draft import DraftBlockResult, DraftNoise
from sglang.srt.speculative.ragged_verify import RaggedVerifyLayout

from sglang_dspark.policies import Plan
from sglang_dspark.serving.base import admission
from sglang_dspark.serving.gpu.device_kernels.operations import (
    FILTERED,
    UNFILTERED,
    ConfidenceOperation,
    MarkovOperation,
    RejectionOperation,
    admit_plan,
    markov_head_of,
)

CHECKED_ROWS = 4
WARMED_ROWS = (1, 3, 16)
"""Triton compiles a size of 1, a multiple of 16 and any other one apart; each of the three is built here."""

_ALMOST = 0.9  # share of rows that must agree where a rounding may move a near tie


class Case(ABC):
    """One operation of a worker whose models are loaded."""

    name: ClassVar[str]

    def __init__(self, worker: Any) -> None:
        self.worker = worker
        self.device = torch.device(worker.device)
        self.gamma = int(worker.gamma)
        self.vocab = int(worker.draft_model.lm_head.org_vocab_size)
        self.dtype = worker.draft_model.lm_head.weight.dtype

    @property
    @abstractmethod
    def upstream(self) -> Callable[..., Any]:
        """SGLang's function, as it is now."""

    def refusal(self) -> str | None:
        """Why the operation cannot be ours here, or None."""
        return None

    def kept_bytes(self) -> int:
        """Device memory that it holds on to."""
        return 0

    def timed_forms(self) -> dict[str, dict[str, Any]]:
        """The forms of work that are measured apart, with what `arguments` takes for each."""
        return {"": {}}

    def leave(self, operation: Any, forms: frozenset[str]) -> None:
        """Let SGLang's own do these forms."""
        raise NotImplementedError(f"{self.name} has one form")

    def row_bytes(self) -> int:
        """Device memory that a trial takes for every row, both implementations and the reference included."""
        return 40 * self.vocab * (self.gamma + 1)

    @abstractmethod
    def build(self) -> Callable[..., Any]:
        """Our operation."""

    @abstractmethod
    def arguments(self, rows: int, **form: Any) -> dict[str, Any]:
        """What both implementations are called with, for a batch of `rows`."""

    @abstractmethod
    def check(self, operation: Any) -> str:
        """How the operation differs from its reference, or an empty string."""

    def warmed_rows(self) -> tuple[int, ...]:
        """Batch sizes that between them build every kernel that any batch size asks for."""
        return WARMED_ROWS

    def warm(self, operation: Any) -> None:
        """Build every form that serving can call for."""
        for rows in self.warmed_rows():
            operation(**self.arguments(rows))

    def ones(self, rows: int) -> torch.Tensor:
        return torch.ones(rows, device=self.device)


class MarkovCase(Case):
    """The Markov block of a vanilla, gated or RNN head."""

    name = "markov"

    @property
    def upstream(self) -> Callable[..., Any]:
        return dspark_draft.draft_markov_block

    def refusal(self) -> str | None:
        if get_dp_tp_group().world_size > 1:
            return "tensor-parallel ranks agree on the token after every step"
        head = markov_head_of(self.worker.draft_model.markov_head)
        if head is None:
            return f"a {type(self.worker.draft_model.markov_head).__name__}, sharded or of another kind"
        if head.vocab != self.vocab:
            return f"the head's vocabulary {head.vocab} is not the model's {self.vocab}"
        return None

    def kept_bytes(self) -> int:
        head = markov_head_of(self.worker.draft_model.markov_head)
        return bounds_bytes(head) if head is not None and head.kind == "vanilla" else 0

    def build(self) -> MarkovOperation:
        module = self.worker.draft_model.markov_head
        head = markov_head_of(module)
        assert head is not None, "the refusal comes first"
        return MarkovOperation.of(self.upstream, module, screened=head.kind == "vanilla")

    def arguments(self, rows: int, **form: Any) -> dict[str, Any]:
        model = self.worker.draft_model
        base = torch.randn(rows, self.gamma, self.vocab, device=self.device, dtype=self.dtype).mul_(4)
        return dict(
            markov_head=model.markov_head,
            base_logits=base,
            anchor_tokens=torch.arange(rows, device=self.device) % self.vocab,
            draft_hidden=torch.randn(rows, self.gamma, model.config.hidden_size, device=self.device, dtype=self.dtype),
            step_temperatures=self.ones(rows),
            noise=DraftNoise(key=1, offset=torch.zeros(1, dtype=torch.int64, device=self.device)),
            tp_sync=SimpleNamespace(sync=lambda site, value: value),
            logits_out=torch.empty_like(base, dtype=model.markov_head.step_logits_dtype(self.dtype)),
            greedy_draft=bool(self.worker._greedy_draft),
        )

    def warmed_rows(self) -> tuple[int, ...]:
        first: dict[tuple[int, int], int] = {}
        for rows in range(1, 129):
            kind = 0 if rows == 1 else 1 if rows % 16 else 2
            first.setdefault((kind, tile_rows(rows * self.gamma)), rows)
        return tuple(first.values())

    def check(self, operation: MarkovOperation) -> str:
        given = self.arguments(CHECKED_ROWS)
        given["step_temperatures"] = torch.tensor([0.0, 0.6, 1.0, 1.4], device=self.device)
        tokens, logits = operation(**given)
        if not bool(((tokens >= 0) & (tokens < self.vocab)).all()):
            return "it drafts tokens that do not exist"
        temperatures = torch.zeros_like(given["step_temperatures"]) if given["greedy_draft"] else None
        gaps, expected = shortfall(
            operation.head,
            given["base_logits"],
            given["anchor_tokens"],
            given["step_temperatures"] if temperatures is None else temperatures,
            tokens,
            seed=1,
            request=torch.arange(CHECKED_ROWS, device=self.device),
            step=torch.zeros(1, dtype=torch.int64, device=self.device),
            hidden=None if operation.head.kind == "vanilla" else given["draft_hidden"],
        )
        # Two right implementations may round a logit to neighbouring numbers.
        finite = expected.float().abs()
        room = 2 * float(torch.finfo(expected.dtype).eps) * float(finite.max()) / 0.6 + 1e-3
        if float(gaps.max()) > room:
            return f"a drafted token's score is {float(gaps.max()):.3g} short of the best, expected at most {room:.2g}"
        if logits is not None and float((logits.float() - expected.float()).abs().max()) > room:
            return "its step logits are not the reference's"
        return ""


class RejectionCase(Case):
    """The sampled accept of a compact verify."""

    name = "rejection"

    @property
    def upstream(self) -> Callable[..., Any]:
        return dspark_verify.accept_draft_tokens

    def refusal(self) -> str | None:
        if not self.worker._verify_planner.is_compact_mode:
            return "cap-accept reports what the cap trimmed, which only the full accept knows"
        return None

    def build(self) -> RejectionOperation:
        return RejectionOperation.of(self.upstream, self.worker.target_worker.random_seed, self.device)

    def arguments(
        self, rows: int, *, top_k: bool = False, top_p: bool = False, wide: bool = False, **form: Any
    ) -> dict[str, Any]:
        """top_k, top_p: some requests filter. wide: float32 target logits, which some models give."""
        width = self.gamma + 1
        tokens = torch.randint(0, self.vocab, (rows, self.gamma), device=self.device)
        lens = [1 + row % width for row in range(rows)]
        logits = None
        if not self.worker._greedy_draft:
            logits = torch.randn(rows, self.gamma, self.vocab, device=self.device, dtype=self.dtype)
        kind = torch.float32 if wide else self.dtype
        target = torch.randn(rows, width, self.vocab, device=self.device, dtype=kind)
        # A draft that the target often agrees with: otherwise everything is rejected at the first token.
        target[:, : self.gamma].scatter_add_(
            2, tokens[:, :, None], torch.full((rows, self.gamma, 1), 8.0, device=self.device, dtype=kind)
        )
        ones = self.ones(rows)
        return dict(
            candidates=torch.cat([tokens[:, :1], tokens], dim=1),
            target_logits=target.view(rows * width, self.vocab),
            draft_block=DraftBlockResult(
                draft_tokens=tokens,
                corrected_logits=logits,
                greedy_mask=ones < 0,
                temperatures=ones,
                greedy_draft=logits is None,
            ),
            sampling_info=SimpleNamespace(
                is_all_greedy=False,
                is_any_greedy=False,
                temperatures=ones[:, None],
                top_ks=torch.full((rows,), 20, dtype=torch.int32, device=self.device),
                top_ps=torch.full((rows,), 0.9, device=self.device),
                need_top_k_sampling=top_k,
                need_top_p_sampling=top_p,
                need_min_p_sampling=False,
            ),
            draft_input=SimpleNamespace(max_top_k=20, uniform_top_k_value=20),
            gamma=self.gamma,
            verify_num_draft_tokens=width,
            cutoff_layout=RaggedVerifyLayout.from_verify_lens(
                verify_lens_cpu=lens, device=self.device, grid=[sum(lens)]
            ),
        )

    def timed_forms(self) -> dict[str, dict[str, Any]]:
        """Rows with top-k or top-p take several passes more."""
        return {UNFILTERED: {}, FILTERED: {"top_k": True, "top_p": True}}

    def leave(self, operation: RejectionOperation, forms: frozenset[str]) -> None:
        operation.leaves = forms

    def _forms(self) -> list[dict[str, bool]]:
        return [{"top_k": k, "top_p": p} for k in (False, True) for p in (False, True)]

    def check(self, operation: RejectionOperation) -> str:
        agreed = seen = 0
        for form in self._forms():
            given = self.arguments(CHECKED_ROWS, **form)
            block, info = given["draft_block"], given["sampling_info"]
            lengths = (given["cutoff_layout"].verify_lens - 1).to(torch.int32)
            law = None
            if block.corrected_logits is not None:
                normaliser = torch.logsumexp(block.corrected_logits.float(), dim=-1)
                law = DraftLaw(block.corrected_logits, normaliser, block.temperatures)
            numbers, step = torch.arange(CHECKED_ROWS, device=self.device), operation.step.clone()
            want = verify_reference(
                given["target_logits"],
                numbers * (self.gamma + 1),
                lengths,
                block.draft_tokens,
                Sampling(
                    block.temperatures,
                    info.top_ks if form["top_k"] else None,
                    info.top_ps if form["top_p"] else None,
                ),
                law,
                seed=operation.seed,
                request=numbers,
                step=step,
            )
            accepted, bonus, _ = operation(**given)
            agreed += int(((accepted == want.accepted) & (bonus == want.bonus)).sum())
            seen += CHECKED_ROWS
        return "" if agreed >= _ALMOST * seen else f"{seen - agreed} of {seen} verified rows differ"

    def warm(self, operation: Any) -> None:
        for form in self._forms():
            for wide in {False, self.dtype is not torch.float32}:
                operation(**self.arguments(WARMED_ROWS[1], **form, wide=wide))


class ConfidenceCase(Case):
    """The confidence head."""

    name = "confidence"

    @property
    def upstream(self) -> Callable[..., Any]:
        return self.worker.draft_model.compute_confidence

    def refusal(self) -> str | None:
        return "this draft has no confidence head" if self.worker.draft_model.confidence_head is None else None

    def build(self) -> ConfidenceOperation:
        return ConfidenceOperation.of(self.worker.draft_model)

    def arguments(self, rows: int, **form: Any) -> dict[str, Any]:
        width = self.worker.draft_model.config.hidden_size
        return dict(
            anchor_tokens=torch.arange(rows, device=self.device) % self.vocab,
            draft_tokens=torch.randint(0, self.vocab, (rows, self.gamma), device=self.device),
            confidence_features=torch.randn(rows * self.gamma, width, device=self.device, dtype=self.dtype),
        )

    def check(self, operation: ConfidenceOperation) -> str:
        given, head = self.arguments(CHECKED_ROWS), operation.head
        want = confidence_reference(
            given["confidence_features"].view(CHECKED_ROWS, self.gamma, -1),
            given["anchor_tokens"],
            given["draft_tokens"],
            head.proj.weight.data,
            None if head.proj.bias is None else head.proj.bias.data,
            head.sts_temperatures,
            operation.w1,
        )
        off = float((operation(**given)[0] - want.confidence).abs().max())
        return "" if off < 1e-3 else f"a confidence is off by {off:.2g}"


class AdmissionCase(Case):
    """The live admission order of a budget."""

    name = "admission"

    @property
    def upstream(self) -> Callable[..., Any]:
        return admission.allocate_on_device

    def refusal(self) -> str | None:
        return None if self.gamma <= MAX_GAMMA else f"gamma={self.gamma}, its kernel takes at most {MAX_GAMMA}"

    def row_bytes(self) -> int:
        return 1 << 12

    def build(self) -> Callable[..., Any]:
        whole, upstream = (0, self.gamma), self.upstream

        def admit(confidence: torch.Tensor, plan: Plan) -> torch.Tensor:
            # Other floors and caps would be compiled while requests run; those of single requests have no kernel.
            warmed = (plan.floor, plan.cap) == whole and plan.caps is None and confidence.shape[0] <= MAX_REQUESTS
            return admit_plan(confidence, plan) if warmed else upstream(confidence, plan)

        return admit

    def arguments(self, rows: int, **form: Any) -> dict[str, Any]:
        confidence = torch.rand(rows, self.gamma, device=self.device)
        return dict(confidence=confidence, plan=Plan(max(1, confidence.numel() // 2), 0, self.gamma))

    def check(self, operation: Any) -> str:
        for rows in WARMED_ROWS:
            given = self.arguments(rows)
            if not torch.equal(operation(**given), self.upstream(**given)):
                return f"other tokens are admitted for {rows} requests"
        return ""


CASES: tuple[type[Case], ...] = (MarkovCase, RejectionCase, ConfidenceCase, AdmissionCase)
