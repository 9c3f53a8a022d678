"""Records of a live server as a load to simulate: its requests, what their blocks would have accepted, its settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sglang_dspark.cost import Assumption, StepCost
from sglang_dspark.errors import InputError
from sglang_dspark.records import SUFFIX, Header, RecordSet, RequestRecord
from sglang_dspark.records.blocks import Blocks, uncensored_blocks
from sglang_dspark.records.fit import fit_step_cost
from simulator.blocks.drafters import Drafter
from simulator.blocks.recorded import RecordedAcceptance
from simulator.engine.settings import EngineSettings
from simulator.traces import Trace

_SETTINGS = ("max_running_requests", "chunked_prefill_size", "max_prefill_tokens", "kv_tokens")
_UNCHUNKED = 1 << 20  # SGLang's -1: a prompt is one chunk


@dataclass(frozen=True)
class RecordedLoad:
    """trace: the requests that got tokens, in order of arrival, with their `request_id`s. blocks: uncensored ones.

    requests: by request id. engine: the server's own settings as far as recorded, SGLang's defaults elsewhere.
    """

    trace: Trace
    blocks: Blocks
    requests: dict[str, RequestRecord]
    engine: EngineSettings = EngineSettings()

    @classmethod
    def of(cls, requests: Sequence[RequestRecord], blocks: Blocks, header: Header, source: str = "") -> RecordedLoad:
        """requests: any recorded ones. InputError if no request got a token."""
        served = sorted((r for r in requests if r.output_length > 0), key=lambda r: r.arrival_time_s)
        if not served:
            raise InputError(f"none of the {len(requests)} recorded requests got a token, expected a recorded load")
        settings = recorded_settings(header.engine)
        source = source or f"{len(served)} recorded requests"
        trace = recorded_trace(served, source, len(requests) - len(served))
        return cls(trace, blocks, {request.rid: request for request in served}, settings)

    def source(self, trace: Trace, seed: int) -> RecordedAcceptance:
        """The acceptance of `trace`, which holds some of these requests; seed names the replication."""
        assert trace.request_id is not None
        wanted = [self.requests[rid] for rid in trace.request_id]
        return RecordedAcceptance(self.blocks, wanted, seed, self.requests.values())

    def strangers(self, trace: Trace) -> int:
        """Requests of `trace` without a recorded block of their own."""
        return self.source(trace, 0).strangers

    def own_blocks(self, trace: Trace) -> int:
        """Blocks that were recorded at an anchor of a request in `trace`."""
        kept = set(trace.request_id or ())
        numbers = [number for number, rid in enumerate(self.blocks.rids) if rid in kept]
        return int(np.isin(self.blocks.request, numbers).sum())

    @property
    def drafter(self) -> Drafter:
        """The recorded draft: conditional acceptance by position as the blocks show it."""
        reached = [(self.blocks.depth >= j).sum() for j in range(self.blocks.gamma + 1)]
        kept = tuple(float(more / max(here, 1)) for here, more in zip(reached, reached[1:], strict=False))
        return Drafter("recorded", {"recorded": kept}, 1.0, True, stated_blocks(self.blocks))


def recorded_trace(requests: Sequence[RequestRecord], source: str, empty: int = 0) -> Trace:
    """Arrivals and lengths of recorded requests, what they asked for, and the prompt tokens in the prefix cache.

    requests: in order of arrival, each with tokens. empty: requests without any that are left out.
    """
    arrival = np.array([request.arrival_time_s for request in requests])
    cached = np.array([min(request.cached_tokens, request.input_length - 1) for request in requests], dtype=np.int64)
    prompt = np.array([request.input_length for request in requests], dtype=np.int64)
    output = np.array([request.output_length for request in requests], dtype=np.int64)
    known = [request.max_new_tokens for request in requests if request.max_new_tokens is not None]
    return Trace(
        arrival - arrival[0],
        prompt,
        output,
        max_tokens=np.maximum(known, output) if len(known) == len(requests) else None,
        request_id=tuple(request.rid for request in requests),
        cached_length=cached,
        source=source,
        notes=(f"{empty} recorded requests got no token and are left out",) if empty else (),
    )


def stated_blocks(blocks: Blocks) -> tuple[Assumption, ...]:
    """What was done to get the blocks."""
    trimmed = f"{blocks.censored} of {blocks.steps} steps are trimmed"
    seen = f"acceptance: {blocks.seen} recorded blocks"
    out = [Assumption("acceptance", blocks.seen, "recorded blocks", trimmed, seen)]
    if blocks.completed:
        said = f"the hidden tails of {blocks.completed} of these blocks were drawn once"
        out.append(Assumption("drawn_tails", blocks.completed, "blocks", "from their confidences", said))
    return tuple(out)


def recorded_settings(engine: dict[str, Any]) -> EngineSettings:
    """What `Header.engine` says of the server, as the simulator's settings."""
    known = {name: engine[name] for name in _SETTINGS if isinstance(engine.get(name), int) and engine[name] > 0}
    if engine.get("chunked_prefill_size") == -1:
        known["chunked_prefill_size"] = _UNCHUNKED
    replicas, ranks = (engine.get(name) for name in ("dp_size", "attn_dp_size"))
    in_lock_step = isinstance(ranks, int) and ranks > 1
    if in_lock_step or (isinstance(replicas, int) and replicas > 1):
        known["replicas"] = ranks if in_lock_step else replicas
    schedule = "no-overlap" if engine.get("loop") == "normal" or engine.get("disable_overlap_schedule") else None
    return EngineSettings(**known, dp_attention=in_lock_step, schedule=schedule)


def load_records(path: str | Path, *, window: int | None = None, complete: bool = False, seed: int = 0) -> RecordedLoad:
    """Read the requests and blocks of records; a load as `simulate --trace` takes it.

    window: look at the first so many positions of every block, as for policies that never verify more (default: all).
    complete: draw what trimmed blocks hide from their confidences, with `seed`. Errors: InputError, see
    `uncensored_blocks`; blocks that a policy chose to verify in full beside trimmed ones count as censored.
    """
    records = RecordSet(path)
    requests = [request for request in records.requests() if not request.rid.startswith("HEALTH_CHECK")]
    if not requests:
        damage = "".join(f"; {problem}" for problem in records.summary.problems[:1])
        raise InputError(f"{path} holds no request records, expected those of a server that finished requests{damage}")
    blocks = uncensored_blocks(records, seed=seed, complete=complete, window=window, chosen=False)
    problems = [str(problem) for problem in records.summary.problems]
    load = RecordedLoad.of(requests, blocks, records.header(), f"{Path(path).name} (records)")
    return replace(load, trace=replace(load.trace, notes=(*load.trace.notes, *problems)))


def holds_records(path: str | Path) -> bool:
    """Whether a path is a folder or a file of records."""
    return Path(path).is_dir() or str(path).endswith(SUFFIX)


def records_cost(path: str | Path) -> StepCost:
    """Step costs fitted on all timed steps of records; InputError where they cannot inform a model."""
    records = RecordSet(path)
    cost = fit_step_cost((step for _, step in records.steps()), f"{Path(path).name} (fitted)").cost
    known = recorded_settings(records.header().engine).kv_tokens
    # Its steps ran on the server's own graphs, which `captured` holds if it has any.
    cost = replace(cost, meta={**cost.meta, "graphs": "recorded"})
    return cost if known is None else cost.with_terms("as the recorded server says", kv_tokens=known)
