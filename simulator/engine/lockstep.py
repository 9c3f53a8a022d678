"""DP attention: data-parallel ranks of one model step together and share the graph tier.

The mixture-of-experts layers span all ranks, so a decode step runs the largest rank's tier on every rank, and while any
rank prefills no rank decodes (SGLang's `--enable-dp-attention`). Memory, queue and policy stay each rank's own.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from typing import Any

import simpy

from simulator.engine.decoding import Step
from simulator.engine.replica import Engine


class LockStep:
    """Runs engines as the ranks of one DP-attention group; use `run` instead of theirs."""

    def __init__(self, env: simpy.Environment, ranks: list[Engine]) -> None:
        self.env, self.ranks = env, ranks

    def run(self) -> Generator[simpy.Event, Any, None]:
        """The common loop: prefill wherever a rank has something to prefill, else decode on all ranks."""
        while True:
            chunks = [(rank, rank.prefill_next()) for rank in self.ranks]
            entering = [(rank, chunk) for rank, chunk in chunks if chunk is not None]
            decoding = [rank for rank in self.ranks if rank.batch.size]
            if entering:
                model = self.ranks[0].model
                seconds = max(model.prefill_seconds(chunk.new_tokens, chunk.context_tokens) for _, chunk in entering)
                yield self.env.timeout(seconds)
                for rank, chunk in entering:
                    rank.end_prefill(chunk, seconds)
            elif decoding:
                steps = self._together([rank.begin_decode() for rank in decoding])
                yield self.env.timeout(steps[0].seconds)
                for rank, step in zip(decoding, steps, strict=True):
                    rank.end_decode(step)
            else:
                wake = self.env.event()
                for rank in self.ranks:
                    rank.sleep(wake)
                yield wake

    def _together(self, steps: list[Step]) -> list[Step]:
        """All ranks take the time of the largest draft batch and of the dearest verify: tier, context or width."""
        model = self.ranks[0].model
        draft = max(step.draft_s for step in steps)
        verify = max(step.verify_s for step in steps)
        seconds = model.decode_seconds(draft, verify, live=model.policy.live)
        return [replace(step, draft_s=draft, verify_s=verify, seconds=seconds) for step in steps]
