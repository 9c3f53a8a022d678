"""Reference attention for the CPU platform: prefill, decode, uniform and ragged verify in one batched SDPA call."""

from dataclasses import dataclass
from typing import Any

import torch
from sglang.srt.layers.attention.torch_native_backend import TorchNativeAttnBackend
from sglang.srt.layers.radix_attention import AttentionType, RadixAttention
from sglang.srt.mem_cache.memory_pool import KVWriteLoc
from sglang.srt.model_executor.forward_batch_info import ForwardBatch

# Requests are attended in groups of at most this many padded K/V rows, which bounds the gathered copy.
MAX_GATHERED_ROWS = 1 << 16


@dataclass(frozen=True)
class _Group:
    """Consecutive requests attended together, padded to the longest of them."""

    query_rows: torch.Tensor  # [G, Q] int64 rows of the packed queries; padding points at row 0
    query_valid: torch.Tensor  # [G, Q] bool
    cache_rows: torch.Tensor  # [G, S] int64 rows of the KV pool; padding points at slot 0
    query_positions: torch.Tensor  # [G, Q] int64 absolute position of each query
    key_lengths: torch.Tensor  # [G] int64
    uniform: bool  # every request has exactly Q queries


class ReferenceAttention(TorchNativeAttnBackend):
    """`torch_native` with TARGET_VERIFY, ragged verify and a non-causal draft block, batched over requests.

    The layout of a forward is resolved once and reused by all of its layers.
    """

    def __init__(self, model_runner: Any) -> None:
        super().__init__(model_runner)
        self._planned_for: ForwardBatch | None = None
        self._groups: list[_Group] = []

    def get_cpu_graph_seq_len_fill_value(self) -> int:
        """Length of a request that only pads a batch under DP attention."""
        return 1

    def init_forward_metadata(self, forward_batch: ForwardBatch) -> None:
        super().init_forward_metadata(forward_batch)
        self._planned_for = None

    def forward_extend(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        layer: RadixAttention,
        forward_batch: ForwardBatch,
        save_kv_cache: bool = True,
    ) -> torch.Tensor:
        """Attend packed queries [tokens, heads * head_dim]; K and V of the same tokens are stored first."""
        if layer.is_cross_attention:
            return super().forward_extend(q, k, v, layer, forward_batch, save_kv_cache)
        return self._attend(q, k, v, layer, forward_batch, save_kv_cache)

    def forward_decode(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        layer: RadixAttention,
        forward_batch: ForwardBatch,
        save_kv_cache: bool = True,
    ) -> torch.Tensor:
        """Attend one query per request."""
        if layer.is_cross_attention:
            return super().forward_decode(q, k, v, layer, forward_batch, save_kv_cache)
        return self._attend(q, k, v, layer, forward_batch, save_kv_cache)

    def _attend(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        layer: RadixAttention,
        forward_batch: ForwardBatch,
        save_kv_cache: bool,
    ) -> torch.Tensor:
        if save_kv_cache and k is not None and v is not None:
            location = KVWriteLoc(forward_batch.out_cache_loc, self.swa_out_cache_loc)
            self.token_to_kv_pool.set_kv_buffer(layer, location, k, v)
        queries = q.reshape(-1, layer.tp_q_head_num, layer.qk_head_dim)
        output = queries.new_zeros((queries.shape[0], layer.tp_q_head_num, layer.v_head_dim))
        keys = self.token_to_kv_pool.get_key_buffer(layer.layer_id)
        values = self.token_to_kv_pool.get_value_buffer(layer.layer_id)
        for group in self._layout(forward_batch, queries.shape[0]):
            attended = torch.nn.functional.scaled_dot_product_attention(
                queries[group.query_rows].transpose(1, 2),
                keys[group.cache_rows].transpose(1, 2).to(queries.dtype),
                values[group.cache_rows].transpose(1, 2).to(queries.dtype),
                attn_mask=_mask(group, layer),
                scale=layer.scaling,
                enable_gqa=layer.tp_q_head_num != layer.tp_k_head_num,
            ).transpose(1, 2)
            if group.uniform:
                output[group.query_rows.reshape(-1)] = attended.reshape(-1, *attended.shape[2:])
            else:
                output[group.query_rows[group.query_valid]] = attended[group.query_valid]
        return output.view(queries.shape[0], -1)

    def _layout(self, forward_batch: ForwardBatch, num_queries: int) -> list[_Group]:
        if self._planned_for is not forward_batch:
            query_lengths, key_lengths = _lengths(forward_batch, num_queries)
            pool_rows = self.req_to_token_pool.req_to_token
            indices = forward_batch.req_pool_indices[: len(query_lengths)].to(torch.int64)
            self._groups = _groups(query_lengths, key_lengths, indices, pool_rows)
            self._planned_for = forward_batch
        return self._groups


