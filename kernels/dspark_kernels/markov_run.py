"""One Markov block on the device: its buffers and its launches."""

from __future__ import annotations

import torch
import triton

from dspark_kernels.markov_arguments import TRITON_TYPES, Batch, Bounds, Screen, State, Tiles, Weights
from dspark_kernels.markov_bounds import MarkovBounds, dot_error
from dspark_kernels.markov_heads import MarkovHead
from dspark_kernels.markov_kernels import advance_kernel, tile_kernel
from dspark_kernels.markov_screening import prepare_kernel, probe_kernel
from dspark_kernels.philox import Counters

PROBES = 8
ROWS = 16


class MarkovRun:
    """The buffers of one block and its launches. A part of `sample_markov_block`, which checks its input."""

    def __init__(
        self,
        head: MarkovHead,
        base_logits: torch.Tensor,
        temperatures: torch.Tensor,
        counters: Counters,
        bounds: MarkovBounds | None,
        count_tiles: bool,
    ) -> None:
        num_requests, gamma, vocab = base_logits.shape
        self.block = 256 if bounds is None else bounds.block
        self.step_dtype = head.step_dtype(base_logits.dtype)
        self._device = base_logits.device
        self.batch = Batch(
            base_logits,
            *base_logits.stride()[:2],
            temperatures,
            counters,
            num_requests,
            gamma,
            vocab,
            triton.cdiv(vocab, self.block),
        )
        self.weights = Weights(head.w1, head.w1.stride(0), head.w2, head.w2.stride(0), head.rank)
        self.state = State(
            self._empty(torch.int64), self._empty(torch.int64, gamma), self._empty(head.w2.dtype, gamma, head.rank)
        )
        self.tiles = Tiles(
            self._empty(torch.float32, self.batch.blocks),
            self._empty(torch.int32, self.batch.blocks),
            torch.zeros(gamma, dtype=torch.int32, device=self._device) if count_tiles else None,
        )
        self.screen, self.bounds = None, Bounds()
        if bounds is not None:
            general = Bounds(None, bounds.center, bounds.radius, bounds.norm)
            self.bounds = general if bounds.table is None else Bounds(bounds.table)
            self.screen = self._screen()

    def _empty(self, kind: torch.dtype, *shape: int) -> torch.Tensor:
        return torch.empty(self.batch.num_requests, *shape, dtype=kind, device=self._device)

    def _screen(self) -> Screen:
        num_requests, gamma, blocks = self.batch.num_requests, self.batch.gamma, self.batch.blocks
        unit = max(torch.finfo(dtype).eps for dtype in (self.weights.w2.dtype, self.step_dtype)) / 2
        best, token, size = (self._empty(kind, gamma, blocks) for kind in (torch.float32, torch.int32, torch.float32))
        probe, bar = self._empty(torch.int32, gamma, PROBES), self._empty(torch.float32)
        screen = Screen(best, token, size, probe, bar, dot_error(self.weights.rank), unit)
        sub = max(1, 1024 // self.block)
        prepare_kernel[(num_requests, gamma, triton.cdiv(blocks, sub))](self.batch, screen, SUB=sub, BLOCK=self.block)
        probe_kernel[(num_requests * gamma,)](screen, blocks, COUNT=PROBES, BLOCK=triton.next_power_of_2(blocks))
        return screen

    def advance(self, position: int, *, finish: bool, embed: bool, barred: bool) -> None:
        """Before step `position`: finish the step before, embed its token, set the bar."""
        advance_kernel[(self.batch.num_requests,)](
            self.batch,
            self.weights,
            self.state,
            self.tiles,
            self.screen if barred else None,
            position,
            FINISH=finish,
            EMBED=embed,
            BLOCK_B=triton.next_power_of_2(self.batch.blocks),
            BLOCK_K=triton.next_power_of_2(self.weights.rank),
            PROBES=PROBES,
            STEP_DTYPE=TRITON_TYPES[self.step_dtype],
        )

    def tile(self, position: int) -> None:
        """Bias, noise and selection of step `position`."""
        block_k = triton.next_power_of_2(self.weights.rank)
        # Row groups vary fastest: they run side by side and share the tile of W2 in the cache.
        tile_kernel[(triton.cdiv(self.batch.num_requests, ROWS), self.batch.blocks)](
            self.batch,
            self.weights,
            self.state,
            self.tiles,
            self.screen,
            self.bounds,
            position,
            ROWS=ROWS,
            BLOCK=self.block,
            BLOCK_K=block_k,
            CHUNK_K=max(16, min(64, block_k)),
            STEP_DTYPE=TRITON_TYPES[self.step_dtype],
            num_warps=8,
        )
