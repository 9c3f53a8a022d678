"""The simulator's prefix cache against SGLang's own radix tree: the same hits, room and evictions, step by step.

SGLang's tree is asked in tokens; a block's number and place give them.
"""

from __future__ import annotations

import random
from array import array
from typing import Any

import numpy as np
import pytest

from simulator.engine.prefix_cache import PrefixCache, Prompts
from simulator.traces import PrefixBlocks, Trace

pytest.importorskip("sglang", reason="SGLang's radix tree is needed: extra `serve`")

BLOCK = 8


class NoPool:
    """Takes back what the tree frees."""

    page_size, device = 1, "cpu"

    def free_segment(self, indices: Any, start_pos: int = 0) -> None:
        pass

    free = free_segments = free_segment


class Upstream:
    """SGLang 0.5.23's default cache without pools, used as its scheduler uses it."""

    def __init__(self) -> None:
        from sglang.srt.mem_cache.cache_init_params import CacheInitParams
        from sglang.srt.mem_cache.unified_cache.component_type import ComponentType
        from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache
        from sglang.srt.server_args import ServerArgs, set_global_server_args_for_scheduler

        set_global_server_args_for_scheduler(ServerArgs(model_path="none"))
        self.tree = UnifiedRadixCache(
            CacheInitParams(
                disable=False,
                req_to_token_pool=None,
                token_to_kv_pool_allocator=NoPool(),
                page_size=1,
                tree_components=(ComponentType.FULL,),
                tree_core_backend="python",
            )
        )
        self.locks: dict[int, Any] = {}

    def touch(self, tokens: list[int]) -> Any:
        from sglang.srt.mem_cache.base_prefix_cache import MatchPrefixParams

        return self.tree.match_prefix(MatchPrefixParams(key=self._key(tokens)))

    def admit(self, request: int, tokens: list[int]) -> int:
        found = self.touch(tokens)
        self.locks[request] = self.tree.lock(found.last_device_node)
        return int(found.device_prefix_len)

    def keep(self, request: int, tokens: list[int]) -> None:
        """`checkpoint_into_tree`, what of it concerns the tree."""
        import torch
        from sglang.srt.mem_cache.base_prefix_cache import InsertParams

        values = torch.arange(len(tokens))
        result = self.tree.insert(InsertParams(key=self._key(tokens), value=values))
        self.tree.unlock(self.locks[request])
        self.locks[request] = self.tree.lock(result.last_device_node)

    def drop(self, request: int) -> None:
        self.tree.unlock(self.locks.pop(request))

    def evict_to(self, most: int) -> None:
        from sglang.srt.mem_cache.base_prefix_cache import EvictParams

        if self.tree.evictable_size() > most:
            self.tree.evict(EvictParams(num_tokens=self.tree.evictable_size() - most))

    def _key(self, tokens: list[int]) -> Any:
        from sglang.srt.mem_cache.radix_cache import RadixKey

        return RadixKey(token_ids=array("q", tokens))


def prompts_of(draws: random.Random, count: int) -> tuple[Trace, list[list[int]]]:
    """Prompts of blocks in common and at least one token that no other has, as a trace and in tokens."""
    blocks = [[draws.randrange(3) for _ in range(draws.randrange(6))] for _ in range(count)]
    tails = [draws.randrange(1, 20) for _ in range(count)]
    tokens = [
        [block * BLOCK + place for block in ids for place in range(BLOCK)] + [1000 * (n + 1) + k for k in range(tail)]
        for n, (ids, tail) in enumerate(zip(blocks, tails, strict=True))
    ]
    lengths = np.array([len(one) for one in tokens])
    column = PrefixBlocks(np.cumsum([0, *map(len, blocks)]), np.array(sum(blocks, []), dtype=np.int64), BLOCK)
    return Trace(np.zeros(count), lengths, np.ones_like(lengths), prefix_blocks=column), tokens


@pytest.mark.parametrize("seed", range(60))
def test_random_traffic(seed: int) -> None:
    draws = random.Random(seed)
    trace, tokens = prompts_of(draws, 60)
    prompts = Prompts.of(trace)
    if prompts is None:
        pytest.skip("no request has a block")
    ours, theirs = PrefixCache(prompts, overlap=False), Upstream()
    room = draws.choice([40, 150, 10_000])
    running: dict[int, bool] = {}  # request -> whether its prompt is in the tree
    for request in range(len(tokens)):
        assert ours.admit(request, len(tokens[request])) == theirs.admit(request, tokens[request])
        running[request] = False
        for other in list(running):
            event = draws.choice(["wait", "wait", "prefilled", "finish", "drop", "touch"])
            if event == "prefilled" and not running[other]:
                cut = draws.randrange(len(tokens[other]))
                if draws.random() < 0.5:  # in two chunks
                    known = prompts.tokens(other, prompts.blocks(other, cut))
                    ours.cut(other, cut)
                    theirs.keep(other, tokens[other][: max(known, prompts.tokens(other, ours.held[other][1]))])
                ours.prefilled(other, 1)
                ours.see(1)
                theirs.keep(other, tokens[other])
                running[other] = True
            elif event == "finish" and running[other]:
                answer = draws.randrange(1, 30)
                theirs.keep(other, tokens[other] + [10_000_000 * (other + 1) + k for k in range(answer)])
                theirs.drop(other)
                ours.finish(other, len(tokens[other]) + answer)
                del running[other]
            elif event == "drop":
                theirs.drop(other)
                ours.drop(other)
                del running[other]
            elif event == "touch":
                theirs.touch(tokens[other])
                ours.tree.match(prompts.part(other, 0, prompts.blocks(other)))
            ours.evict_to(room)
            theirs.evict_to(room)
            assert ours.idle == theirs.tree.evictable_size()
            assert sum(prompts.tokens(one, blocks) for one, (_, blocks) in ours.held.items()) - ours.shared == (
                theirs.tree.protected_size()
            )


def test_it_evicts_at_all() -> None:
    """The random traffic above is only worth something if small rooms lose hits that large ones have."""
    found = []
    for room in (40, 10_000):
        trace, tokens = prompts_of(random.Random(7), 60)
        prompts = Prompts.of(trace)
        assert prompts is not None
        cache, hits = PrefixCache(prompts, overlap=False), 0
        for request in range(60):
            hits += cache.admit(request, len(tokens[request]))
            cache.finish(request, len(tokens[request]) + 5)
            cache.evict_to(room)
        found.append(hits)
    assert 0 < found[0] < found[1]
