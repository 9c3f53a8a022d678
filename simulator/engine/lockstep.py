"""DP attention: data-parallel ranks of one model step together and share the graph tier.

The mixture-of-experts layers span all ranks, so a decode step runs the largest rank's tier on every rank, and while any
rank prefills no rank decodes (SGLang's `--enable-dp-attention`). Memory, queue and policy stay each rank's own. As in
the live engine every rank asks for tokens by itself, and a policy that fills its tier fills the one that runs
(`policies.shared_tier`).
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from typing import Any

import simpy

from sglang_dspark.policies.shared_tier import gathered, group_seconds
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
                steps = self._together(decoding)
                yield self.env.timeout(steps[0].seconds)
                for rank, step in zip(decoding, steps, strict=True):
                    rank.end_decode(step)
            else:
                wake = self.env.event()
                for rank in self.ranks:
                    rank.sleep(wake)
                yield wake

    def _together(self, ranks: list[Engine]) -> list[Step]:
        """All ranks take the time of the largest draft batch and of the dearest verify of the shared tier, however
        many of its tokens are their own; more requests than graphs on one rank, and all of them run eager."""
        model = self.ranks[0].model
        drafted = [rank.decide() for rank in ranks]
        sizes = [rank.batch.size for rank in ranks]
        rows = zip((d.decision.total + size for d, size in zip(drafted, sizes, strict=True)), sizes, strict=True)
        asked = gathered([(tokens, size, d.context) for (tokens, size), d in zip(rows, drafted, strict=True)])
        eager = any(one.eager for one in drafted)
        tier = asked.tier(None if eager else model.cost.captured)
        steps = []
        for rank, one in zip(ranks, drafted, strict=True):
            rank.decoder.fill(one, tier)
            steps.append(rank.execute(one))
        draft, verify = group_seconds(model.cost, asked, tier, eager=eager)
        verify += max(rank.decoder.width_s(rank.batch, step.decision) for rank, step in zip(ranks, steps, strict=True))
        draft = draft if model.policy.drafts else 0.0
        seconds = model.decode_seconds(draft, verify, live=model.policy.live and not eager)
        return [replace(step, draft_s=draft, verify_s=verify, seconds=seconds) for step in steps]
