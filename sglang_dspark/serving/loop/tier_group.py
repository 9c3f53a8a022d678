"""The ranks of a DP-attention group: what each asks to verify, gathered once per decode step on the CPU group.

Ranks run in lock step (SGLang gives a rank without requests an idle batch), so all of them come here in every decode
step, the idle ones too, and count the same steps. `policies.shared_tier` says why the result may be filled up to.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from sglang_dspark.policies.shared_tier import Asked, gathered

_ROW = 5  # step, tokens, requests, context, goes back


class GroupStep(NamedTuple):
    """What the group does in a step. goes_back: a trial has failed, and every rank returns to the policy before it."""

    asked: Asked
    goes_back: bool


class TierGroup:
    """The group as one rank sees it."""

    def __init__(self, group: Any, rank: int, ranks: int, *, speaks: bool) -> None:
        """group: the torch.distributed CPU group of all attention ranks. rank, ranks: of data parallelism. speaks:
        whether this process decides for its rank; others of its tensor-parallel group only listen."""
        self._group, self.rank, self.ranks, self._speaks = group, rank, ranks, speaks

    @property
    def leads(self) -> bool:
        """Whether this rank judges trials for the group."""
        return self.rank == 0

    def share(self, step: int, tokens: int, requests: int, context: int, *, goes_back: bool = False) -> GroupStep:
        """Gather what the ranks ask for; tokens 0: idle. A collective.

        Errors: RuntimeError when the ranks are not at the same step.
        """
        import torch

        own = np.array([step, tokens, requests, context, goes_back and self.leads], dtype=np.int64)
        if not self._speaks:
            own[1:] = 0
        size = torch.distributed.get_world_size(self._group)
        rows = torch.empty(size * _ROW, dtype=torch.int64)
        torch.distributed.all_gather_into_tensor(rows, torch.from_numpy(own), group=self._group)
        table = rows.numpy().reshape(self.ranks, -1, _ROW)  # ranks of one tensor-parallel group are neighbours
        if not bool((table[..., 0] == step).all()):
            raise RuntimeError(f"DP-attention ranks disagree: this one is at step {step}, they at {table[..., 0]}")
        by_rank = table.max(axis=1)
        return GroupStep(gathered(by_rank[:, 1:4].tolist()), bool(by_rank[:, 4].any()))
