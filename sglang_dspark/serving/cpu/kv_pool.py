"""SGLang's multi-head KV pool, with slot moves by torch indexing instead of a Triton copy."""

import torch
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool, move_kv_cache_native


class ReferenceKVPool(MHATokenToKVPool):
    """[slots, heads, head_dim] buffers per layer, as upstream's."""

    def _init_kv_copy_and_warmup(self) -> None:
        self._kv_copy_config = None

    def _move_kv_cache_impl(self, tgt_loc: torch.Tensor, src_loc: torch.Tensor) -> None:
        move_kv_cache_native(self.k_buffer, self.v_buffer, tgt_loc, src_loc)
