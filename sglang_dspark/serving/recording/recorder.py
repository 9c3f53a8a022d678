"""The live recorder (`--speculative-dspark-record DIR`): what the observers see, as records on disk.

Runs on the scheduler's thread and only copies host values into a record and hands it to the writer's queue. What it
raises, `feedback.observers` catches and counts. No torch, no sglang: requests are read by attribute.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from sglang_dspark.cost import StepCost
from sglang_dspark.records import Header, RecordWriter, WriterLimits
from sglang_dspark.records import StepRecord as WrittenStep
from sglang_dspark.records.costs import cost_to_plain, table_hash
from sglang_dspark.serving.base.steps import StepRecord
from sglang_dspark.serving.recording.request_record import LiveRequest, request_record, sent_by_server, wanted
from sglang_dspark.serving.recording.step_fields import (
    Believed,
    Circumstances,
    Rows,
    batch_fields,
    decision_fields,
    outcome_fields,
    time_fields,
)

_SWEEP_EVERY = 64  # decode steps between two looks for requests that ended without notice
_NAMES_KEPT = 4096
_LATEST_S = 5.0  # an ended request waits no longer for the steps that report of it


class _Recent(set[str]):
    """Names of requests; old ones are forgotten, as a server is asked for its health for as long as it lives."""

    def update(self, *others: Iterable[str]) -> None:
        """Add names."""
        if len(self) > _NAMES_KEPT:
            self.clear()
        super().update(*others)


class Recorder:
    """A `StepObserver` that writes every decode step and every finished request.

    mode: ragged-verify mode. loop: SGLang's, "overlap" or "normal". rank: data-parallel rank. cost, shadow: called for
    the present cost model and the shadow policy's text; begun: for the number of decode steps decided so far.
    explore: the coin's probability.
    texts: write prompts and outputs too; off unless the user asked for it.
    """

    def __init__(
        self,
        writer: RecordWriter,
        *,
        mode: str,
        loop: str,
        rank: int,
        explore: float,
        cost: Callable[[], StepCost | None],
        shadow: Callable[[], str],
        begun: Callable[[], int],
        texts: bool = False,
    ) -> None:
        self.writer = writer
        self._run = Circumstances(mode, loop, rank, explore, time.time() - time.perf_counter())
        self._texts = texts
        self._cost_now, self._shadow_text, self._begun = cost, shadow, begun
        self._believed = Believed()
        self._requests: dict[str, LiveRequest] = {}
        self._servers_own = _Recent()
        self._prefills: deque[tuple[float, int]] = deque()
        self._ending: deque[str] = deque()
        self._steps = 0
        self._seen = -1

    def state(self) -> dict[str, Any]:
        """What the server shows of its recording. stalled: records cannot be written now, and wait or are dropped."""
        stats = self.writer.stats
        return {
            "folder": str(self.writer.folder),
            "written": stats.written,
            "dropped": stats.dropped,
            "bytes": stats.packed_bytes,
            "stalled": bool(stats.problem),
            "problem": stats.problem,
        }

    # --- StepObserver ----------------------------------------------------------------------------------------------

    def on_step(self, record: StepRecord) -> None:
        """Queue one decode step, unless all of its requests are SGLang's own."""
        if self._servers_own.issuperset(record.rids):
            return
        self._follow_cost()
        self.writer.put(
            WrittenStep(
                **batch_fields(record, self._run, self._rows(record)),
                **decision_fields(record, self._run, self._believed, self._shadow_text()),
                **outcome_fields(record, self._run),
                **time_fields(record, self._prefills_before(record.began_s)),
            )
        )
        self._steps += 1
        if self._steps % _SWEEP_EVERY == 0:
            self._sweep()
        self._seen = record.step
        self._write_ended()

    def on_prefill(self, reqs: list[Any], num_tokens: int) -> None:
        """Remember when a prefill began, and its requests."""
        self._servers_own.update(req.rid for req in reqs if sent_by_server(req))
        reqs = [req for req in reqs if req.rid not in self._servers_own]
        if reqs:
            self._prefills.append((time.perf_counter(), num_tokens))
        for req in reqs:
            if req.rid not in self._requests:
                self._requests[req.rid] = LiveRequest(req)
        self._sweep()

    def on_finished(self, rid: str, natural_stop: bool) -> None:
        """Queue one request, once the steps that it took part in have been seen."""
        self._end(rid)

    def on_switch(self, policy: str, since_step: int) -> None:
        """Every step names its policy."""

    # --- inside ----------------------------------------------------------------------------------------------------

    def _rows(self, record: StepRecord) -> Rows:
        """What the requests' own bookkeeping says by row. Counts the step."""
        count = len(record.rids)
        fresh, ended = np.zeros(count, dtype=bool), np.zeros(count, dtype=bool)
        anchor = np.full(count, -1, dtype=np.int32)
        rows = zip(
            record.rids, record.prefix_lengths.tolist(), record.lengths.tolist(), record.accepted.tolist(), strict=True
        )
        for row, (rid, prefix, length, accepted) in enumerate(rows):
            known = self._requests.get(rid)
            if known is None:
                continue
            fresh[row] = known.num_steps == 0
            # The anchor itself is not in the KV cache yet.
            anchor[row] = prefix + 1 - len(known.req.origin_input_ids)
            ended[row] = known.last_step is not None and anchor[row] >= wanted(known.req)
            known.num_steps += 1
            known.num_draft_tokens += length
            known.num_accepted += accepted
        if record.lagged:  # a request that was retracted and came back has none either
            fresh = ~record.lagged[min(record.lagged)][1]
        return Rows(fresh, anchor, ended)

    def _follow_cost(self) -> None:
        """The engine replaces its cost model once it knows its graphs."""
        cost = self._cost_now()
        if cost is self._believed.cost or cost is None:
            return
        self._believed = Believed(table_hash(cost), cost.captured, cost)
        self.writer.add_cost(self._believed.table, cost_to_plain(cost))

    def _prefills_before(self, began_s: float) -> list[tuple[float, int]]:
        """(when it began, new tokens) of the prefills since the previous decode step."""
        found = []
        while self._prefills and self._prefills[0][0] < began_s:
            found.append(self._prefills.popleft())
        return found

    def _sweep(self) -> None:
        """Requests that ended without a decode step (one token asked, aborted) are not announced."""
        for rid in [rid for rid, known in self._requests.items() if known.last_step is None and known.req.finished()]:
            self._end(rid)
        self._write_ended()

    def _end(self, rid: str) -> None:
        """A request ended; steps already begun still report of it."""
        known = self._requests.get(rid)
        if known is not None and known.last_step is None:
            known.last_step = self._begun() - 1
            known.ended_s = time.perf_counter()
            self._ending.append(rid)

    def _write_ended(self) -> None:
        while self._ending:
            known = self._requests[self._ending[0]]
            assert known.last_step is not None
            if known.last_step > self._seen and time.perf_counter() - known.ended_s < _LATEST_S:
                return
            self._finish(self._ending.popleft())

    def _finish(self, rid: str) -> None:
        known = self._requests.pop(rid)
        self.writer.put(request_record(known, self._run.rank, self._run.to_unix_s, texts=self._texts))


