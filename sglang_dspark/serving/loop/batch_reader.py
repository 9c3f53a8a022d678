"""SGLang's batch as a decision and a record see it; its objects are touched by attribute only."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from sglang_dspark.serving.base.request_caps import caps_of
from sglang_dspark.serving.base.steps import BatchView, SamplingView


class BatchReader:
    """Reads the decode batch of one scheduler process. waiting: a function that tells how many requests wait."""

    def __init__(self, generations: torch.Tensor, gamma: int) -> None:
        """generations: SGLang's `req_generation` [slots] on the host. gamma: draft block size."""
        self.waiting = lambda: 0
        self._generations = generations
        self._gamma = gamma
        self._sampling: tuple[list[str], SamplingView] | None = None

    def view(self, batch: Any) -> BatchView:
        """Slots and their owners, context and queue."""
        slots = batch.req_pool_indices_cpu
        if slots is None:
            slots = batch.req_pool_indices.to("cpu")
        slots = slots.to(torch.int64)
        context = batch.seq_lens_sum
        if context is None:
            context = sum(len(req.origin_input_ids) + len(req.output_ids) for req in batch.reqs)
        generation, caps = self._generations[slots].numpy(), caps_of(batch.reqs, self._gamma)
        return BatchView(slots.numpy().copy(), generation, int(context), self.waiting(), caps)

    def sampling(self, reqs: list[Any], rids: list[str]) -> SamplingView:
        """Sampling parameters by row; they change only with the batch."""
        if self._sampling is None or self._sampling[0] != rids:
            rows = [req.sampling_params for req in reqs]
            view = SamplingView(
                np.array([row.temperature for row in rows], np.float32),
                np.array([row.top_p for row in rows], np.float32),
                np.array([row.top_k for row in rows], np.int64),
            )
            self._sampling = (rids, view)
        return self._sampling[1]
