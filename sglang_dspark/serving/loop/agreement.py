"""One decision per tensor-parallel group and step: rank 0's, in one broadcast on the CPU group.

Upstream lets every rank pick its own graph tier and skips the broadcast where a rank has no budget, which hangs when
ranks disagree. Here every rank takes part in every decode step, with a message whose size all of them know.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sglang_dspark.policies import Plan
from sglang_dspark.serving.base.steps import REASONS, StepDecision

_HEADER = 9  # step, reason, total, budget, floor, cap, goes back, correction (2); then lengths or caps
_CORRECTION = slice(7, _HEADER)
_NONE = -1


class Agreement:
    """Shares rank 0's decision with its group."""

    def __init__(self, group: Any | None, source: int, rank: int) -> None:
        """group: a torch.distributed CPU group, None for a single rank; source: rank 0's global rank."""
        self._group = group
        self._source = source
        self.decides = group is None or rank == source

    def share(self, step: int, num_requests: int, decision: StepDecision | None) -> StepDecision:
        """The group's decision; only rank 0 passes one in.

        Errors: RuntimeError when the ranks are not at the same step.
        """
        if self._group is None:
            assert decision is not None
            return decision
        import torch

        message = np.full(_HEADER + num_requests, _NONE, dtype=np.int64)
        if self.decides:
            assert decision is not None
            _write(message, step, decision)
        torch.distributed.broadcast(torch.from_numpy(message), src=self._source, group=self._group)
        if int(message[0]) != step:
            raise RuntimeError(
                f"tensor-parallel ranks disagree: rank 0 decides step {message[0]}, this rank is at {step}"
            )
        return decision if self.decides and decision is not None else _read(message)

    def unanimous(self, accepted: bool) -> bool:
        """Whether every rank of the group accepts; all of them must call it."""
        return all(self.gather(accepted))

    def gather(self, value: Any) -> list[Any]:
        """Every rank's `value`, in rank order; all of them must call it."""
        if self._group is None:
            return [value]
        import torch

        values = [None] * torch.distributed.get_world_size(self._group)
        torch.distributed.all_gather_object(values, value, group=self._group)
        return values

    def from_first(self, value: Any) -> Any:
        """Rank 0's `value` on every rank."""
        if self._group is None:
            return value
        import torch

        box = [value]
        torch.distributed.broadcast_object_list(box, src=self._source, group=self._group)
        return box[0]


def _write(message: np.ndarray[Any, np.dtype[np.int64]], step: int, decision: StepDecision) -> None:
    plan = decision.plan or Plan(_NONE, _NONE, _NONE)
    total = _NONE if decision.total is None else decision.total
    fixed = (step, REASONS.index(decision.reason), total, plan.budget, plan.floor, plan.cap, decision.goes_back)
    message[: len(fixed)] = fixed
    if plan.correction is not None:
        message[_CORRECTION] = np.array(plan.correction).view(np.int64)
    rows = plan.caps if decision.lengths is None else decision.lengths
    if rows is not None:
        message[_HEADER:] = rows


def _read(message: np.ndarray[Any, np.dtype[np.int64]]) -> StepDecision:
    _, reason, total, budget, floor, cap, goes_back = (int(value) for value in message[:7])
    why, back = REASONS[reason], bool(goes_back)
    if total == _NONE:
        return StepDecision(why, None, goes_back=back)
    rows = message[_HEADER:].copy()
    if budget == _NONE:
        return StepDecision(why, total, None, rows, goes_back=back)
    slope, shift = message[_CORRECTION].view(np.float64).tolist()
    correction = None if (message[_CORRECTION] == _NONE).all() else (slope, shift)
    caps = None if (rows == _NONE).any() else rows
    return StepDecision(why, total, Plan(budget, floor, cap, caps, None, correction), goes_back=back)
