"""Weights that change in place, and a device without memory left: nothing derived from old weights may outlive them."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

from gpu_stages import Stage

VOCAB, RANK, GAMMA, ROWS = 151_936, 256, 7, 8


def run(stage: Stage) -> None:
    device = stage.device
    if device.type == "cuda":
        stage.note(**{"without memory": out_of_memory(device)})
    from dspark_kernels.interpreter import interpreted

    with interpreted() if device.type == "cpu" else nullcontext():
        stage.note(**{"after a weight update": weight_update(device)})


def weight_update(device: Any) -> str:
    """Screening bounds are made from the head's weights: after an update in place they must not decide any more."""
    import torch
    from dspark_kernels.markov import sample_markov_block
    from dspark_kernels.markov_bounds import markov_bounds
    from dspark_kernels.markov_heads import MarkovHead

    small = device.type == "cpu"
    vocab, rank, gamma, rows = (600, 32, 2, 2) if small else (VOCAB, RANK, GAMMA, ROWS)
    torch.manual_seed(0)
    w1, w2 = (0.1 * torch.randn(vocab, rank, device=device).bfloat16() for _ in range(2))
    head = MarkovHead("vanilla", w1, w2)
    bounds = markov_bounds(head)
    bounds.drop()  # as the worker does when SGLang announces an update
    w2.copy_(4 * torch.randn(vocab, rank, device=device).bfloat16())  # what a weight update does
    base = torch.randn(rows, gamma, vocab, device=device).bfloat16()
    bounds.refill(head)
    anchor, greedy = torch.arange(rows, device=device), torch.zeros(rows, device=device)
    counters = dict(seed=1, request=torch.arange(rows, device=device), step=torch.tensor([1], device=device))
    plain, screened = (
        sample_markov_block(head, base, anchor, greedy, **counters, keep="nothing", bounds=b) for b in (None, bounds)
    )
    wrong = int((plain.tokens != screened.tokens).sum())
    if wrong:
        raise RuntimeError(f"{wrong} of {plain.tokens.numel()} tokens are those of stale bounds")
    return "the same tokens"


def out_of_memory(device: Any) -> str:
    """A kernel's own buffers do not fit: it must raise torch's error, and work again when there is memory."""
    import torch
    from dspark_kernels.survival import survival_units

    confidence = torch.rand(1 << 20, 16, device=device)
    expected = survival_units(confidence[:1024])
    free, _ = torch.cuda.mem_get_info()
    hoard = []
    try:
        while True:
            hoard.append(torch.empty(max(free // 8, 1 << 20), dtype=torch.uint8, device=device))
            free, _ = torch.cuda.mem_get_info()
    except torch.OutOfMemoryError:
        pass
    try:
        survival_units(confidence)
        raised = "it fitted"
    except torch.OutOfMemoryError:
        raised = "OutOfMemoryError"
    hoard.clear()
    torch.cuda.empty_cache()
    again = bool((survival_units(confidence[:1024]) == expected).all())
    if not again:
        raise RuntimeError("after an out-of-memory error the kernel gives other values")
    return f"{raised}, and right again afterwards"
