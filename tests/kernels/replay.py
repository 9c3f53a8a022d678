"""A call inside a CUDA graph that is replayed with other inputs, as the engine runs kernels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Sizes:
    """What is served: Qwen3-8B's vocabulary, Markov rank, block and hidden size; small ones for the interpreter."""

    requests: int
    gamma: int
    vocab: int
    rank: int
    width: int


def sizes(device: torch.device, requests: int) -> Sizes:
    """Served sizes on a GPU; on a CPU small ones that are no multiples of a block, with at most 3 requests."""
    if device.type == "cuda":
        return Sizes(requests, 7, 151_936, 256, 4096)
    return Sizes(min(requests, 3), 2, 70, 5, 20)


class Replayed:
    """`call(**inputs)`, captured; calling this copies new inputs over the captured ones and replays. On a CPU nothing
    is captured and the call runs anew on the same tensors."""

    def __init__(self, call: Callable[..., Any], device: torch.device, inputs: dict[str, torch.Tensor]) -> None:
        self._inputs = {name: tensor.clone() for name, tensor in inputs.items()}
        self._run = lambda: call(**self._inputs)
        self._graph = None
        if device.type == "cuda":
            self._capture()

    def _capture(self) -> None:
        # What is compiled at a first launch, or allocated once, cannot be captured: the call runs once before.
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            self._run()
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._out = self._run()

    def __call__(self, inputs: dict[str, torch.Tensor]) -> Any:
        for name, tensor in inputs.items():
            self._inputs[name].copy_(tensor)
        if self._graph is None:
            return self._run()
        self._graph.replay()
        return self._out
