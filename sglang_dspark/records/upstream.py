"""Step records of an unmodified SGLang server (`/server_info` -> `dspark_info_record`), in our schema.

They are rounded to four decimals, name neither the policy's inputs nor temperatures, and carry no clock: good for
acceptance and costs, marked `ROUNDED` so that nobody replays them.

SGLang keeps the last 200,000 steps in a ring and forgets all of them when it is told to; a reading shows what is there.
Steps carry the scheduler's count of forwards (`forward_ct`), prefills and idle ones included, so a gap in it is not yet
a lost step. Two readings that overlap have lost nothing between them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from sglang_dspark.errors import InputError
from sglang_dspark.records.schema import ROUNDED, Header, StepRecord

UPSTREAM_POLICY = "argmax:lag=2,pricing=floor"
"""What SGLang 0.5.23 does, in our terms."""


class _Request(msgspec.Struct):
    req_pool_index: int
    prefix_len: int
    verify_len: int
    correct_drafts: int
    acc_len: int = 0
    cap_trim: int = 0
    rid: str | None = None
    confidence: list[float] | None = None


class _Step(msgspec.Struct):
    forward_ct: int
    mode: str = ""
    lag_steps: int | None = None
    verify_tokens_graph_key: int = -1
    predicted_step_ms: float | None = None
    step_cpu_ms: float | None = None
    step_gpu_ms: float | None = None
    draft_gpu_ms: float | None = None
    target_verify_gpu_ms: float | None = None
    reqs: list[_Request] | None = None


class UpstreamInfo(msgspec.Struct):
    gamma: int
    mode: str = ""
    components: list[str] = []
    simulate_acc_len: float | None = None
    records: list[_Step] = []


class _State(msgspec.Struct):
    dspark_info_record: UpstreamInfo | None = None


class _ServerInfo(msgspec.Struct):
    internal_states: list[_State]


def upstream_infos(server_info: Any) -> list[UpstreamInfo]:
    """The parsed records of every rank in a `/server_info` answer; InputError says what to switch on if there is none.

    server_info: the decoded JSON.
    """
    try:
        states = msgspec.convert(server_info, _ServerInfo).internal_states
    except msgspec.ValidationError as error:
        raise InputError(f"/server_info is not SGLang 0.5.23's: {error}") from error
    infos = [state.dspark_info_record for state in states if state.dspark_info_record is not None]
    if not infos:
        raise InputError("the server records no DSPARK steps: start it with SGLANG_DSPARK_DEBUG_DUMP=all")
    for info in infos:
        if info.simulate_acc_len is not None and info.simulate_acc_len > 0:
            raise InputError("the server simulates its acceptance (SGLANG_SIMULATE_ACC_LEN): that is no acceptance")
        if "reqs" not in info.components:
            raise InputError("the server records no requests: start it with SGLANG_DSPARK_DEBUG_DUMP=all")
    return infos


def upstream_header(info: UpstreamInfo, engine: dict[str, Any]) -> Header:
    """The header of a drained run; `engine`: what `/server_info` says of the server."""
    policy = UPSTREAM_POLICY if info.mode != "static" else f"fixed:k={info.gamma}"
    return Header(gamma=info.gamma, policy=policy, engine=engine, fidelity=ROUNDED)


def upstream_steps(info: UpstreamInfo, rank: int, after: int = -1) -> Iterator[StepRecord]:
    """Decode steps of one rank whose `forward_ct` is beyond `after`."""
    for step in info.records:
        if step.forward_ct > after and step.reqs:
            yield _convert(step, step.reqs, info, rank)


@dataclass
class Cursor:
    """How far the records of one rank have been read."""

    rank: int
    last: _Step | None = None

    def began_anew(self, info: UpstreamInfo) -> bool:
        """Whether the server counts from the start again: what was read last is not where its count says."""
        if self.last is None or not info.records or info.records[0].forward_ct > self.last.forward_ct:
            return False  # nothing to compare with: the ring was cleared or has run over
        return not any(_same(step, self.last) for step in info.records)

    def take(self, info: UpstreamInfo) -> tuple[list[StepRecord], int]:
        """(the steps that are new, the most decode steps that the server forgot before them)."""
        after = -1 if self.last is None else self.last.forward_ct
        new = [step for step in info.records if step.forward_ct > after]
        lost = 0
        if self.last is not None and new and info.records[0].forward_ct > after:
            lost = _most_between(self.last, new[0])
        if new:
            self.last = new[-1]
        return list(upstream_steps(info, self.rank, after)), lost


def _same(one: _Step, other: _Step) -> bool:
    return one.forward_ct == other.forward_ct and _rows(one) == _rows(other)


def _rows(step: _Step) -> list[tuple[str | None, int]]:
    return [(request.rid, request.prefix_len) for request in step.reqs or ()]


def _most_between(earlier: _Step, later: _Step) -> int:
    """The most decode steps that two recorded ones may have between them.

    Forwards between them may be prefills; and every decode step gives each running request a token, so one that is in
    both steps has not missed more of them than it has tokens that neither explains.
    """
    ends = {request.rid: request.prefix_len + request.acc_len for request in earlier.reqs or () if request.rid}
    grown = [request.prefix_len - ends[request.rid] for request in later.reqs or () if request.rid in ends]
    return max(min([later.forward_ct - earlier.forward_ct - 1, *grown]), 0)


def rows_of(infos: Sequence[UpstreamInfo]) -> int:
    """Requests in all records of an answer: what makes it long, and a server slow to give it."""
    return sum(len(step.reqs or ()) for info in infos for step in info.records)


def _convert(step: _Step, requests: list[_Request], info: UpstreamInfo, rank: int) -> StepRecord:
    mode = step.mode or info.mode
    lengths = np.array([request.verify_len - 1 for request in requests], dtype=np.int32)
    accepted = np.array([request.correct_drafts for request in requests], dtype=np.int32)
    trimmed = np.array([request.cap_trim for request in requests], dtype=np.int32)
    rows = [request.confidence for request in requests]
    known = mode != "compact"  # the whole block was verified
    return StepRecord(
        step=step.forward_ct,
        rank=rank,
        mode=mode,
        slots=np.array([request.req_pool_index for request in requests], dtype=np.int32),
        rids=[request.rid or "" for request in requests],
        context_lengths=np.array([request.prefix_len for request in requests], dtype=np.int32),
        context_tokens=float(sum(request.prefix_len for request in requests)),
        confidence=None if None in rows else np.array(rows, dtype=np.float32),
        policy=UPSTREAM_POLICY if mode != "static" else f"fixed:k={info.gamma}",
        lengths=lengths,
        accepted=accepted,
        depth=accepted + trimmed if known else None,
        graph_tokens=max(step.verify_tokens_graph_key, 0),
        draft_s=_seconds(step.draft_gpu_ms),
        verify_s=_seconds(step.target_verify_gpu_ms),
        step_s=_seconds(step.step_cpu_ms if step.step_cpu_ms is not None else step.step_gpu_ms),
    )


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1000.0
