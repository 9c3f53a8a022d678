"""Host planning of a ragged verify: one FlashInfer batch of fixed size per graph tier, whatever the verify lengths
are.

A graph tier of T tokens is captured once, with `slots` requests. At replay the R real requests come first, then slots
- R empty ones, then one ghost that owns the rows which pad the total to T. FlashInfer fixes batch size and total rows
at capture; with the ghost both are always exactly what was captured, no real request is ever longer than its window,
and every row of the output is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

GHOST_SLOT = 0
"""The KV slot that the ghost attends to: SGLang's dummy slot, which padded tokens write."""


@dataclass(frozen=True)
class RaggedPlan:
    """What FlashInfer's planner is told; a batch of slots + 1 rows.

    qo_indptr: [slots + 2] offsets of each row's queries, ending at T. kv_indptr: [slots + 2] offsets of its K/V
    entries.
    kv_lens: [slots + 1]. num_requests: R. ghost_tokens: padding queries, which the last row owns.
    """

    qo_indptr: tuple[int, ...]
    kv_indptr: tuple[int, ...]
    kv_lens: tuple[int, ...]
    num_requests: int
    ghost_tokens: int

    @property
    def max_q_len(self) -> int:
        """Longest row, in queries."""
        return max(end - start for start, end in zip(self.qo_indptr, self.qo_indptr[1:], strict=False))

    @property
    def max_kv_len(self) -> int:
        """Longest row, in K/V entries."""
        return max(self.kv_lens)

    @property
    def request_kv_entries(self) -> int:
        """K/V entries of the real requests; the ghost's follow."""
        return self.kv_indptr[self.num_requests]

    @property
    def kv_entries(self) -> int:
        """All K/V entries."""
        return self.kv_indptr[-1]


def plan_ragged_verify(
    verify_lens: Sequence[int], prefix_lens: Sequence[int], *, graph_num_tokens: int, slots: int
) -> RaggedPlan:
    """Plan R requests that verify `verify_lens` tokens (anchor included) after `prefix_lens` cached ones, in a tier
    of T tokens.

    Errors: ValueError when the requests do not fit the tier or its slots, or a request verifies nothing.
    """
    num_requests, total = len(verify_lens), sum(verify_lens)
    if len(prefix_lens) != num_requests:
        raise ValueError(f"{num_requests} verify lengths but {len(prefix_lens)} prefix lengths")
    if not 1 <= num_requests <= slots:
        raise ValueError(f"{num_requests} requests do not fit the {slots} slots of the captured tier")
    if min(verify_lens) < 1 or min(prefix_lens) < 0:
        raise ValueError("every request verifies at least its anchor, after a prefix of 0 tokens or more")
    if total > graph_num_tokens:
        raise ValueError(f"{total} verified tokens do not fit the captured tier of {graph_num_tokens}")
    ghost = graph_num_tokens - total
    empty = [0] * (slots - num_requests)
    kv_lens = [prefix + verify for prefix, verify in zip(prefix_lens, verify_lens, strict=True)] + empty + [ghost]
    q_lens = [*verify_lens, *empty, ghost]
    return RaggedPlan(
        tuple(accumulate(q_lens, initial=0)), tuple(accumulate(kv_lens, initial=0)), tuple(kv_lens), num_requests, ghost
    )
