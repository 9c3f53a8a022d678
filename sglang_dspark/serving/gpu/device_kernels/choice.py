"""Measures each operation beside upstream's and puts the winners in place."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any

import torch
from dspark_kernels.choose import Choice, Mode, choose
from sglang.srt.runtime_context import get_parallel
from sglang.srt.speculative.dspark_components import dspark_draft, dspark_draft_sampler, dspark_verify
from sglang.srt.speculative.dspark_components.dspark_draft import DraftBlockResult, DraftNoise
from sglang.srt.speculative.ragged_verify import RaggedVerifyLayout

from sglang_dspark.policies import Plan
from sglang_dspark.serving.base import admission
from sglang_dspark.serving.base.contract import moved
from sglang_dspark.serving.gpu.device_kernels.operations import (
    ConfidenceOperation,
    MarkovOperation,
    RejectionOperation,
    admit_plan,
    markov_head_of,
)

OPERATIONS = ("markov", "rejection", "confidence", "admission")

_DSPARK = "sglang.srt.speculative.dspark_components"

REPLACED = {
    f"{_DSPARK}.dspark_draft.draft_markov_block": (
        "*markov_head, *base_logits, *anchor_tokens, *draft_hidden, *step_temperatures, *noise, *tp_sync, *logits_out, "
        "*greedy_draft"
    ),
    f"{_DSPARK}.dspark_verify.accept_draft_tokens": (
        "*candidates, *target_logits, *draft_block, *sampling_info, *draft_input, *gamma, *verify_num_draft_tokens, "
        "*cutoff_layout, *fused_argmax, *block_verification, *rejection_noise"
    ),
    "sglang.srt.models.dspark.DSparkDraftMixin.compute_confidence": (
        "self, *anchor_tokens, *draft_tokens, *confidence_features"
    ),
    "sglang_dspark.serving.base.admission.allocate_on_device": "confidence, plan",
}
"""Signatures that ours stand in for, as `sglang_dspark.serving.base.contract.moved` reads them."""


def measure(worker: Any, mode: Mode) -> dict[str, Choice]:
    """What to use for each operation on this worker's device; `mode` "ours" or "upstream" measures nothing.

    worker: SGLang's DSPARK worker, models loaded. Errors: ValueError for another mode; whatever a kernel raises that
    cannot run.
    """
    device, changes = torch.device(worker.device), moved(REPLACED)
    if changes:
        raise RuntimeError(f"this SGLang is not the one whose functions are replaced: {'; '.join(changes)}")
    choices = {}
    for name, refusal, calls in _cases(worker):
        if refusal is not None and mode != "upstream":
            choices[name] = Choice(name, "upstream", refusal)
        elif mode == "auto" and device.type == "cuda":
            with torch.inference_mode():
                choices[name] = choose(name, *calls(), device, mode, graph=False)
        else:
            choices[name] = choose(name, _unused, _unused, device, mode)
    return choices


def install(worker: Any, choices: dict[str, Choice]) -> ExitStack:
    """Put the chosen operations in place; closing the returned stack restores upstream's."""
    undo = ExitStack()

    def put(owner: Any, name: str, value: Any) -> None:
        own = name in vars(owner)
        undo.callback(setattr if own else _forget, owner, name, getattr(owner, name))
        setattr(owner, name, value)

    if choices["markov"].kernels == "ours":
        operation = _markov(worker)
        put(dspark_draft, "draft_markov_block", operation)
        put(dspark_draft_sampler, "draft_markov_block", operation)
    if choices["rejection"].kernels == "ours":
        put(dspark_verify, "accept_draft_tokens", _rejection(worker))
    if choices["confidence"].kernels == "ours":
        # SGLang's draft model is a torch module: its own __setattr__ takes a plain callable as it is.
        put(worker.draft_model, "compute_confidence", ConfidenceOperation.of(worker.draft_model))
    if choices["admission"].kernels == "ours":
        put(admission, "allocate_on_device", admit_plan)
    return undo


def _forget(owner: Any, name: str, value: Any) -> None:
    delattr(owner, name)


def _unused() -> None:
    raise AssertionError("nothing is measured here")


def _markov(worker: Any) -> MarkovOperation:
    module = worker.draft_model.markov_head
    head = markov_head_of(module)
    assert head is not None, "_markov_refusal comes first"
    return MarkovOperation.of(dspark_draft.draft_markov_block, module, screened=head.kind == "vanilla")


def _rejection(worker: Any) -> RejectionOperation:
    seed = worker.target_worker.random_seed
    return RejectionOperation.of(dspark_verify.accept_draft_tokens, seed, torch.device(worker.device))


def _cases(
    worker: Any,
) -> list[tuple[str, str | None, Callable[[], tuple[Callable[[], object], Callable[[], object]]]]]:
    """(operation, why it cannot be ours or None, a function that makes our call and upstream's on the same
    inputs)."""
    return [
        ("markov", _markov_refusal(worker), lambda: _markov_calls(worker)),
        ("rejection", _rejection_refusal(worker), lambda: _rejection_calls(worker)),
        ("confidence", _confidence_refusal(worker), lambda: _confidence_calls(worker)),
        ("admission", None, lambda: _admission_calls(worker)),
    ]


