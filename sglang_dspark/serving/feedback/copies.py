"""Brings what a step published to the host: one packed copy, never a synchronisation of its own."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from sglang_dspark.policies import LiveBlock
from sglang_dspark.serving.base.steps import StepRecord
from sglang_dspark.serving.feedback.clock import StepClock
from sglang_dspark.serving.feedback.publishes import Published

DRAFT, VERIFY = "draft", "verify"
_INTEGERS = 4  # lengths, accepted, trimmed, prefix lengths


class StepCopy:
    """A `publishes.Copy`: confidences [R, gamma] and four integers a row of one step, packed into one tensor."""

    def __init__(
        self,
        record: StepRecord,
        clock: StepClock,
        confidence: torch.Tensor,
        lengths: torch.Tensor | None,
        accepted: torch.Tensor,
        trimmed: torch.Tensor,
        prefix_lengths: torch.Tensor,
        *,
        caps_only: bool,
    ) -> None:
        """lengths: [R] verified draft tokens, None when everything was. trimmed: [R] accepted beyond the cap.

        caps_only: the whole block was verified and only acceptance was capped, so the uncapped depth is known.
        """
        self._record, self._clock, self._caps_only = record, clock, caps_only
        gamma = confidence.shape[1]
        if lengths is None:
            lengths = torch.full_like(accepted, gamma)
        integers = torch.stack([lengths, accepted, trimmed, prefix_lengths], dim=1).to(torch.int32)
        packed = torch.cat([confidence.to(torch.float32), integers.view(torch.float32)], dim=1)
        self._event: Any = None
        if packed.device.type == "cuda":
            self._host = torch.empty(packed.shape, dtype=torch.float32, pin_memory=True)
            self._host.copy_(packed, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()
        else:
            self._host = packed

    def ready(self) -> bool:
        """Whether the copy has arrived."""
        return self._event is None or bool(self._event.query())

    def fetch(self) -> Published:
        """The values; fills the step's record as well."""
        if self._event is not None:
            self._event.synchronize()
        record, host = self._record, self._host.numpy()
        block = LiveBlock.of(host[:, :-_INTEGERS].copy())
        confidence, record.invalid = block.confidence, block.invalid
        assert confidence is not None
        integers = host[:, -_INTEGERS:].copy().view(np.int32).astype(np.int64)
        lengths, accepted, trimmed, record.prefix_lengths = (integers[:, i] for i in range(_INTEGERS))
        known = (lengths == confidence.shape[1]) | (accepted < lengths) | self._caps_only
        uncapped = np.where(known, accepted + (trimmed if self._caps_only else 0), -1)
        record.draft_s, record.verify_s = self._clock.seconds(DRAFT), self._clock.seconds(VERIFY)
        record.confidence, record.lengths, record.accepted, record.uncapped = confidence, lengths, accepted, uncapped
        batch = record.batch
        return Published(batch.slots, batch.generation, confidence, lengths, accepted, uncapped)
