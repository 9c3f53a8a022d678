"""One decode step as a record, in four groups: who was in it, what was decided, what came of it, how long it took.

Each group is a function that names its fields; a test holds that together they name every field of the record once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sglang_dspark.cost import StepCost
from sglang_dspark.records import FORCED, Lagged, Shadow
from sglang_dspark.serving.base.steps import StepRecord
from sglang_dspark.serving.recording.request_record import GREEDY_TOP_K


@dataclass(frozen=True)
class Circumstances:
    """What holds for every step of a run. mode: ragged-verify mode. loop: SGLang's, "overlap" or "normal". rank:
    data-parallel rank. explore: the coin's probability. to_unix_s: Unix time of time.perf_counter() 0."""

    mode: str
    loop: str
    rank: int
    explore: float
    to_unix_s: float


@dataclass(frozen=True)
class Rows:
    """By row, [R]. fresh: no lagged survivals yet. anchor: output tokens so far. ended: the request had ended."""

    fresh: np.ndarray
    anchor: np.ndarray
    ended: np.ndarray


@dataclass(frozen=True)
class Believed:
    """The step-cost model in use: its hash, its captured sizes [G], and itself; none is an empty hash and None."""

    table: str = ""
    tiers: np.ndarray | None = None
    cost: StepCost | None = None


def batch_fields(record: StepRecord, run: Circumstances, rows: Rows) -> dict[str, Any]:
    """Which requests were in the step, and under which circumstances."""
    batch, sampling = record.batch, record.sampling
    return {
        "step": record.step,
        "time_s": record.began_s + run.to_unix_s,
        "rank": run.rank,
        "mode": run.mode,
        "schedule": "no-overlap" if run.loop == "normal" else record.schedule,
        "slots": batch.slots,
        "generation": batch.generation,
        "rids": record.rids,
        "fresh": rows.fresh,
        "anchor": rows.anchor,
        "ended": rows.ended,
        "context_lengths": record.prefix_lengths,
        "temperature": np.where(sampling.top_k == GREEDY_TOP_K, np.float32(0), sampling.temperature),
        "top_p": sampling.top_p,
        "context_tokens": float(batch.context_tokens),
        "waiting": batch.waiting,
        "caps": batch.caps,
    }


def decision_fields(record: StepRecord, run: Circumstances, believed: Believed, shadow: str) -> dict[str, Any]:
    """Who decided, on what it decided, and what it expected. shadow: the shadow policy's text."""
    predicted, draft_s = record.decision.predicted_s, _draft_s(record, believed.cost)
    return {
        "policy": record.policy,
        "carry": record.carry,
        "table": believed.table,
        "tiers": believed.tiers,
        "confidence": record.confidence,
        "lagged": [
            Lagged(lag=lag, units=units.astype(np.int32), published=published)
            for lag, (units, published) in record.lagged.items()
        ],
        **_group(record),
        "override": override_of(record),
        "explore": record.decision.reason == "explore",
        "explore_probability": run.explore,
        "shadow": _shadow(record, shadow),
        "predicted_step_s": predicted,
        "predicted_draft_s": draft_s,
        "predicted_verify_s": None if predicted is None or draft_s is None else predicted - draft_s,
    }


def outcome_fields(record: StepRecord, run: Circumstances) -> dict[str, Any]:
    """What was verified and accepted, and the graph that ran."""
    return {
        "lengths": record.lengths,
        "accepted": record.accepted,
        "depth": record.uncapped if run.mode != "compact" else None,
        "graph_tokens": record.executed_tier,
    }


def time_fields(record: StepRecord, prefills: list[tuple[float, int]]) -> dict[str, Any]:
    """What was measured. prefills: (when it began, new tokens) of each prefill since the previous decode step."""
    return {
        "draft_s": record.draft_s,
        "verify_s": record.verify_s,
        "step_s": record.step_s,
        "prefill_tokens": np.array([tokens for _, tokens in prefills], dtype=np.int32) if prefills else None,
        "prefill_ago_s": np.array([record.began_s - at_s for at_s, _ in prefills]) if prefills else None,
    }


def _group(record: StepRecord) -> dict[str, Any]:
    """What the ranks of a DP-attention group asked for."""
    asked = record.asked
    return {
        "asked_tokens": None if asked is None else np.array(asked.tokens, dtype=np.int32),
        "asked_requests": None if asked is None else np.array(asked.requests, dtype=np.int32),
        "shared_tier": record.shared_tier,
    }


def override_of(record: StepRecord) -> str:
    """Why the policy did not decide this step, if it did not."""
    if record.decision.reason == "forced":
        return FORCED
    if record.decision.reason != "policy":
        return record.decision.reason
    whole = int(record.confidence.size)
    cut_short = record.decision.total is not None and record.decision.total < whole
    return "eager batch" if cut_short and int(record.lengths.sum()) == whole else ""


def _shadow(record: StepRecord, text: str) -> Shadow | None:
    if record.shadow is None or record.shadow.lengths is None:
        return None
    return Shadow(policy=text, lengths=record.shadow.lengths)


def _draft_s(record: StepRecord, cost: StepCost | None) -> float | None:
    if cost is None or not cost.splits_draft:
        return None
    return cost.draft_s(record.batch.num_requests, float(record.batch.context_tokens))
