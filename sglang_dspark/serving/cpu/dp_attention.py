"""What SGLang 0.5.23's DP attention takes for granted of a device, for the CPU platform: ranks then share an MLP.

Every shim is reached on SGLang's DP-attention path alone: a server without it never runs them.
"""

from __future__ import annotations

from typing import Any


def install() -> None:
    """Point the gather and the padding between ranks at their host forms; idempotent."""
    from sglang.srt.distributed import parallel_state
    from sglang.srt.layers import dp_attention
    from sglang.srt.model_executor import forward_batch_info

    # Read in `prepare_mlp_sync_batch` and its padding only: no pinned memory, and the CPU's fill value.
    forward_batch_info._is_cpu = True
    dp_attention.memcpy_func = dp_attention.memcpy_cpu  # instead of a Triton copy
    # Custom operators that are registered for accelerators only; the group's own methods serve gloo.
    parallel_state.reg_all_gather_into_tensor = _all_gather
    parallel_state.reg_reduce_scatter_tensor = _reduce_scatter


def follow() -> bool:
    """Let the ranks gather as many rows of a ragged verify as the group's tier has, not a full block of the largest
    batch: eager SGLang pads to that, and what policies save would never be seen. Every rank's layout must then be
    padded to the same tier. Always true."""
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch
    from sglang.srt.speculative import spec_info

    scale, prepare = spec_info.spec_scale_global_num_tokens, ForwardBatch.prepare_mlp_sync_batch
    if getattr(scale, "_dspark_tiers", False):
        return True

    def scaled(verify: Any, tokens: list[int], for_logprob: list[int]) -> tuple[list[int], list[int]]:
        tier = _tier_of(verify, tokens)
        if tier is None:
            return scale(verify, tokens, for_logprob)
        return [tier] * len(tokens), [tier] * len(for_logprob)

    def prepared(batch: Any, model_runner: Any) -> None:
        verify, requests = batch.spec_info, batch.original_global_num_tokens_cpu
        tier = _tier_of(verify, requests)
        if tier is None:
            prepare(batch, model_runner)
            return
        # SGLang divides the rows by it to know how many requests it pads to: as many as the largest rank has.
        verify.num_tokens_per_req = _Into(max(requests))
        prepare(batch, model_runner)
        verify.num_tokens_per_req = tier  # and multiplies by it to cut the result: every row is wanted

    scaled._dspark_tiers = True  # type: ignore[attr-defined]
    spec_info.spec_scale_global_num_tokens = scaled
    ForwardBatch.prepare_mlp_sync_batch = prepared
    return True


class _Into(int):
    """Divides any number of rows into so many requests: rows // _Into(n) is n."""

    def __rfloordiv__(self, rows: int) -> int:
        return int(self)


def _tier_of(verify: Any, by_rank: list[int]) -> int | None:
    """Rows of a ragged verify that ranks share, None for any other forward."""
    layout = getattr(verify, "ragged_verify_layout", None)
    return None if layout is None or len(by_rank) < 2 else int(layout.graph_num_tokens)


def idle_layout(num_requests: int, tier: int, device: Any) -> Any:
    """The verify layout of a rank without requests: the largest rank's requests, one token each, padded to `tier`."""
    from sglang.srt.speculative.ragged_verify import RaggedVerifyLayout

    lengths = [1] * num_requests
    return RaggedVerifyLayout.from_verify_lens(verify_lens_cpu=lengths, device=device, grid=[tier])


def _all_gather(output: Any, input: Any, group_name: str) -> None:
    _group(group_name)._all_gather_into_tensor(output, input)


def _reduce_scatter(output: Any, input: Any, group_name: str) -> None:
    _group(group_name)._reduce_scatter_tensor(output, input)


def _group(name: str) -> Any:
    from sglang.srt.distributed import parallel_state

    group = parallel_state._groups[name]()
    if group is None:
        raise ValueError(f"group {name} is destroyed")
    return group
