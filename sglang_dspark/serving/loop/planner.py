"""SGLang's verify planner with its host budget and its top-K replaced by a `PolicyEngine`."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import torch
from sglang.srt.runtime_context import get_parallel
from sglang.srt.speculative.dspark_components import dspark_planner
from sglang.srt.speculative.dspark_components.dspark_planner import (
    DSparkVerifyPlanner,
    VerifyBudgetDecision,
    local_verify_tier_num_tokens,
)
from sglang.srt.speculative.spec_tp_sync import SpecTpSyncSite
from sglang.srt.utils.common import require_mlp_tp_gather

from sglang_dspark.serving.base.steps import StepDecision
from sglang_dspark.serving.loop.engine import PolicyEngine


class PolicyPlanner(DSparkVerifyPlanner):
    """Same tiers, layouts and tensor-parallel group as upstream's; the decision is the engine's.

    Overridden: `prepare_verify_budget`, `resolve_verify_token_budget`, `_schedule_verify_lens`, `schedule_layout`,
    `take_budget_decision`, `set_forced_budget_frac`, `note_non_decode_step`, and the flag `_is_verify_all`, which would
    otherwise bypass the schedule when SGLang's own table is absent.
    """

    engine: PolicyEngine
    pads_eager_batches = False
    """Whether ranks of a DP-attention group pad a verify outside of graphs to their tier (the CPU platform)."""

    def __init__(self, **arguments: Any) -> None:
        with _without_table_warning():
            super().__init__(**arguments)
        self._is_verify_all = False
        self._taken: VerifyBudgetDecision | None = None

    @property
    def gathers_tier(self) -> bool:
        """Whether graphs of a DP-attention group may follow the tier that its ranks ask for: SGLang's own conditions,
        the overlap loop apart, since what is decided later is gathered later here."""
        parallel = get_parallel()
        plain = parallel.attn_tp_size == 1 and parallel.attn_cp_size == 1 and parallel.pp_size == 1
        return self.is_compact_mode and parallel.attn_dp_enabled and plain and require_mlp_tp_gather()

    def attach(self, engine: PolicyEngine) -> None:
        """Decide with `engine` from now on."""
        self.engine = engine

    def prepare_verify_budget(self, batch: Any, future_map: Any) -> None:
        """Before the forward of the overlap loop: the decision, when it does not need this step's draft."""
        draft_input = batch.spec_info
        if batch.forward_mode.is_extend() or batch.is_extend_in_batch:
            return  # no rank decodes while one prefills
        if batch.forward_mode.is_idle():
            self.engine.idle(before_forward=True)
            return
        if draft_input is None:
            return
        decision = self.engine.before_forward(batch)
        if decision is None:
            return
        draft_input.verify_token_budget = decision.total
        batch.spec_verify_tier_num_tokens = self._tier_tokens(batch.batch_size(), decision.total)

    def _tier_tokens(self, num_requests: int, total: int | None) -> int:
        return local_verify_tier_num_tokens(
            bs=num_requests,
            verify_token_budget=total,
            verify_num_draft_tokens=self.verify_num_draft_tokens,
            min_verify_len=self._schedule_cfg.min_verify_len,
        )

    def resolve_verify_token_budget(
        self,
        *,
        draft_input: Any,
        confidence: torch.Tensor | None,
        prefix_lens: torch.Tensor,
        req_pool_indices: torch.Tensor,
    ) -> int | None:
        """K of this step, decided now unless `prepare_verify_budget` has done so."""
        if confidence is None:
            return None
        decision = self.engine.decide(confidence)
        draft_input.verify_token_budget = decision.total
        self._taken = _as_upstream(decision)
        return decision.total

    def _schedule_verify_lens(
        self,
        *,
        req_pool_indices: torch.Tensor,
        prefix_lens: torch.Tensor,
        device: torch.device,
        confidence: torch.Tensor | None,
        budget: int | None,
    ) -> torch.Tensor | None:
        """Verify lengths with the anchor, [R] int32 on the device; None verifies everything."""
        if confidence is None or budget is None:
            return None
        lengths = self.engine.lengths(confidence)
        if lengths is None:
            return None
        verify_lens = (lengths + 1).to(device=device, dtype=torch.int32)
        # Every rank is here: the decision that there are lengths at all was broadcast.
        return self._tp_sync.sync(SpecTpSyncSite.DSPARK_PLAN, verify_lens)

    def schedule_layout(self, *, req_pool_indices: torch.Tensor, **arguments: Any) -> Any:
        """Upstream's layout; lengths that the host knows are added, which spares backends a copy from the device."""
        layout = super().schedule_layout(req_pool_indices=req_pool_indices, **arguments)
        if layout is not None and self.pads_eager_batches and self.engine.asked is not None:
            layout = msgspec.structs.replace(layout, graph_num_tokens=self.engine.asked.tier())
        host = self.engine.host_lengths(int(req_pool_indices.shape[0]))
        if layout is None or host is None or layout.verify_lens_cpu is not None:
            return layout
        verify_lens = [length + 1 for length in host]
        return msgspec.structs.replace(layout, verify_lens_cpu=verify_lens, total_verify_tokens=sum(verify_lens))

    def take_budget_decision(self) -> VerifyBudgetDecision | None:
        taken, self._taken = self._taken, None
        return taken

    def set_forced_budget_frac(self, frac: float | None) -> None:
        """SGLang's runtime override: verify this share of all draft tokens, whatever the policy says."""
        self.engine.decider.forced_fraction = frac

    def note_non_decode_step(self) -> None:
        self._taken = None


def _as_upstream(decision: StepDecision) -> VerifyBudgetDecision | None:
    if decision.total is None:
        return None
    return VerifyBudgetDecision(budget=decision.total, predicted_step_seconds=decision.predicted_s)


@contextmanager
def _without_table_warning() -> Iterator[None]:
    """Upstream warns that without its table the budget means verify-all; here a policy decides instead."""

    def keep(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("DSpark SPS table is uninitialized")

    dspark_planner.logger.addFilter(keep)
    try:
        yield
    finally:
        dspark_planner.logger.removeFilter(keep)
