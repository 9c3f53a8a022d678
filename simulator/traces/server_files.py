"""What SGLang itself writes of a user's own traffic: its JSON request log, and bench_serving's output file.

sglang-log
    `--log-requests --log-requests-format json` (0.5.23, srt/utils/request_logger.py): the lines of the event
    `request.finished`, whatever stands before them or between them. A request arrives at its `request_received_ts`, or
    where that is missing `e2e_latency` before it was logged. `max_new_tokens` is there from level 1 on.
bench-serving
    The JSON lines of `sglang.bench_serving --output-file F --output-details` (benchmark/serving.py): lengths in the
    order of sending, no send times. Runs that were appended to one file follow each other.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec
import numpy as np

from sglang_dspark.errors import InputError
from simulator.traces.json_lines import json_keys
from simulator.traces.raw import RawRequests
from simulator.traces.source import Lines
from simulator.traces.trace import MAX_LENGTH

_FINISHED = '"event": "request.finished"'
_NANOSECONDS = 1_000_000_000


class _Meta(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    e2e_latency: float | None = None
    request_received_ts: float | None = None


class _Out(msgspec.Struct):
    meta_info: _Meta


class _Sampling(msgspec.Struct):
    max_new_tokens: int | None = None


class _Asked(msgspec.Struct):
    sampling_params: _Sampling | None = None


class _Logged(msgspec.Struct):
    timestamp: str
    rid: str
    out: _Out
    obj: _Asked = msgspec.field(default_factory=_Asked)


class SglangLog:
    """SGLang's JSON request log."""

    about = 'SGLang\'s JSON request log, {"timestamp": .., "event": "request.finished", ..}'
    time_unit = None

    def recognises(self, first_line: str) -> bool:
        """Whether the first line is one of the log's events, with or without a logger's stamp before it."""
        return {"timestamp", "event"} <= json_keys(_json_part(first_line))

    def read(self, lines: Lines, time_unit: str | None) -> RawRequests:
        """Read the finished requests. Raises InputError that names the line."""
        rows, unread = [], 0
        decode = msgspec.json.Decoder(_Logged).decode
        for line in lines:
            if _FINISHED not in line:
                continue
            try:
                logged = decode(_json_part(line))
            except msgspec.MsgspecError:
                unread += 1  # a batch, an embedding, a request that was aborted before it began
                continue
            if not logged.rid.startswith("HEALTH_CHECK"):
                rows.append((_received_ns(lines, logged), logged))
        if not rows:
            expected = "request.finished lines of --log-requests-format json"
            raise InputError(f"{lines.name}: expected {expected}, got none that tells its tokens")
        meta = [logged.out.meta_info for _, logged in rows]
        asked = [logged.obj.sampling_params and logged.obj.sampling_params.max_new_tokens for _, logged in rows]
        output = np.array([each.completion_tokens for each in meta], dtype=np.int64)
        notes = [f"log: {unread} finished requests do not tell their tokens and are left out"] if unread else []
        if None in asked:
            notes.append("log: max_new_tokens is not logged (it is from --log-requests-level 1 on)")
        cached = np.array([each.cached_tokens for each in meta], dtype=np.int64)
        prompt = np.array([each.prompt_tokens for each in meta], dtype=np.int64)
        return RawRequests(
            np.array([stamp for stamp, _ in rows], dtype=np.int64),
            prompt,
            output,
            per_second=_NANOSECONDS,
            request_id=tuple(logged.rid for _, logged in rows),
            cached_length=np.clip(cached, 0, np.maximum(prompt - 1, 0)) if cached.any() else None,
            max_tokens=None if None in asked else np.maximum(np.array(asked, dtype=np.int64), np.maximum(output, 1)),
            notes=tuple(notes),
        )


def _json_part(line: str) -> str:
    """The object of a line, without the stamp that a logger puts before it."""
    return line[line.find("{") :] if "{" in line else ""


def _received_ns(lines: Lines, logged: _Logged) -> int:
    meta = logged.out.meta_info
    if meta.request_received_ts is not None:
        whole, part = divmod(meta.request_received_ts, 1.0)
        return int(whole) * _NANOSECONDS + round(part * _NANOSECONDS)
    if meta.e2e_latency is None:
        raise lines.error("request_received_ts or e2e_latency in meta_info, got neither: when it came is unknown")
    try:
        finished = datetime.fromisoformat(logged.timestamp).timestamp()
    except ValueError:
        raise lines.error("an ISO date", logged.timestamp, column="timestamp") from None
    return round((finished - meta.e2e_latency) * _NANOSECONDS)


class BenchServing:
    """bench_serving's output file."""

    about = "JSON lines of bench_serving --output-details, with input_lens and output_lens"
    time_unit = None

    def recognises(self, first_line: str) -> bool:
        """Whether the first line is the result of a run, with or without its details."""
        return {"completed", "output_throughput", "total_output_tokens"} <= json_keys(first_line)

    def read(self, lines: Lines, time_unit: str | None) -> RawRequests:
        """Read the lengths of all runs. Raises InputError that names the line."""
        inputs: list[int] = []
        outputs: list[int] = []
        runs = 0
        for line in lines:
            if line.isspace():
                continue
            try:
                run: Any = msgspec.json.decode(line)
            except msgspec.MsgspecError as error:
                raise lines.error(f"one JSON object ({error})", line.strip()) from error
            prompts, answers = _lengths(lines, run, "input_lens"), _lengths(lines, run, "output_lens")
            if len(prompts) != len(answers):
                raise lines.error("as many output_lens as input_lens", len(answers), column="output_lens")
            inputs += prompts
            outputs += answers
            runs += 1
        if not inputs:
            raise lines.error("at least one request: the trace is empty")
        notes = ["bench_serving: send times are not in its file: a closed loop or --request-rate"]
        notes += [f"bench_serving: {runs} runs, one after the other"] if runs > 1 else []
        return RawRequests(
            None, np.array(inputs, dtype=np.int64), np.array(outputs, dtype=np.int64), notes=tuple(notes)
        )


def _lengths(lines: Lines, run: Any, key: str) -> list[int]:
    found = run.get(key) if isinstance(run, dict) else None
    if not isinstance(found, list) or not all(map(_is_length, found)):
        raise lines.error(f"{key}, a list of tokens: run bench_serving with --output-details")
    return found


def _is_length(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_LENGTH
