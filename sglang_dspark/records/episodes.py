"""Stretches of load in records, and what was measured in them, under the names of SGLang's bench_serving."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from sglang_dspark.errors import InputError
from sglang_dspark.records.reader import RecordSet
from sglang_dspark.records.schema import Header, RequestRecord, StepRecord
from sglang_dspark.records.steady import steady_window

IDLE_S = 1.0
"""A server without requests for so long has ended an episode."""

MIN_REQUESTS = 4
"""Fewer requests than that are a warm-up, no measurement."""

_FULL_SHARE = 0.9
_ANSWER_S = 0.05  # a client of a closed loop sends its next request within that


@dataclass
class Episode:
    """Requests of one server between two idle stretches, in order of arrival, and what their decode steps added up to.

    concurrency: requests in flight of a closed loop, None when arrivals did not follow finishes. policies, schedules,
    tables: decode steps by each. explore: the coin's probability. rows, committed: request-steps that still wanted
    tokens, and tokens they gave (bonus included, the last block cut at the requested length). emitted: (time, tokens)
    as they came.
    """

    header: Header
    requests: list[RequestRecord]
    concurrency: int | None = None
    policies: dict[str, int] = field(default_factory=dict)
    schedules: dict[str, int] = field(default_factory=dict)
    tables: dict[str, int] = field(default_factory=dict)
    explore: float = 0.0
    rows: int = 0
    committed: int = 0
    steps: int = 0
    emitted: list[tuple[float, int]] = field(default_factory=list)

    def add(self, step: StepRecord, wanted: dict[str, int]) -> None:
        """Count a decode step; wanted: output length by request."""
        assert step.rids is not None and step.anchor is not None
        limit = np.array([wanted.get(rid, 0) for rid in step.rids])
        left = np.where(step.anchor > 0, limit - step.anchor, 0)
        tokens = int(np.minimum(step.accepted + 1, np.maximum(left, 0)).sum())
        self.rows += int((left > 0).sum())
        self.committed += tokens
        self.steps += 1
        self.explore = step.explore_probability
        took_s = step.step_s or (step.draft_s or 0.0) + (step.verify_s or 0.0)
        self.emitted.append((step.time_s + took_s, tokens))
        for counts, key in ((self.policies, step.policy), (self.schedules, step.schedule), (self.tables, step.table)):
            counts[key] = counts.get(key, 0) + 1

    def figures(self) -> dict[str, float]:
        """mean_tpot_ms, mean_ttft_ms, accept_length (bonus included), and output_throughput (tokens/s) of the whole
        load; of a closed loop also steady_output_throughput (NaN where it has no steady window)."""
        requests = self.requests
        several = [request for request in requests if request.output_length > 1]
        tpot = [(r.finish_time_s - _first(r)) / (r.output_length - 1) for r in several]
        ttft = [_first(r) - r.arrival_time_s for r in requests]
        duration = max(request.finish_time_s for request in requests) - requests[0].arrival_time_s
        out = {
            "output_throughput": sum(request.output_length for request in requests) / duration,
            "mean_tpot_ms": 1e3 * float(np.mean(tpot)) if tpot else float("nan"),
            "mean_ttft_ms": 1e3 * float(np.mean(ttft)),
            "accept_length": self.committed / self.rows if self.rows else float("nan"),
        }
        return out if self.concurrency is None else out | {"steady_output_throughput": self._steady_throughput()}

    def _steady_throughput(self) -> float:
        """Tokens a second of the steady window, counted when they came."""
        sent, first, finish = (
            np.array([at(request) for request in self.requests])
            for at in (lambda r: r.arrival_time_s, _first, lambda r: r.finish_time_s)
        )
        slots, ranks = (self.header.engine.get(name) for name in ("max_running_requests", "attn_dp_size"))
        most = slots * (ranks if isinstance(ranks, int) else 1) if isinstance(slots, int) else 0
        full = min(self.concurrency or 1, most if most > 0 else len(sent))
        window = steady_window(sent, first, finish, full, grace_s=_ANSWER_S)
        if window is None:
            return float("nan")
        begin, end = window
        came = [(at, 1) for at in first.tolist()] + self.emitted
        return sum(count for at, count in came if begin <= at <= end) / (end - begin)


def find_episodes(records: RecordSet, chosen: Callable[[Episode], bool] = lambda episode: True) -> list[Episode]:
    """Episodes of records, with their decode steps counted; `chosen` leaves others out before steps are read.

    Errors: InputError if the records hold no requests or no request rows in their steps.
    """
    by_server: dict[str, list[tuple[Header, RequestRecord]]] = {}
    for header, request in records.requests_with_headers():
        if not request.rid.startswith("HEALTH_CHECK"):
            by_server.setdefault(header.server, []).append((header, request))
    episodes = [episode for pairs in by_server.values() for episode in _split(pairs) if chosen(episode)]
    if not episodes:
        raise InputError(
            f"the records hold no load of at least {MIN_REQUESTS} requests that fits, expected a recorded run"
        )
    where = {(episode.header.server, r.rid): episode for episode in episodes for r in episode.requests}
    wanted = {request.rid: request.output_length for episode in episodes for request in episode.requests}
    for header, step in records.steps():
        if step.rids is None or step.anchor is None:
            continue
        for rid in step.rids:
            episode = where.get((header.server, rid))
            if episode is not None:
                episode.add(step, wanted)
                break
    return episodes


def _split(pairs: list[tuple[Header, RequestRecord]]) -> list[Episode]:
    """Cut at idle stretches."""
    pairs = sorted(pairs, key=lambda pair: pair[1].arrival_time_s)
    groups: list[list[tuple[Header, RequestRecord]]] = []
    busy_until = -float("inf")
    for header, request in pairs:
        if request.arrival_time_s > busy_until + IDLE_S:
            groups.append([])
        groups[-1].append((header, request))
        busy_until = max(busy_until, request.finish_time_s)
    episodes = [Episode(group[0][0], [request for _, request in group]) for group in groups]
    episodes = [episode for episode in episodes if len(episode.requests) >= MIN_REQUESTS]
    for episode in episodes:
        episode.concurrency = closed_loop(episode.requests)
    return episodes


def closed_loop(requests: list[RequestRecord]) -> int | None:
    """The concurrency of a closed loop, or None.

    A closed loop sends C requests, then one for every finish: never more than C are in flight, and C nearly always
    until the last one is sent.
    """
    events = sorted([(r.finish_time_s, 0) for r in requests] + [(r.arrival_time_s, 1) for r in requests])
    first_finish = min(request.finish_time_s for request in requests)
    before = sum(request.arrival_time_s < first_finish for request in requests)
    last_arrival, inflight, area, most = requests[-1].arrival_time_s, 0, 0.0, 0
    full_from = requests[before - 1].arrival_time_s if before else 0.0
    previous = full_from
    for at, arrives in events:
        if full_from < at <= last_arrival:
            area += inflight * (at - previous)
            previous = at
        inflight += 1 if arrives else -1
        most = max(most, inflight)
    if before == len(requests):
        return before  # all at once: a closed loop whose queue is empty at once
    span = last_arrival - full_from
    return before if most == before and (span <= 0 or area / span >= _FULL_SHARE * before) else None


def _first(request: RequestRecord) -> float:
    return request.first_token_time_s if request.first_token_time_s is not None else request.finish_time_s
