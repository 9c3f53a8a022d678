"""KV capacity as SGLang 0.5.23 sizes it: what is left of a GPU's memory after weights and its reserve.

Source, below sglang/srt: arg_groups/memory_hook.py:295-345 (reserve), :357 (graphs). The reserve for prefill graphs is
left out: it is below 1 % of the memory.
"""

from __future__ import annotations

from dataclasses import dataclass

from sglang_dspark.cost.estimate.draft import DraftCost
from sglang_dspark.cost.estimate.forward import Forward
from sglang_dspark.cost.graphs import Machine
from sglang_dspark.errors import InputError

_MIB, _GIB = 2**20, 2**30
_CONSTANT, _BY_TOKEN, _BY_RANK, _BY_BATCH = 512, 1.5, 1024 / 8, 2  # MiB
_LARGE_GPU_GIB, _LEAST_RESERVE = 60, 10 * 1024


@dataclass(frozen=True)
class Capacity:
    """kv_tokens: of a server without a draft. draft_share: of them, what the draft takes. weights_gib: on one GPU."""

    kv_tokens: int
    draft_share: float
    weights_gib: float


def kv_capacity(forward: Forward, draft: DraftCost, machine: Machine) -> Capacity:
    """Tokens of KV of one replica. Errors: InputError where the weights leave no room."""
    memory = forward.gpu.memory_gib
    left = memory * _GIB - _reserve_mib(machine, memory) * _MIB - forward.weight_bytes()
    weights = forward.weight_bytes() / _GIB
    with_draft = (left - draft.weight_bytes) / (forward.kv_bytes_per_token() + draft.kv_bytes_per_token)
    if with_draft < 1024:
        raise InputError(
            f"the model does not fit: {weights:.0f} GiB of weights on each of {machine.tp} x {forward.gpu.name} with "
            f"{memory:.0f} GiB, of which SGLang keeps {_reserve_mib(machine, memory) / 1024:.0f} free: expected more "
            "GPUs (tp) or a smaller precision (gemm)"
        )
    without = left / forward.kv_bytes_per_token()
    return Capacity(int(without), 1 - with_draft / without, weights)


def _reserve_mib(machine: Machine, memory_gib: float) -> float:
    reserve = _CONSTANT + _BY_TOKEN * max(machine.prefill_chunk(), 2048)
    reserve += _BY_RANK * machine.tp + _BY_BATCH * machine.graph_limit()
    return max(reserve, _LEAST_RESERVE) if memory_gib > _LARGE_GPU_GIB else reserve
