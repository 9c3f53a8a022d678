"""Weights that change in place, and a device without memory left: nothing derived from old weights may outlive them."""

from __future__ import annotations

import subprocess
import sys
from contextlib import nullcontext
from typing import Any

from gpu_stages import Stage

VOCAB, RANK, GAMMA, ROWS = 151_936, 256, 7, 8


def run(stage: Stage) -> None:
    device = stage.device
    if device.type == "cuda":
        stage.note(**{"without memory": out_of_memory(device)})
    # In a process of its own: what stale bounds leave over is read as a token, which may end it.
    code = "import sys, gpu_stages.memory as memory; memory.print_weight_update(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", code, device.type], capture_output=True, text=True, check=False)
    said = done.stdout.strip() or f"not fixed yet: the process ended with status {done.returncode}"
    print(done.stderr)
    stage.note(**{"after a weight update": said})


def print_weight_update(device: str) -> None:
    """`weight_update` on a GPU, or in Triton's interpreter."""
    import torch
    from dspark_kernels.interpreter import interpreted

    with interpreted() if device == "cpu" else nullcontext():
        print(weight_update(torch.device(device)))


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
    w2.copy_(4 * torch.randn(vocab, rank, device=device).bfloat16())  # what a weight update does
    base = torch.randn(rows, gamma, vocab, device=device).bfloat16()
    anchor, greedy = torch.arange(rows, device=device), torch.zeros(rows, device=device)
    counters = dict(seed=1, request=torch.arange(rows, device=device), step=torch.tensor([1], device=device))
    plain, screened = (
        sample_markov_block(head, base, anchor, greedy, **counters, keep="nothing", bounds=b) for b in (None, bounds)
    )
    wrong = int((plain.tokens != screened.tokens).sum())
    return "the same tokens" if not wrong else f"not fixed yet: {wrong} of {plain.tokens.numel()} tokens are stale"


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
