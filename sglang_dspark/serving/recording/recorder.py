"""The live recorder (`--speculative-dspark-record DIR`): what the observers see, as records on disk.

Runs on the scheduler's thread and only copies host values into a record and hands it to the writer's queue. Nothing it
does can raise into the engine. No torch, no sglang: requests are read by attribute.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

from sglang_dspark.cost import StepCost
from sglang_dspark.records import FORCED, Header, Lagged, RecordWriter, Shadow
from sglang_dspark.records import StepRecord as WrittenStep
from sglang_dspark.records.costs import cost_to_plain, table_hash
from sglang_dspark.serving.base.steps import StepRecord
from sglang_dspark.serving.recording.request_record import GREEDY_TOP_K, LiveRequest, request_record, wanted

_log = logging.getLogger(__name__)

_SWEEP_EVERY = 64  # decode steps between two looks for requests that ended without notice
_LATEST_S = 5.0  # an ended request waits no longer for the steps that report of it


class Recorder:
    """A `StepObserver` that writes every decode step and every finished request.

    mode: ragged-verify mode. schedule: when the decision is made. rank: data-parallel rank. cost, shadow: called for
    the present cost model and the shadow policy's text; begun: for the number of decode steps decided so far.
    explore: the coin's probability.
    texts: write prompts and outputs too; off unless the user asked for it.
    """

    def __init__(
        self,
        writer: RecordWriter,
        *,
        mode: str,
        schedule: str,
        rank: int,
        explore: float,
        cost: Callable[[], StepCost | None],
        shadow: Callable[[], str],
        begun: Callable[[], int],
        texts: bool = False,
    ) -> None:
        self.writer = writer
        self._mode, self._schedule, self._rank, self._explore, self._texts = mode, schedule, rank, explore, texts
        self._cost_now, self._shadow_text, self._begun = cost, shadow, begun
        self._cost: StepCost | None = None
        self._table = ""
        self._tiers: np.ndarray | None = None
        self._requests: dict[str, LiveRequest] = {}
        self._prefills: deque[tuple[float, int]] = deque()
        self._to_unix_s = time.time() - time.perf_counter()
        self._ending: deque[str] = deque()
        self._steps = 0
        self._seen = -1
        self._failed = False

    # --- StepObserver ----------------------------------------------------------------------------------------------

    def on_step(self, record: StepRecord) -> None:
        """Queue one decode step."""
        self._guarded(self._step, record)

    def on_prefill(self, reqs: list[Any], num_tokens: int) -> None:
        """Remember when a prefill began, and its requests."""
        self._guarded(self._prefill, reqs, num_tokens)

    def on_finished(self, rid: str, natural_stop: bool) -> None:
        """Queue one request, once the steps that it took part in have been seen."""
        self._guarded(self._end, rid)

    def on_switch(self, policy: str, since_step: int) -> None:
        """Every step names its policy."""

    # --- inside ----------------------------------------------------------------------------------------------------

    def _guarded(self, work: Callable[..., None], *arguments: Any) -> None:
        try:
            work(*arguments)
        except Exception:  # a recorder must never stop an engine
            if not self._failed:
                self._failed = True
                _log.exception("the recorder failed and goes on; this is said once")

    def _step(self, record: StepRecord) -> None:
        self._follow_cost()
        tokens, ago_s = self._prefills_before(record.began_s)
        decision, batch, sampling = record.decision, record.batch, record.sampling
        gamma = record.confidence.shape[1]
        fresh, anchor, ended = self._rows(record)
        draft_s = None
        if self._cost is not None and self._cost.splits_draft:
            draft_s = self._cost.draft_s(batch.num_requests, float(batch.context_tokens))
        predicted = decision.predicted_s
        self.writer.put(
            WrittenStep(
                step=record.step,
                time_s=record.began_s + self._to_unix_s,
                rank=self._rank,
                mode=self._mode,
                schedule=self._schedule,
                slots=batch.slots,
                generation=batch.generation,
                rids=record.rids,
                fresh=fresh,
                anchor=anchor,
                ended=ended,
                context_lengths=record.prefix_lengths,
                temperature=np.where(sampling.top_k == GREEDY_TOP_K, np.float32(0), sampling.temperature),
                top_p=sampling.top_p,
                policy=record.policy,
                carry=record.carry,
                table=self._table,
                context_tokens=float(batch.context_tokens),
                waiting=batch.waiting,
                confidence=record.confidence,
                lagged=[
                    Lagged(lag=lag, units=units.astype(np.int32), published=published)
                    for lag, (units, published) in record.lagged.items()
                ],
                override=_override(record, gamma),
                explore=decision.reason == "explore",
                explore_probability=self._explore,
                shadow=self._shadow(record),
                lengths=record.lengths,
                accepted=record.accepted,
                depth=record.uncapped if self._mode != "compact" else None,
                graph_tokens=record.executed_tier,
                tiers=self._tiers,
                predicted_step_s=predicted,
                predicted_draft_s=draft_s,
                predicted_verify_s=None if predicted is None or draft_s is None else predicted - draft_s,
                draft_s=record.draft_s,
                verify_s=record.verify_s,
                step_s=record.step_s,
                prefill_tokens=tokens,
                prefill_ago_s=ago_s,
            )
        )
        self._steps += 1
        if self._steps % _SWEEP_EVERY == 0:
            self._sweep()
        self._seen = record.step
        self._write_ended()

    def _rows(self, record: StepRecord) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """[R] no lagged survivals yet; [R] output tokens so far; [R] the request had ended. Counts the step."""
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
        return fresh, anchor, ended

    def _shadow(self, record: StepRecord) -> Shadow | None:
        if record.shadow is None or record.shadow.lengths is None:
            return None
        return Shadow(policy=self._shadow_text(), lengths=record.shadow.lengths)

    def _follow_cost(self) -> None:
        """The engine replaces its cost model once it knows its graphs."""
        cost = self._cost_now()
        if cost is self._cost or cost is None:
            return
        self._cost, self._table, self._tiers = cost, table_hash(cost), cost.captured
        self.writer.add_cost(self._table, cost_to_plain(cost))

    def _prefill(self, reqs: list[Any], num_tokens: int) -> None:
        self._prefills.append((time.perf_counter(), num_tokens))
        for req in reqs:
            if req.rid not in self._requests:
                self._requests[req.rid] = LiveRequest(req)
        self._sweep()

    def _prefills_before(self, began_s: float) -> tuple[np.ndarray | None, np.ndarray | None]:
        """[P] tokens of the prefills since the previous decode step, and [P] how long before this one they began."""
        found = []
        while self._prefills and self._prefills[0][0] < began_s:
            found.append(self._prefills.popleft())
        if not found:
            return None, None
        tokens = np.array([num_tokens for _, num_tokens in found], dtype=np.int32)
        return tokens, np.array([began_s - at_s for at_s, _ in found])

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
        self.writer.put(request_record(known, self._rank, self._to_unix_s, texts=self._texts))


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


def _override(record: StepRecord, gamma: int) -> str:
    """Why the policy did not decide this step, if it did not."""
    if record.decision.reason == "forced":
        return FORCED
    if record.decision.reason != "policy":
        return record.decision.reason
    whole = len(record.lengths) * gamma
    cut_short = record.decision.total is not None and record.decision.total < whole
    return "eager batch" if cut_short and int(record.lengths.sum()) == whole else ""


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
) -> Recorder:
    """The recorder of a running `PolicyEngine` (InputError if `folder` cannot be written).

    mode: ragged-verify mode. loop: SGLang's scheduler loop, "overlap" or "normal". rank: data-parallel rank. limits:
    what the engine resolved, such as kv_tokens and max_running_requests.
    """
    decider = engine.decider
    header = header_of(server_args, decider.gamma, decider.live.text, decider.cost, loop=loop)
    header.explore_probability = decider.explore
    header.engine.update(limits)
    return Recorder(
        RecordWriter(folder, header),
        mode=mode,
        schedule="no-overlap" if loop == "normal" else decider.schedule,
        rank=rank,
        explore=decider.explore,
        cost=lambda: decider.cost,
        shadow=lambda: "" if decider.shadow is None else decider.shadow.text,
        begun=lambda: decider.steps,
        texts=texts,
    )
