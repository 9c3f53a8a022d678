"""One request of a live server as a record: times, lengths, sampling parameters; text only when it was asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sglang_dspark.records import RequestRecord
from sglang_dspark.serving.base.steps import SERVERS_OWN

_HEALTH_CHECK = "HEALTH_CHECK"  # how SGLang names them

GREEDY_TOP_K = 1
"""SGLang turns temperature 0 into temperature 1 with top_k 1."""


@dataclass
class LiveRequest:
    """A live request: SGLang's object, and what its decode steps added up to.

    last_step: once it ended, the last step that may still report of it. ended_s: when that was.
    """

    req: Any
    last_step: int | None = None
    ended_s: float = 0.0
    num_steps: int = 0
    num_draft_tokens: int = 0
    num_accepted: int = 0


def request_record(known: LiveRequest, rank: int, to_unix_s: float, *, texts: bool) -> RequestRecord:
    """The record of a request that ended. to_unix_s: Unix time of time.perf_counter() 0."""
    req, sampling, times = known.req, known.req.sampling_params, known.req.time_stats
    finish_s = times.completion_time or known.ended_s
    arrival_s = times.created_time or times.scheduler_recv_time or times.wait_queue_entry_time
    first_s = times.prefill_finished_time
    custom = sampling.custom_params if isinstance(sampling.custom_params, dict) else {}
    return RequestRecord(
        rid=req.rid,
        arrival_time_s=arrival_s + to_unix_s,
        first_token_time_s=None if first_s == 0 else first_s + to_unix_s,
        finish_time_s=finish_s + to_unix_s,
        input_length=len(req.origin_input_ids),
        output_length=wanted(req),
        cached_tokens=int(req.cached_tokens or 0),
        finish_reason=type(req.finished_reason).__name__,
        temperature=0.0 if sampling.top_k == GREEDY_TOP_K else float(sampling.temperature),
        top_p=float(sampling.top_p),
        top_k=int(sampling.top_k),
        min_p=float(sampling.min_p),
        max_new_tokens=sampling.max_new_tokens,
        domain=str(custom.get("domain", "")),
        rank=rank,
        num_steps=known.num_steps,
        num_draft_tokens=known.num_draft_tokens,
        num_accepted=known.num_accepted,
        prompt=_text(req, req.origin_input_ids) if texts else None,
        output=_text(req, req.output_ids[: wanted(req)]) if texts else None,
    )


def sent_by_server(req: Any) -> bool:
    """Whether SGLang itself sent this request: its start-up request and its health checks are nobody's load."""
    custom = req.sampling_params.custom_params
    return str(req.rid).startswith(_HEALTH_CHECK) or (isinstance(custom, dict) and SERVERS_OWN in custom)


def wanted(req: Any) -> int:
    """Output tokens that the client got: a block may reach beyond the end."""
    if req.finished_len is not None:
        return int(req.finished_len)
    limit = req.sampling_params.max_new_tokens
    return len(req.output_ids) if limit is None else min(len(req.output_ids), int(limit))


def _text(req: Any, ids: Any) -> str | None:
    return None if req.tokenizer is None else str(req.tokenizer.decode(list(ids)))
