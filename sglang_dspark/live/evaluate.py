"""Evaluate a drafter on prompt files through a running server: what is accepted, and how good the confidences are.

The server verifies every block in full meanwhile (`fixed:k=gamma`, switched back afterwards), so that acceptance is not
censored. Accepted lengths come with the answers; positions and confidences from the server's records, or from SGLang's
own step records (`SGLANG_DSPARK_DEBUG_DUMP=all`, rounded to four decimals).
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sglang_dspark.calibration.quality import Quality, quality
from sglang_dspark.errors import InputError
from sglang_dspark.live.client import Answer, Server, read_prompts, run_closed_loop
from sglang_dspark.live.hold import held
from sglang_dspark.records import RecordSet, StepRecord, fault
from sglang_dspark.records.upstream import upstream_infos, upstream_steps
from sglang_dspark.statistics import accept_length

_FLUSH_S = 3.0  # the recorder's own flush, and a step on its way


@dataclass(frozen=True)
class Evaluation:
    """One data set. accept_length: accepted draft tokens per verify step over all requests, plus the bonus (Table 1).

    quality: of its full blocks, None when the server shows none.
    """

    name: str
    requests: int
    output_tokens: int
    accept_length: float
    seconds: float
    quality: Quality | None


@dataclass(frozen=True)
class EvalSettings:
    """How prompts are sent. limit: prompts a file; multi-turn prompts send every turn with the answers before it."""

    concurrency: int = 8
    max_new_tokens: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    limit: int | None = None
    seed: int = 0


def evaluate(
    server: Server,
    prompts: list[Path],
    settings: EvalSettings,
    records: Path | None = None,
    on_answer: Callable[[Answer], None] = lambda answer: None,
) -> list[Evaluation]:
    """Every prompt file as one data set. `records`: the folder that the server records into, on this machine.

    Errors: InputError for a server that cannot be reached, files that hold no prompts, or records without the answers.
    """
    data = [(path.stem, read_prompts(path, settings.limit)) for path in prompts]
    tag = secrets.token_hex(4)
    found: list[tuple[str, list[dict[str, Any]], float]] = []
    with _whole_blocks(server):
        for name, conversations in data:
            begun = time.perf_counter()
            metas = _ask(server, f"{name}/{tag}", conversations, settings, on_answer)
            found.append((name, metas, time.perf_counter() - begun))
    blocks = _recorded_blocks(records, tag) if records is not None else _shown_blocks(server, tag)
    return [_evaluation(name, metas, seconds, blocks.get(name)) for name, metas, seconds in found]


def _ask(
    server: Server,
    prefix: str,
    conversations: list[list[str]],
    settings: EvalSettings,
    on_answer: Callable[[Answer], None],
) -> list[dict[str, Any]]:
    """Answers' meta_info of every turn; turn t of all conversations is sent before turn t + 1 of any."""
    sampling = {
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "max_new_tokens": settings.max_new_tokens,
    }
    metas: list[dict[str, Any]] = []
    texts = {number: "" for number in range(len(conversations))}
    for turn in range(max(map(len, conversations))):
        asked = [number for number, turns in enumerate(conversations) if len(turns) > turn]
        bodies = []
        for number in asked:
            texts[number] += ("\n" if turn else "") + conversations[number][turn]
            bodies.append({"text": texts[number], "sampling_params": sampling, "rid": f"{prefix}-{number}-{turn}"})
        for answer in run_closed_loop(server, bodies, settings.concurrency, on_answer):
            texts[asked[answer.number]] += answer.text
            metas.append(answer.meta)
    return metas


@contextmanager
def _whole_blocks(server: Server) -> Iterator[None]:
    """Verify every block in full for a while, where the server's policy can be switched."""
    try:
        gamma = int(server.dspark()[0]["gamma"])
        server.policy()
    except InputError:
        yield  # an unmodified server: static mode verifies in full, cap-accept shows the full depth
        return
    with held(server) as hold:
        hold.switch(f"fixed:k={gamma}")
        yield
        hold.check()


Rows = dict[str, tuple[int, list[np.ndarray], list[np.ndarray | None]]]


def _collect(rows: Rows, step: StepRecord, tag: str, gamma: int) -> None:
    if step.rids is None or not step.uncensored(gamma):
        return
    depth, confidence = step.uncapped_depth(gamma), step.confidence
    for row, rid in enumerate(step.rids):
        name, _, rest = rid.rpartition("/")
        if not rest.startswith(tag) or depth[row] < 0 or (step.ended is not None and step.ended[row]):
            continue
        _, depths, confidences = rows.setdefault(name, (gamma, [], []))
        depths.append(depth[row])
        confidences.append(None if confidence is None else confidence[row])


def _recorded_blocks(folder: Path, tag: str) -> dict[str, Quality]:
    time.sleep(_FLUSH_S)
    rows: Rows = {}
    for header, step in RecordSet(folder).steps():
        _collect(rows, step, tag, header.gamma)
    if not rows:
        raise InputError(f"{folder} holds no full block of these prompts: is it the folder of this server?")
    return _qualities(rows)


def _shown_blocks(server: Server, tag: str) -> dict[str, Quality]:
    """From SGLang's own records, where the server keeps them."""
    try:
        infos = upstream_infos(server.get("/server_info"))
    except InputError:
        return {}
    rows: Rows = {}
    for rank, info in enumerate(infos):
        for step in upstream_steps(info, rank):
            wrong = fault(step, info.gamma)
            if wrong is not None:
                raise InputError(f"{server.url}/server_info shows step {step.step}: {wrong}")
            _collect(rows, step, tag, info.gamma)
    return _qualities(rows)


def _qualities(rows: Rows) -> dict[str, Quality]:
    out = {}
    for name, (gamma, depths, confidences) in rows.items():
        known = [row for row in confidences if row is not None]
        confidence = np.stack(known) if len(known) == len(confidences) else None
        out[name] = quality(np.array(depths, dtype=np.int64), confidence, gamma)
    return out


def _evaluation(name: str, metas: list[dict[str, Any]], seconds: float, found: Quality | None) -> Evaluation:
    """SGLang gives an answer's speculative counts together, and only where a step was verified."""
    names = ("completion_tokens", "spec_num_correct_drafts", "spec_verify_ct")
    tokens, accepted, steps = (sum(int(meta.get(key, 0)) for meta in metas) for key in names)
    return Evaluation(name, len(metas), tokens, accept_length(accepted, steps), seconds, found)
