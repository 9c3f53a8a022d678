"""Flags that say what is served, and how it comes."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Annotated

import typer

from sglang_dspark.errors import InputError
from simulator.engine.recorded_load import RecordedLoad, holds_records, load_records
from simulator.flags.values import numbers
from simulator.inputs import Load
from simulator.results.goodput import parse_slos
from simulator.traces import (
    TRACE_FORMATS,
    Trace,
    example_trace,
    first_requests,
    load_trace,
    random_trace,
    scale_rate,
    window,
)

_OF_FILES = ("format", "time_unit", "jitter", "block_tokens")
_OF_RANDOM = ("random_output_len", "random_range_ratio")
PANEL = "Load"


@dataclass(frozen=True)
class LoadFlags:
    """The requests, how they come, and what is wanted of them."""

    trace: Annotated[
        str | None,
        typer.Option(
            "--trace",
            "--dataset-path",
            help="request trace (a file, gzip too), a folder of records, or `example`",
            rich_help_panel=PANEL,
        ),
    ] = None
    concurrency: Annotated[
        str | None,
        typer.Option(
            "--concurrency",
            "--max-concurrency",
            help="closed loop with so many requests in flight; several, such as 8,32,128, are a sweep",
            rich_help_panel=PANEL,
        ),
    ] = None
    request_rate: Annotated[
        str | None,
        typer.Option(
            help="Poisson arrivals, requests per second (inf: all at 0); several are a sweep", rich_help_panel=PANEL
        ),
    ] = None
    rate_scale: Annotated[float | None, typer.Option(help="multiply the arrival rate", rich_help_panel=PANEL)] = None
    limit: Annotated[
        int | None, typer.Option("--limit", "--num-prompts", help="first so many requests", rich_help_panel=PANEL)
    ] = None
    start: Annotated[float | None, typer.Option(help="time window of the trace, seconds", rich_help_panel=PANEL)] = None
    end: Annotated[float | None, typer.Option(help="end of the window, seconds", rich_help_panel=PANEL)] = None
    windows: Annotated[
        int,
        typer.Option(help="serve so many parts of the trace in turn: intervals cover them", rich_help_panel=PANEL),
    ] = 1
    goodput: Annotated[
        list[str] | None,
        typer.Option(
            help='limits in ms by ttft, tpot, e2el: repeat ttft:500, or quote "ttft:500 tpot:50"',
            rich_help_panel=PANEL,
        ),
    ] = None
    domains: Annotated[
        str | None, typer.Option(help="shares, math=1,code=1,chat=2 (default: equal)", rich_help_panel=PANEL)
    ] = None
    max_tokens: Annotated[
        int | None,
        typer.Option(
            help="what every client asks for at most (default: the trace's, else what it gets)", rich_help_panel=PANEL
        ),
    ] = None
    random_input_len: Annotated[
        int | None,
        typer.Option(help="no trace: prompts of so many tokens, as bench_serving draws them", rich_help_panel=PANEL),
    ] = None
    random_output_len: Annotated[
        int | None, typer.Option(help="no trace: answers of so many tokens", rich_help_panel=PANEL)
    ] = None
    random_range_ratio: Annotated[
        float | None,
        typer.Option(help="no trace: lengths are drawn from this share of them up (default: 1)", rich_help_panel=PANEL),
    ] = None
    format: Annotated[
        str | None,
        typer.Option(
            help=f"trace format: {', '.join(TRACE_FORMATS)} (default: detected)", rich_help_panel="Trace file"
        ),
    ] = None
    time_unit: Annotated[
        str | None,
        typer.Option(help="unit of numeric stamps: s, ms (default: the format's)", rich_help_panel="Trace file"),
    ] = None
    jitter: Annotated[
        bool | None,
        typer.Option(
            "--jitter/--no-jitter",
            help="spread stamps on a regular grid (default: if it is at most 1 s)",
            rich_help_panel="Trace file",
        ),
    ] = None
    block_tokens: Annotated[
        int | None,
        typer.Option(
            help="tokens of a block of hash_ids (default: the format's, 512 or 16)", rich_help_panel="Trace file"
        ),
    ] = None
    complete: Annotated[
        bool,
        typer.Option(
            "--complete",
            help="records: draw what trimmed blocks hide from their confidences",
            rich_help_panel="Trace file",
        ),
    ] = False

    def requests(self, seed: int, gamma: int | None) -> Trace | RecordedLoad:
        """The requests: first the window, then the limit, then the rate; of records with their acceptance."""
        self.refuse_idle()
        if self.trace is None:
            return self._random(seed)
        for name in (*_OF_RANDOM, "random_input_len"):
            if getattr(self, name) is not None:
                raise InputError(f"{_flag(name)} does nothing with --trace: give one of them")
        if self.trace != "example" and holds_records(self.trace):
            self._refuse(_OF_FILES, "records, which say it themselves")
            records = load_records(self.trace, window=gamma, complete=self.complete, seed=seed)
            return replace(records, trace=self._selected(records.trace))
        if self.complete:
            raise InputError(f"--complete does nothing with {self.trace}: only records have trimmed blocks")
        if self.trace != "example":
            return load_trace(
                self.trace,
                format=self.format,
                seed=seed,
                limit=self.limit,
                start_s=self.start,
                end_s=self.end,
                time_unit=self.time_unit,
                jitter=self.jitter,
                block_tokens=self.block_tokens,
                rate_scale=self.rate_scale,
            )
        self._refuse(_OF_FILES, "the embedded example")
        return self._selected(example_trace())

    def loads(self, requests: Trace | RecordedLoad, domain_mix: dict[str, float] | None) -> list[Load]:
        """One load, or those of a sweep."""
        one = Load(
            requests,
            domain_mix=domain_mix,
            max_tokens=self.max_tokens,
            goodput=parse_slos(self.goodput) if self.goodput else {},
            windows=self.windows,
        )
        if self.concurrency is not None:
            return [replace(one, concurrency=int(n)) for n in numbers("--concurrency", self.concurrency, whole=True)]
        if self.request_rate is not None:
            return [replace(one, request_rate=rate) for rate in numbers("--request-rate", self.request_rate)]
        return [one]

    def refuse_idle(self) -> None:
        """A flag that would do nothing is an error."""
        closed = self.concurrency is not None
        if closed and (self.rate_scale is not None or self.request_rate is not None):
            flag = "--rate-scale" if self.rate_scale is not None else "--request-rate"
            raise InputError(f"{flag} does nothing with --concurrency, which ignores arrival times: give one of them")
        if self.rate_scale is not None and self.request_rate is not None:
            raise InputError(
                "--rate-scale does nothing with --request-rate, which draws its own arrivals: give one of them"
            )
        if self.jitter is not None and (closed or self.request_rate is not None):
            flag = "--jitter" if self.jitter else "--no-jitter"
            other = "--concurrency" if closed else "--request-rate"
            raise InputError(f"{flag} does nothing with {other}, which ignores the trace's stamps: give one of them")

    def _random(self, seed: int) -> Trace:
        if self.random_input_len is None or self.random_output_len is None:
            raise InputError(
                "no load is given, expected --trace FILE (or example), or --random-input-len and --random-output-len"
            )
        self._refuse((*_OF_FILES, "start", "end", "rate_scale"), "--random-input-len, which has no file")
        if self.complete:
            raise InputError("--complete does nothing with --random-input-len: only records have trimmed blocks")
        ratio = 1.0 if self.random_range_ratio is None else self.random_range_ratio
        return random_trace(self.limit or 1000, self.random_input_len, self.random_output_len, ratio, seed)

    def _refuse(self, names: tuple[str, ...], what: str) -> None:
        for name in names:
            if getattr(self, name) is not None:
                flag = "--no-jitter" if name == "jitter" and self.jitter is False else _flag(name)
                raise InputError(f"{flag} does nothing with {what}")

    def _selected(self, trace: Trace) -> Trace:
        trace = first_requests(window(trace, self.start, self.end), self.limit)
        return trace if self.rate_scale is None else scale_rate(trace, self.rate_scale)


def _flag(name: str) -> str:
    assert name in {field.name for field in fields(LoadFlags)}
    return f"--{name.replace('_', '-')}"