def _lengths(forward_batch: ForwardBatch, num_queries: int) -> tuple[list[int], list[int]]:
    """Query and key lengths per request, [R] each, for the forward's mode."""
    sequence = forward_batch.seq_lens.tolist()
    if forward_batch.forward_mode.is_target_verify():
        layout = getattr(forward_batch.spec_info, "ragged_verify_layout", None)
        if layout is None:
            query = [num_queries // len(sequence)] * len(sequence)
        elif layout.verify_lens_cpu is not None:
            query = list(layout.verify_lens_cpu)
        else:
            query = layout.verify_lens.tolist()
        # In verify, seq_lens holds the committed prefix; the window comes after it. DP attention pads the batch to the
        # largest rank's with requests that have no row.
        return query, [prefix + width for prefix, width in zip(sequence[: len(query)], query, strict=True)]
    if forward_batch.forward_mode.is_decode():
        return [1] * len(sequence), sequence
    return forward_batch.extend_seq_lens.tolist(), sequence


def _groups(
    query_lengths: list[int], key_lengths: list[int], pool_indices: torch.Tensor, pool_rows: torch.Tensor
) -> list[_Group]:
    """Split the batch into groups whose padded K/V stays under MAX_GATHERED_ROWS."""
    groups, start, first_query = [], 0, 0
    for stop in range(1, len(key_lengths) + 1):
        width = max(key_lengths[start : stop + 1])
        if stop < len(key_lengths) and (stop + 1 - start) * width <= MAX_GATHERED_ROWS:
            continue
        queries, keys = query_lengths[start:stop], key_lengths[start:stop]
        groups.append(_group(queries, keys, first_query, pool_rows[pool_indices[start:stop]]))
        first_query += sum(queries)
        start = stop
    return groups


def _group(queries: list[int], keys: list[int], first_query: int, pool_rows: torch.Tensor) -> _Group:
    """One group from its lengths ([G] each), its first packed query row and its rows of the request pool."""
    query_lengths, key_lengths = torch.tensor(queries), torch.tensor(keys)
    offsets = first_query + torch.cumsum(query_lengths, 0) - query_lengths
    columns = torch.arange(max(queries))
    valid = columns < query_lengths[:, None]
    key_columns = torch.arange(max(keys))
    cache_rows = pool_rows[:, : max(keys)].to(torch.int64)
    return _Group(
        query_rows=torch.where(valid, offsets[:, None] + columns, 0),
        query_valid=valid,
        cache_rows=torch.where(key_columns < key_lengths[:, None], cache_rows, 0),
        query_positions=(key_lengths - query_lengths)[:, None] + columns,
        key_lengths=key_lengths,
        uniform=min(queries) == max(queries),
    )


def _mask(group: _Group, layer: RadixAttention) -> torch.Tensor:
    """Boolean mask [G, 1, Q, S]: which keys each query may see."""
    key_positions = torch.arange(group.cache_rows.shape[1])
    allowed = (key_positions < group.key_lengths[:, None])[:, None, :]
    if layer.attn_type != AttentionType.ENCODER_ONLY:
        positions = group.query_positions[:, :, None]
        allowed = allowed & (key_positions <= positions)
        window = layer.sliding_window_size
        if window is not None and window > -1:
            allowed = allowed & (key_positions >= positions - window)
    # A padding query has no row of its own; letting it see key 0 keeps its softmax finite.
    allowed = allowed | (~group.query_valid[:, :, None] & (key_positions == 0))
    return allowed[:, None]
