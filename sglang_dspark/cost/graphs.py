"""What SGLang 0.5.23 resolves where no flag says otherwise: the batch sizes it captures, and its limits.

In compact mode a verify graph holds bs * (gamma + 1) tokens for every captured batch size bs, so that whole blocks fit
a graph up to the largest one; the draft is padded to the same batch sizes. Without speculation the width is 1 and the
list another. The sources, below sglang/srt: arg_groups/memory_hook.py:89-190 (by GPU memory),
arg_groups/cuda_graph_hook.py:500 (the lists), model_executor/runner/base_cuda_graph_runner.py:65-110 (pool, alignment),
decode_cuda_graph_runner.py:699 (tokens), arg_groups/speculative_hook.py:852 and deepseek_v4_hook.py:138 (limits),
mem_cache/kv_cache_configurator.py:3118 (the request pool). A test holds this file against them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sglang_dspark.errors import InputError

_DEEPSEEK_V4 = re.compile(r"deepseek[-_ ]?v4", re.IGNORECASE)
_CLIPPED_POOL = (2048, 4096)  # least and most requests where nothing limits them
_DSPARK_LIMIT, _DEEPSEEK_V4_LIMIT = 48, 256


class _Defaults(NamedTuple):
    """Of GPUs below so many GiB: tokens of a prefill chunk, largest captured batch with TP below 4, and from 4 on."""

    below_gib: float
    chunk: int
    few_ranks: int
    more_ranks: int


_BY_MEMORY = (
    _Defaults(20, 2048, 8, 8),
    _Defaults(35, 4096, 48, 160),
    _Defaults(60, 4096, 32, 160),
    _Defaults(160, 8192, 256, 512),
    _Defaults(math.inf, 16384, 512, 512),
)
_UNTOLD = _Defaults(math.inf, 4096, 160, 160)


@dataclass(frozen=True)
class Machine:
    """What SGLang's defaults depend on.

    gpu_memory_gib: of one GPU as the driver counts it, None where SGLang cannot tell. tp: tensor-parallel size.
    deepseek_v4: whether the model is one. captures: whether there is an accelerator to capture graphs on. words: where
    memory and TP come from.
    """

    gpu_memory_gib: float | None = None
    tp: int = 1
    deepseek_v4: bool = False
    captures: bool = True
    words: str = ""

    @classmethod
    def of(cls, meta: Mapping[str, Any], gpu_memory_gib: float | None = None, tp: int | None = None) -> Machine:
        """The machine of a profile by its `meta` (gpu_memory_gib, tp_size, model, hardware), or as given instead.

        Errors: InputError for values out of range.
        """
        memory, memory_from = _first(gpu_memory_gib, meta.get("gpu_memory_gib"))
        ranks, ranks_from = _first(tp, meta.get("tp_size"))
        if memory is not None and not (_is_number(memory) and 0 < memory <= 1e5):
            raise InputError(f"gpu-memory={memory!r} is refused, expected GiB of one GPU in 0..100000")
        if ranks is not None and not (isinstance(ranks, int) and not isinstance(ranks, bool) and 1 <= ranks <= 4096):
            raise InputError(f"tp={ranks!r} is refused, expected 1..4096")
        said = (
            f"{memory:g} GiB a GPU ({memory_from})"
            if memory is not None
            else "GPU memory unknown, as SGLang then has it",
            f"TP {ranks} ({ranks_from})" if ranks is not None else "TP unknown, taken as 1",
        )
        return cls(
            None if memory is None else float(memory),
            ranks or 1,
            bool(_DEEPSEEK_V4.search(str(meta.get("model", "")))),
            not str(meta.get("hardware", "")).lower().startswith("cpu"),
            ", ".join(said),
        )

    @property
    def _defaults(self) -> _Defaults:
        if self.gpu_memory_gib is None:
            return _UNTOLD
        return next(row for row in _BY_MEMORY if self.gpu_memory_gib < row.below_gib)

    def prefill_chunk(self, attention_ranks: int = 1) -> int:
        """Tokens of a prefill chunk; attention_ranks: data-parallel ranks of the attention, which share it."""
        return self._defaults.chunk // attention_ranks

    def graph_limit(self, max_running_requests: int | None = None) -> int:
        """Largest batch size that may be captured; max_running_requests: as the flag gives it, if it is given."""
        limit = self._defaults.few_ranks if self.tp < 4 else self._defaults.more_ranks
        return limit if max_running_requests is None else min(limit, max_running_requests)

    def running_limit(self, *, drafting: bool) -> int | None:
        """Requests that may run at once where no flag limits them; None: only memory does."""
        if self.deepseek_v4:
            return _DEEPSEEK_V4_LIMIT
        return _DSPARK_LIMIT if drafting else None


def request_pool(limit: int | None, kv_tokens: int, context_length: int | None = None) -> int:
    """Requests that may run at once on one rank (the size of its request pool).

    limit: the flag's or default one, None: none. kv_tokens: KV capacity. context_length: the model's longest context.
    """
    if limit is None:
        by_context = 0 if context_length is None else int(kv_tokens / context_length * 512)
        limit = max(min(by_context, _CLIPPED_POOL[1]), _CLIPPED_POOL[0])
    return max(min(limit, kv_tokens // 2), 1)


def free_slots_awaited(limit: int, *, drafting: bool) -> int:
    """Request slots that must be free before new prompts are prefilled beside running requests; 1: any.

    SGLang holds prefills of DSPARK back so, because each also fills the draft's cache (min_free_slots_delayer.py:4).
    """
    return min(4, max(2, (limit + 5) // 6)) if drafting and limit >= 8 else 1


def listed_batches(most: int, *, drafting: bool) -> list[int]:
    """The batch sizes up to `most` on SGLang's list, `most` itself always among them."""
    if drafting:
        steps = ((1, 9, 1), (10, 33, 2), (40, 65, 4), (72, 257, 8), (272, most + 1, 16))
        sizes = [size for step in steps for size in range(*step)]
    else:
        sizes = [1, 2, 4, 8, 12, *range(16, 257, 8), *range(272, 512, 16), *range(512, most + 1, 32)]
    return sorted({size for size in sizes if size <= most} | {most})


def captured_batches(sizes: Sequence[int], pool: int, *, width: int, alignment: int = 1) -> tuple[int, ...]:
    """The batch sizes of a list that are captured, increasing.

    pool: requests that may run at once; its size is appended where the list goes beyond. width: tokens a request.
    alignment: ranks that share the tokens of a step (the attention's TP under DP attention), else 1. Errors: InputError
    where nothing is left.
    """
    pool = -(-pool // alignment) * alignment
    listed = [*sizes, pool] if max(sizes) > pool else sizes
    kept = {size for size in listed if size <= pool and size * width % alignment == 0}
    if not kept:
        raise InputError(
            f"no batch size of {list(sizes)} can be captured: expected one whose tokens divide by {alignment}"
        )
    return tuple(sorted(kept))


def _first(given: Any, known: Any) -> tuple[Any, str]:
    return (given, "given") if given is not None else (known, "profile")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