def _markov_refusal(worker: Any) -> str | None:
    if get_parallel().tp_size > 1:
        return "tensor-parallel ranks agree on the token after every step"
    head = markov_head_of(worker.draft_model.markov_head)
    if head is None:
        return f"a {type(worker.draft_model.markov_head).__name__}, sharded or of another kind"
    vocab = int(worker.draft_model.lm_head.org_vocab_size)
    return None if head.vocab == vocab else f"the head's vocabulary {head.vocab} is not the model's {vocab}"


def _rejection_refusal(worker: Any) -> str | None:
    if not worker._verify_planner.is_compact_mode:
        return "cap-accept reports what the cap trimmed, which only the full accept knows"
    return None


def _confidence_refusal(worker: Any) -> str | None:
    return "this draft has no confidence head" if worker.draft_model.confidence_head is None else None


def _rows(worker: Any) -> int:
    """The batch size that operations are measured at: a quarter of the largest one served, at least 1."""
    return max(1, int(worker.model_runner.max_running_requests) // 4)


def _markov_calls(worker: Any) -> tuple[Callable[[], object], Callable[[], object]]:
    rows, gamma, model, device = _rows(worker), worker.gamma, worker.draft_model, torch.device(worker.device)
    vocab, dtype = int(model.lm_head.org_vocab_size), model.lm_head.weight.dtype
    base = (4 * torch.randn(rows, gamma, vocab, device=device)).to(dtype)
    arguments = dict(
        markov_head=model.markov_head,
        base_logits=base,
        anchor_tokens=torch.zeros(rows, dtype=torch.int64, device=device),
        draft_hidden=torch.randn(rows, gamma, worker.draft_model.config.hidden_size, device=device).to(dtype),
        step_temperatures=torch.ones(rows, device=device),
        noise=DraftNoise(key=1, offset=torch.zeros(1, dtype=torch.int64, device=device)),
        tp_sync=SimpleNamespace(sync=lambda site, value: value),
        logits_out=torch.empty_like(base, dtype=model.markov_head.step_logits_dtype(dtype)),
        greedy_draft=bool(worker._greedy_draft),
    )
    ours, upstream = _markov(worker), dspark_draft.draft_markov_block
    return lambda: ours(**arguments), lambda: upstream(**arguments)


def _rejection_calls(worker: Any) -> tuple[Callable[[], object], Callable[[], object]]:
    rows, gamma, device = _rows(worker), worker.gamma, torch.device(worker.device)
    vocab, width = int(worker.draft_model.lm_head.org_vocab_size), worker.gamma + 1
    dtype = worker.draft_model.lm_head.weight.dtype
    tokens = torch.randint(0, vocab, (rows, gamma), device=device)
    ones = torch.ones(rows, device=device)
    lens = [1 + row % width for row in range(rows)]
    logits = None if worker._greedy_draft else torch.randn(rows, gamma, vocab, device=device).to(dtype)
    arguments = dict(
        candidates=torch.cat([tokens[:, :1], tokens], dim=1),
        target_logits=torch.randn(rows * width, vocab, device=device).to(dtype),
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
            need_top_k_sampling=False,
            need_top_p_sampling=False,
            need_min_p_sampling=False,
        ),
        draft_input=SimpleNamespace(max_top_k=None, uniform_top_k_value=None),
        gamma=gamma,
        verify_num_draft_tokens=width,
        cutoff_layout=RaggedVerifyLayout.from_verify_lens(verify_lens_cpu=lens, device=device, grid=[sum(lens)]),
    )
    ours, upstream = _rejection(worker), dspark_verify.accept_draft_tokens
    return lambda: ours(**arguments), lambda: upstream(**arguments)


def _confidence_calls(worker: Any) -> tuple[Callable[[], object], Callable[[], object]]:
    rows, gamma, model, device = _rows(worker), worker.gamma, worker.draft_model, torch.device(worker.device)
    dtype = model.lm_head.weight.dtype
    arguments = dict(
        anchor_tokens=torch.zeros(rows, dtype=torch.int64, device=device),
        draft_tokens=torch.zeros(rows, gamma, dtype=torch.int64, device=device),
        confidence_features=torch.randn(rows * gamma, model.config.hidden_size, device=device).to(dtype),
    )
    ours, upstream = ConfidenceOperation.of(model), model.compute_confidence
    return lambda: ours(**arguments), lambda: upstream(**arguments)


def _admission_calls(worker: Any) -> tuple[Callable[[], object], Callable[[], object]]:
    confidence = torch.rand(_rows(worker), worker.gamma, device=torch.device(worker.device))
    plan, theirs = Plan(max(1, confidence.numel() // 2), 0, worker.gamma), admission.allocate_on_device
    return lambda: admit_plan(confidence, plan), lambda: theirs(confidence, plan)
