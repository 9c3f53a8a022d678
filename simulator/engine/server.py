"""What SGLang would set up for one kind of policy on this machine: limits, KV capacity, captured graphs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sglang_dspark.cost import StepCost
from sglang_dspark.cost.capture import captured_as
from sglang_dspark.cost.graphs import Machine, captured_batches, free_slots_awaited, listed_batches, request_pool
from sglang_dspark.errors import InputError
from simulator.engine.settings import EngineSettings

Graphs = str | tuple[int, ...]
"""Whose CUDA graphs: "sglang", "profile", or batch sizes as SGLang's --cuda-graph-bs-decode takes them."""

_MOST_SIZES, _LARGEST_SIZE = 1024, 1 << 16


@dataclass(frozen=True)
class Server:
    """One replica. Policies that draft share one, and policy none has its own.

    max_running_requests: requests that run at once. default_limit: SGLang's own limit (None: one was given);
    asked_limit: what a flag has to say instead, so that all requests in flight run (None: nothing). batches: captured
    batch sizes, `width` tokens a request each; None: the profile's own graphs.
    """

    drafting: bool
    max_running_requests: int
    default_limit: int | None
    asked_limit: int | None
    chunked_prefill_size: int
    kv_tokens: int
    batches: tuple[int, ...] | None
    width: int

    def on_graphs(self, cost: StepCost) -> StepCost:
        """A model of what this server executes."""
        return cost if self.batches is None else captured_as(cost, self.batches, self.width)

    @property
    def free_slots(self) -> int:
        """Slots that must be free before new prompts are prefilled beside running requests."""
        return free_slots_awaited(self.max_running_requests, drafting=self.drafting)

    @property
    def flag(self) -> str:
        """The server flag that lets all requests in flight run; empty if none is needed."""
        return "" if self.asked_limit is None else f"--max-running-requests {self.asked_limit}"


def set_up(
    engine: EngineSettings,
    cost: StepCost,
    machine: Machine,
    graphs: Graphs,
    *,
    drafting: bool,
    gamma: int,
    concurrency: int | None,
) -> Server:
    """The server of one replica, as SGLang 0.5.23 sets it up; see `sglang_dspark.cost.graphs`.

    concurrency: requests in flight over all replicas; a limit that nobody gave gives way to them. Errors: InputError.
    """
    ranks = engine.replicas if engine.dp_attention else 1  # they share the server's limit, its chunk and its TP
    kv_tokens = _kv_tokens(engine, cost, drafting=drafting)
    limit, default, asked = engine.max_running_requests, None, None
    if limit is None:
        told = machine.running_limit(drafting=drafting)
        limit = default = request_pool(None, kv_tokens) if told is None else max(1, told // ranks)
        wanted = 0 if concurrency is None else -(-concurrency // engine.replicas)
        if wanted > default:
            limit, asked = wanted, wanted * ranks
    pool = request_pool(limit, kv_tokens)
    given = None if engine.max_running_requests is None else limit * ranks
    width = gamma + 1 if drafting else 1
    batches = None
    if graphs != "profile" and (isinstance(graphs, tuple) or machine.captures):
        most = machine.graph_limit(given if asked is None else asked)
        sizes = graphs if isinstance(graphs, tuple) else listed_batches(most, drafting=drafting)
        alignment = max(1, machine.tp // ranks) if engine.dp_attention else 1
        batches = captured_batches(sizes, pool, width=width, alignment=alignment)
    chunk = engine.chunked_prefill_size or machine.prefill_chunk(ranks)
    return Server(drafting, pool, default, asked, chunk, kv_tokens, batches, width)


def choose_graphs(
    asked: Graphs | Sequence[int] | None,
    cost: StepCost,
    engine: EngineSettings,
    gpu_memory_gib: float | None,
    tp: int | None,
) -> Graphs:
    """Whose graphs as asked, by default SGLang's; costs that were recorded on SGLang have its graphs, or their absence.

    Errors: InputError for sizes out of range, and for a machine on which nothing depends then.
    """
    graphs = _checked(asked) if asked is not None else "profile" if cost.meta.get("graphs") == "recorded" else "sglang"
    by_memory = graphs == "sglang" and Machine.of(cost.meta, gpu_memory_gib, tp).captures
    if tp is not None and not by_memory and not (isinstance(graphs, tuple) and engine.dp_attention):
        raise InputError(
            f"tp={tp} does nothing here: the graphs are {_words(graphs)}, expected graphs of sglang on a GPU"
        )
    chunked = engine.chunked_prefill_size is not None or engine.prefill_elsewhere_s is not None
    if gpu_memory_gib is not None and not by_memory and chunked:
        raise InputError(
            f"gpu-memory={gpu_memory_gib:g} does nothing here: graphs and prefill chunk do not depend on it"
        )
    return graphs


def _checked(graphs: Graphs | Sequence[int]) -> Graphs:
    if isinstance(graphs, str):
        if graphs not in ("sglang", "profile"):
            raise InputError(f"graphs '{graphs}' is refused, expected sglang, profile or batch sizes such as 1,2,4,8")
        return graphs
    sizes = list(graphs)
    good = (
        all(isinstance(size, int) and not isinstance(size, bool) for size in sizes) and 1 <= len(sizes) <= _MOST_SIZES
    )
    if not good or sizes != sorted(set(sizes)) or not 1 <= sizes[0] <= sizes[-1] <= _LARGEST_SIZE:
        expected = f"expected increasing batch sizes in 1..{_LARGEST_SIZE}"
        raise InputError(f"graphs '{','.join(map(str, sizes[:8]))}' is refused, {expected}")
    return tuple(sizes)


def _words(graphs: Graphs) -> str:
    return {"profile": "the profile's", "sglang": "none on a CPU"}[graphs] if isinstance(graphs, str) else "given"


def _kv_tokens(engine: EngineSettings, cost: StepCost, *, drafting: bool) -> int:
    """KV capacity of a replica. A draft keeps a cache of its own, which takes a share of the same memory.

    The profile's capacity is that of a server without a draft; the engine's, by flag or records, is what a server with
    one reports.
    """
    share = cost.terms["draft_kv_share"]
    if engine.kv_tokens is not None:
        return engine.kv_tokens if drafting else int(engine.kv_tokens / (1 - share))
    return int(cost.terms["kv_tokens"] * (1 - share if drafting else 1))
