"""What the ragged FlashInfer backend overrides or calls in SGLang 0.5.23 and FlashInfer; checked at start and by a
test."""

from __future__ import annotations

_BACKEND = "sglang.srt.layers.attention.flashinfer_backend"

CALLS = {
    f"{_BACKEND}.FlashInferAttnBackend.__init__": (
        "self, model_runner, skip_prefill, kv_indptr_buf, kv_last_page_len_buf, init_new_workspace"
    ),
    f"{_BACKEND}.FlashInferAttnBackend.init_cuda_graph_state": "self, max_bs, max_num_tokens, kv_indices_buf",
    f"{_BACKEND}.FlashInferAttnBackend.init_forward_metadata": "self, forward_batch",
    f"{_BACKEND}.FlashInferAttnBackend.init_forward_metadata_out_graph": "self, forward_batch, in_capture",
    f"{_BACKEND}.FlashInferAttnBackend._check_kv_attention_access": "self, phase, access",
    f"{_BACKEND}.fast_prefill_plan": (
        "self, qo_indptr, paged_kv_indptr, paged_kv_indices, paged_kv_last_page_len, num_qo_heads, num_kv_heads, "
        "head_dim_qk, page_size, head_dim_vo, custom_mask, causal, window_left, q_data_type, kv_data_type, "
        "o_data_type, non_blocking, fixed_split_size, prefix_len_ptr, token_pos_in_items_ptr, "
        "token_pos_in_items_len, max_item_len_ptr, *qo_indptr_host, *kv_indptr_host, *kv_lens_host, *max_q_len, "
        "*max_kv_len, *uniform_verify_width"
    ),
    "sglang.srt.mem_cache.kv_index_translator.KVIndexTranslator.pack_read_stream": (
        "self, plan, *req_pool_indices, *seq_lens, *indptr, *out, *kv_start_idx, *kind, *token_mapping, "
        "*num_token_blocks, *kv_lens_sum"
    ),
}
"""Signatures, as `sglang_dspark.serving.base.contract.moved` reads them."""

ATTRIBUTES = (
    "cuda_graph_kv_indices",
    "decode_kv_access",
    "dispatch_reason",
    "indices_updater_prefill",
    "kv_index_translator",
    "kv_last_page_len",
    "prefill_backend",
    "prefill_kv_access",
    "prefill_uses_dequant_workspace",
    "prefill_wrappers_verify",
    "workspace_buffer",
)
"""Attributes of upstream's backend that ours reads."""

WRAPPER_ATTRIBUTES = ("_pin_memory_int_workspace_buffer", "_max_total_num_rows", "_cached_module")
"""Attributes of FlashInfer's wrapper that planning relies on."""
