"""SGLang's FlashInfer attention backend with ragged verification, eager and in CUDA graphs.

Overridden: the constructor, `init_cuda_graph_state`, `init_forward_metadata`, `init_forward_metadata_out_graph`.
Uniform batches take upstream's path untouched. The class keeps upstream's name: SGLang chooses the verify mask policy
by it (`dflash_utils.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from sglang.srt.layers.attention import flashinfer_backend as upstream
from sglang.srt.mem_cache.kv_loc_plan import IdSpaceKind

from sglang_dspark.serving.base.contract import moved
from sglang_dspark.serving.base.refusal import leave
from sglang_dspark.serving.gpu.flashinfer_ragged.contract import CALLS
from sglang_dspark.serving.gpu.flashinfer_ragged.plan import GHOST_SLOT, RaggedPlan, plan_ragged_verify

_STAGES = 2


@dataclass
class _Stage:
    """A pinned buffer that FlashInfer's planner fills, and the event after which it may be filled again."""

    buffer: torch.Tensor
    copied: Any = None


class FlashInferAttnBackend(upstream.FlashInferAttnBackend):
    """One FlashInfer wrapper per graph tier, replanned on the host before each replay from the live verify
    lengths."""

    def __init__(self, model_runner: Any, *arguments: Any, **named: Any) -> None:
        changes = moved(CALLS)
        if changes:
            raise RuntimeError(f"sglang-dspark: this SGLang is not the one that was overridden: {'; '.join(changes)}")
        super().__init__(model_runner, *arguments, **named)
        # Upstream skips this check for subclasses.
        for phase, name, access in (
            ("prefill", model_runner.prefill_attention_backend_str, self.prefill_kv_access),
            ("decode", model_runner.decode_attention_backend_str, self.decode_kv_access),
        ):
            if name == "flashinfer":
                self._check_kv_attention_access(phase, access)
        self._tiers: dict[int, Any] = {}
        self._stages: list[_Stage] = []
        self._stage_index = 0

    @property
    def supports_ragged_verify_graph(self) -> bool:
        """SGLang's graph runner asks; see `why_not_ragged`."""
        return self.why_not_ragged() is None

    def why_not_ragged(self) -> str | None:
        """Why ragged verification cannot run in graphs here, or None."""
        if self.dispatch_reason is not None:
            return "the model has sliding-window or cross attention (two wrappers)"
        if self.prefill_backend != "fa2":
            return f"FlashInfer's {self.prefill_backend} kernel has no plan without host copies"
        if self.prefill_uses_dequant_workspace:
            return "the KV cache is dequantised into a workspace"
        return None

    def init_cuda_graph_state(
        self, max_bs: int, max_num_tokens: int, kv_indices_buf: torch.Tensor | None = None
    ) -> None:
        """Also allocate what the ragged tiers share: at most one of them is in flight."""
        super().init_cuda_graph_state(max_bs, max_num_tokens, kv_indices_buf)
        device = self.kv_last_page_len.device
        rows = max_bs + 1
        self._ragged_qo_indptr, self._ragged_kv_indptr = (
            torch.zeros(rows + 1, dtype=torch.int32, device=device) for _ in range(2)
        )
        self._ragged_page_len = torch.ones(rows, dtype=torch.int32, device=device)

    # --- eager -----------------------------------------------------------------------------------------------------

    def init_forward_metadata(self, forward_batch: Any) -> None:
        """Eager ragged verify is planned as in a graph; upstream cannot when the lengths are on the device only."""
        layout = _ragged_layout(forward_batch)
        if layout is None or self.why_not_ragged() is not None:
            super().init_forward_metadata(forward_batch)
            return
        num_requests = int(forward_batch.batch_size)
        plan = plan_ragged_verify(
            *_host_lengths(forward_batch, layout, num_requests),
            graph_num_tokens=layout.graph_num_tokens,
            slots=num_requests,
        )
        device = forward_batch.req_pool_indices.device
        kv_indices = torch.empty(plan.kv_entries, dtype=torch.int32, device=device)
        on_device = self._to_device(plan, device)
        self._pack(forward_batch, plan, on_device, kv_indices)
        wrapper = self.prefill_wrappers_verify[0]
        page_len = torch.ones(num_requests + 1, dtype=torch.int32, device=device)
        wrapper.begin_forward(*on_device[:2], kv_indices, page_len, *self._shape(), **self._dtypes())
        self.forward_metadata = upstream.PrefillMetadata([wrapper], False, False)

    # --- CUDA graphs -----------------------------------------------------------------------------------------------

    def init_forward_metadata_out_graph(self, forward_batch: Any, in_capture: bool = False) -> None:
        """Capture: one wrapper for the tier, planned in full. Replay: replanned from host lengths, without a host
        copy."""
        layout = _ragged_layout(forward_batch)
        if layout is None:
            super().init_forward_metadata_out_graph(forward_batch, in_capture)
            return
        reason = self.why_not_ragged()
        if reason is not None:
            raise leave(
                f"compact verify in CUDA graphs on FlashInfer: {reason}; set SGLANG_RAGGED_VERIFY_MODE=cap-accept"
            )
        tier, slots = int(layout.graph_num_tokens), int(forward_batch.batch_size)
        num_requests = slots if in_capture else slots - int(forward_batch.num_padding)
        lengths = _capture_lengths(layout, slots) if in_capture else _host_lengths(forward_batch, layout, num_requests)
        plan = plan_ragged_verify(*lengths, graph_num_tokens=tier, slots=slots)
        if plan.kv_entries > self.cuda_graph_kv_indices[0].numel():
            raise ValueError(
                f"{plan.kv_entries} K/V entries exceed the {self.cuda_graph_kv_indices[0].numel()} of the graph buffer"
            )
        if in_capture:
            self._tiers[tier] = self._create_ragged_wrapper(slots)
        wrapper = self._tiers[tier]
        on_device = self._to_device(plan, self._ragged_qo_indptr.device)
        self._pack(forward_batch, plan, on_device, self.cuda_graph_kv_indices[0])
        # The indices lie in the wrapper's own buffer already: an empty slice tells the planner to copy none.
        inputs = (*on_device[:2], self.cuda_graph_kv_indices[0][:0], self._ragged_page_len[: slots + 1], *self._shape())
        with self._staged(wrapper):
            if in_capture:
                wrapper.begin_forward(*inputs, **self._dtypes())
                wrapper.begin_forward = partial(upstream.fast_prefill_plan, wrapper)
            else:
                wrapper.begin_forward(*inputs, **self._dtypes(), **_host_arguments(plan))
        self.forward_metadata = upstream.PrefillMetadata([wrapper], False, False)

    def _create_ragged_wrapper(self, slots: int) -> Any:
        return upstream.BatchPrefillWithPagedKVCacheWrapper(
            self.workspace_buffer,
            "NHD",
            use_cuda_graph=True,
            backend=self.prefill_backend,
            qo_indptr_buf=self._ragged_qo_indptr[: slots + 2],
            paged_kv_indptr_buf=self._ragged_kv_indptr[: slots + 2],
            paged_kv_indices_buf=self.cuda_graph_kv_indices[0],
            paged_kv_last_page_len_buf=self._ragged_page_len[: slots + 1],
        )

    def _shape(self) -> tuple[int, int, int, int]:
        updater = self.indices_updater_prefill
        return updater.num_qo_heads, updater.num_kv_heads, updater.head_dim, 1

    def _dtypes(self) -> dict[str, Any]:
        updater = self.indices_updater_prefill
        return {"q_data_type": updater.q_data_type, "kv_data_type": updater.data_type, "non_blocking": True}

    def _to_device(self, plan: RaggedPlan, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """qo_indptr, kv_indptr and kv_lens on the device, without waiting for it."""
        pinned = device.type == "cuda"
        arrays = (plan.qo_indptr, plan.kv_indptr, plan.kv_lens)
        sent = torch.tensor([number for array in arrays for number in array], dtype=torch.int32, pin_memory=pinned)
        sent = sent.to(device, non_blocking=True)
        first, second = len(plan.qo_indptr), len(plan.qo_indptr) + len(plan.kv_indptr)
        return sent[:first], sent[first:second], sent[second:]

    def _pack(
        self, forward_batch: Any, plan: RaggedPlan, on_device: tuple[torch.Tensor, ...], out: torch.Tensor
    ) -> None:
        """Write the K/V slot of every entry of the plan to `out`: the requests' own, then the ghost's."""
        _, kv_indptr, kv_lens = on_device
        count = plan.num_requests
        self.kv_index_translator.pack_read_stream(
            forward_batch.kv_loc_plan,
            req_pool_indices=forward_batch.req_pool_indices[:count],
            seq_lens=kv_lens[:count],
            indptr=kv_indptr[: count + 1],
            out=out,
            kind=IdSpaceKind.FULL,
            num_token_blocks=None,
            kv_lens_sum=plan.request_kv_entries,
        )
        out[plan.request_kv_entries : plan.kv_entries].fill_(GHOST_SLOT)

    def _staged(self, wrapper: Any) -> Any:
        """Give the planner a pinned buffer whose previous copy to the device is over."""
        return _Staging(self, wrapper)


class _Staging:
    """FlashInfer's planner copies from a pinned buffer asynchronously. The host may run a step ahead of the device,
    so that one buffer could be overwritten before its copy ran: a few buffers take turns, each guarded by an
    event."""

    def __init__(self, backend: FlashInferAttnBackend, wrapper: Any) -> None:
        self.backend, self.wrapper = backend, wrapper

    def __enter__(self) -> None:
        backend = self.backend
        buffer = self.wrapper._pin_memory_int_workspace_buffer
        if len(backend._stages) < _STAGES:
            backend._stages.append(_Stage(torch.empty_like(buffer, pin_memory=buffer.is_pinned())))
        backend._stage_index = (backend._stage_index + 1) % len(backend._stages)
        self.stage = backend._stages[backend._stage_index]
        if self.stage.copied is not None:
            self.stage.copied.synchronize()
        self.wrapper._pin_memory_int_workspace_buffer = self.stage.buffer

    def __exit__(self, *exception: object) -> None:
        if self.backend._ragged_qo_indptr.is_cuda:
            self.stage.copied = self.stage.copied or torch.cuda.Event()
            self.stage.copied.record()


def _ragged_layout(forward_batch: Any) -> Any | None:
    spec_info = forward_batch.spec_info
    if spec_info is None or not forward_batch.forward_mode.is_target_verify():
        return None
    return getattr(spec_info, "ragged_verify_layout", None)


def _capture_lengths(layout: Any, slots: int) -> tuple[list[int], list[int]]:
    # The runner fills captured sequence lengths with 1.
    if layout.verify_lens_cpu is None or len(layout.verify_lens_cpu) != slots:
        raise ValueError("a tier is captured with host-known verify lengths, one for each slot")
    return list(layout.verify_lens_cpu), [1] * slots


def _host_lengths(forward_batch: Any, layout: Any, num_requests: int) -> tuple[list[int], list[int]]:
    """Verify and prefix lengths of the real requests, from host mirrors where they exist.

    SGLang's verify executor adds the verify lengths to the batch's host lengths before planning, and keeps the
    committed ones in `live_seq_lens_cpu`: their difference is what it has just read back, so that nothing is copied
    twice.
    """
    live = forward_batch.spec_info.live_seq_lens_cpu
    extended = forward_batch.seq_lens_cpu
    if live is None or extended is None:
        raise ValueError("FlashInfer's plan needs the batch's lengths on the host, and this batch has none")
    prefix = [int(length) for length in live[:num_requests].tolist()]
    if layout.verify_lens_cpu is not None:
        return list(layout.verify_lens_cpu[:num_requests]), prefix
    total = [int(length) for length in extended[:num_requests].tolist()]
    return [end - start for end, start in zip(total, prefix, strict=True)], prefix


def _host_arguments(plan: RaggedPlan) -> dict[str, Any]:
    """What `fast_prefill_plan` takes instead of reading the device."""
    return {
        "qo_indptr_host": torch.tensor(plan.qo_indptr, dtype=torch.int32),
        "kv_indptr_host": torch.tensor(plan.kv_indptr, dtype=torch.int32),
        "kv_lens_host": torch.tensor(plan.kv_lens, dtype=torch.int32),
        "max_q_len": plan.max_q_len,
        "max_kv_len": plan.max_kv_len,
    }