def header_of(server_args: Any, gamma: int, policy: str, cost: StepCost | None, *, loop: str) -> Header:
    """The header of a live run: what a reader must know of the server. `loop`: SGLang's scheduler loop."""
    from sglang_dspark import __version__

    kept = (
        "model_path",
        "speculative_draft_model_path",
        "tp_size",
        "dp_size",
        "max_running_requests",
        "context_length",
        "chunked_prefill_size",
        "max_prefill_tokens",
        "max_total_tokens",
        "page_size",
        "attention_backend",
        "device",
        "dtype",
        "quantization",
        "kv_cache_dtype",
        "random_seed",
        "disable_radix_cache",
        "disable_overlap_schedule",
    )
    engine = {name: getattr(server_args, name, None) for name in kept}
    engine = {name: value for name, value in engine.items() if isinstance(value, str | int | float | bool)}
    path = getattr(server_args, "speculative_dspark_confidence_sts_path", None)
    return Header(
        software=f"sglang-dspark {__version__}",
        gamma=gamma,
        policy=policy,
        profile="" if cost is None else cost.name,
        profile_meta={} if cost is None else cost.meta,
        temperatures=_temperatures(path),
        engine={**engine, "loop": loop},
        block_verification=bool(getattr(server_args, "speculative_use_block_verification", False)),
    )


def _temperatures(path: str | None) -> list[float]:
    if path is None:
        return []
    from pathlib import Path

    from sglang_dspark.calibration import read_sts

    return read_sts(Path(path)).temperatures


def writer_limits(keep_bytes: int | None) -> WriterLimits:
    """Files small enough that removing the oldest one at a time keeps near the limit."""
    plain = WriterLimits()
    if keep_bytes is None:
        return plain
    return replace(plain, total_bytes=keep_bytes, file_bytes=min(plain.file_bytes, keep_bytes // 4))


def start(
    folder: str,
    engine: Any,
    server_args: Any,
    *,
    mode: str,
    loop: str,
    rank: int,
    texts: bool,
    limits: dict[str, int],
    keep_bytes: int | None = None,
    group: str = "",
) -> Recorder:
    """The recorder of a running `PolicyEngine` (InputError if `folder` cannot be written).

    mode: ragged-verify mode. loop: SGLang's scheduler loop, "overlap" or "normal". rank: data-parallel rank. limits:
    what the engine resolved, such as kv_tokens and max_running_requests. keep_bytes: what the folder may hold. group:
    see `Header`.
    """
    decider = engine.decider
    header = header_of(server_args, decider.gamma, decider.live.text, decider.cost, loop=loop)
    header.explore_probability = decider.explore
    header.engine.update(limits)
    header.group = group
    return Recorder(
        RecordWriter(folder, header, writer_limits(keep_bytes)),
        mode=mode,
        loop=loop,
        rank=rank,
        explore=decider.explore,
        cost=lambda: decider.cost,
        shadow=lambda: "" if decider.shadow is None else decider.shadow.text,
        begun=lambda: decider.steps,
        texts=texts,
    )
