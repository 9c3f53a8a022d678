"""The `simulate` command."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from sglang_dspark.command import run
from sglang_dspark.cost import TERMS, write_atomically
from sglang_dspark.errors import InputError
from sglang_dspark.policies import make_policy
from simulator import draft_options, options
from simulator.blocks.drafters import choose_drafter
from simulator.engine.settings import ROUTERS, SCHEDULES
from simulator.results.comparison import Comparison
from simulator.results.goodput import parse_slos
from simulator.results.report import json_lines, json_report, print_report
from simulator.results.timeline import write_timeline
from simulator.sensitivity import check_sensitivity
from simulator.sensitivity import sensitivity as vary
from simulator.simulate import compare_policies, prepare
from simulator.sustainable import check_find_rate, sustainable_rates
from simulator.traces import TRACE_FORMATS

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
DEFAULT_POLICIES = ("fixed:k=7", "early-stop", "hull", "argmax:lag=2")


@app.command(no_args_is_help=True)
def command(
    trace: Annotated[str, typer.Option(help="request trace (a file, gzip too), a folder of records, or `example`")],
    profile: Annotated[
        str, typer.Option(help="what the engine costs: a name (see `dspark profiles`), a file, or a folder of records")
    ],
    policy: Annotated[
        list[str] | None, typer.Option(help="policy such as hull:fill=true or a JSON file; repeat to compare")
    ] = None,
    policy_profile: Annotated[str | None, typer.Option(help="what the policies believe (default: --profile)")] = None,
    drafter: Annotated[str | None, typer.Option(help=draft_options.DRAFTER_HELP)] = None,
    acceptance: Annotated[str | None, typer.Option(help=draft_options.ACCEPTANCE_HELP)] = None,
    gamma: Annotated[
        int | None, typer.Option(help="draft block size, or positions of recorded blocks (default: the drafter's)")
    ] = None,
    complete: Annotated[
        bool, typer.Option("--complete", help="records: draw what trimmed blocks hide from their confidences")
    ] = False,
    concurrency: Annotated[int | None, typer.Option(help="closed loop with so many requests in flight")] = None,
    format: Annotated[
        str | None, typer.Option(help=f"trace format: {', '.join(TRACE_FORMATS)} (default: detected)")
    ] = None,
    time_unit: Annotated[str | None, typer.Option(help="unit of numeric stamps: s, ms (default: the format's)")] = None,
    jitter: Annotated[
        bool | None,
        typer.Option("--jitter/--no-jitter", help="spread stamps on a regular grid (default: if it is at most 1 s)"),
    ] = None,
    block_tokens: Annotated[
        int | None, typer.Option(help="tokens of a block of hash_ids (default: the format's, 512 or 16)")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="first so many requests")] = None,
    start: Annotated[float | None, typer.Option(help="time window of the trace, seconds")] = None,
    end: Annotated[float | None, typer.Option(help="end of the window, seconds")] = None,
    rate_scale: Annotated[float | None, typer.Option(help="multiply the arrival rate")] = None,
    request_rate: Annotated[
        float | None, typer.Option(help="Poisson arrivals, requests per second (inf: all at 0)")
    ] = None,
    domains: Annotated[str | None, typer.Option(help="shares, math=1,code=1,chat=2 (default: equal)")] = None,
    confidence: Annotated[str | None, typer.Option(help=draft_options.CONFIDENCE_HELP)] = None,
    cost: Annotated[str | None, typer.Option(help=f"override cost terms: {', '.join(TERMS)}")] = None,
    force_diagonal: Annotated[bool, typer.Option(help="price off-diagonal with a diagonal table")] = False,
    schedule: Annotated[str | None, typer.Option(help=f"{', '.join(SCHEDULES)} (default: by policy)")] = None,
    graphs: Annotated[
        str | None, typer.Option(help="whose CUDA graphs: sglang (default), profile, or batch sizes such as 1,2,4,8")
    ] = None,
    gpu_memory: Annotated[
        float | None, typer.Option(help="GiB of one GPU: SGLang sets graphs and chunk by it (default: the profile's)")
    ] = None,
    tp: Annotated[int | None, typer.Option(help="tensor-parallel size (default: the profile's)")] = None,
    max_running_requests: Annotated[
        int | None, typer.Option(help="default: SGLang's or as many as are in flight, or what the records say")
    ] = None,
    chunked_prefill_size: Annotated[
        int | None, typer.Option(help="tokens of a prefill chunk (default: SGLang's by GPU memory)")
    ] = None,
    max_prefill_tokens: Annotated[int | None, typer.Option(help="tokens of a prefill step (default: 16384)")] = None,
    prefill: Annotated[
        str | None, typer.Option(help="elsewhere[:MS]: a decode server, KV comes so many ms after sending")
    ] = None,
    no_prefix_cache: Annotated[
        bool, typer.Option("--no-prefix-cache", help="SGLang's --disable-radix-cache; for traces with hash_ids")
    ] = False,
    kv_tokens: Annotated[
        int | None, typer.Option(help="KV capacity of a replica with the draft (default: the profile's)")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(help="what every client asks for at most (default: the trace's, else what it gets)")
    ] = None,
    replicas: Annotated[int, typer.Option(help="data-parallel engine replicas")] = 1,
    router: Annotated[str | None, typer.Option(help=f"{' or '.join(ROUTERS)}; needs --replicas")] = None,
    dp_attention: Annotated[bool, typer.Option(help="replicas are ranks that step together")] = False,
    goodput: Annotated[
        list[str] | None,
        typer.Option(help='limits in ms by ttft, tpot, e2el: repeat ttft:500, or quote "ttft:500 tpot:50"'),
    ] = None,
    find_rate: Annotated[
        float | None, typer.Option(help="find the highest rate at which this share of requests meets --goodput")
    ] = None,
    sensitivity: Annotated[
        bool, typer.Option("--sensitivity", help="vary one assumption at a time: which of them flips the verdict?")
    ] = False,
    windows: Annotated[int, typer.Option(help="serve so many parts of the trace in turn: intervals cover them")] = 1,
    replications: Annotated[int | None, typer.Option(help="sets of draws (default: 5, or one a window)")] = None,
    seed: Annotated[int, typer.Option(help="of every draw")] = 0,
    jobs: Annotated[int | None, typer.Option(help="processes (default: one a core)")] = None,
    output: Annotated[Path | None, typer.Option(help="JSON lines, one a policy, bench_serving's keys")] = None,
    timeline: Annotated[Path | None, typer.Option(help="Chrome trace for ui.perfetto.dev (.json or .json.gz)")] = None,
    json: Annotated[bool, typer.Option("--json", help="the comparison as JSON on stdout instead of a table")] = False,
) -> None:
    """Serve a request trace under several verification policies and compare them on the same draws."""
    options.refuse_idle_flags(
        concurrency=concurrency,
        rate_scale=rate_scale,
        request_rate=request_rate,
        jitter=jitter,
        replicas=replicas,
        router=router,
        kv_tokens=kv_tokens,
        cost=cost,
        output=output,
        timeline=timeline,
    )
    for path in (output, timeline):
        _check_target(path)
    load = options.load(
        trace,
        seed,
        gamma,
        complete=complete,
        format=format,
        time_unit=time_unit,
        jitter=jitter,
        block_tokens=block_tokens,
        start_s=start,
        end_s=end,
        limit=limit,
        rate_scale=rate_scale,
        drafter=drafter,
        acceptance=acceptance,
        domains=domains,
        confidence=confidence,
    )
    options.refuse_idle_force([profile, policy_profile], force_diagonal=force_diagonal)
    terms = options.key_values("--cost", cost, TERMS)
    model = options.cost_model(profile, terms, force_diagonal=force_diagonal)
    belief = model if policy_profile is None else options.cost_model(policy_profile, {}, force_diagonal=force_diagonal)
    elsewhere_s = options.decode_server(
        prefill, chunked_prefill_size=chunked_prefill_size, max_prefill_tokens=max_prefill_tokens
    )
    engine = options.engine_settings(
        load,
        prefill_elsewhere_s=elsewhere_s,
        max_running_requests=max_running_requests,
        chunked_prefill_size=chunked_prefill_size,
        max_prefill_tokens=max_prefill_tokens,
        kv_tokens=kv_tokens,
        schedule=schedule,
        replicas=replicas,
        router=router,
        dp_attention=dp_attention or None,
        prefix_cache=False if no_prefix_cache else None,
    )
    drafts = choose_drafter(drafter, acceptance)
    setting = prepare(
        load,
        model,
        policy_profile=belief,
        drafter=drafter,
        acceptance=acceptance,
        gamma=gamma,
        concurrency=concurrency,
        request_rate=request_rate,
        engine=engine,
        seed=seed,
        domain_mix=draft_options.domain_mix(domains, load, drafts),
        confidence=draft_options.confidence_model(confidence, drafts),
        goodput=parse_slos(goodput) if goodput else None,
        graphs=options.graphs(graphs),
        gpu_memory_gib=gpu_memory,
        tp=tp,
        max_tokens=max_tokens,
        windows=windows,
    )
    policies = [make_policy(text) for text in policy or _defaults(setting.drafter.gamma)]
    options.refuse_unread(policies, policy_profile)
    draft_options.refuse_unread_confidence(policies, confidence)
    if sensitivity:
        check_sensitivity(policies)
    if find_rate is not None:
        check_find_rate(setting, find_rate)
    if replications is None:
        replications = 5 if windows == 1 else windows
    with _progress() as bar:
        task = bar.add_task("simulating", total=None)
        comparison = compare_policies(
            setting,
            policies,
            replications=replications,
            jobs=jobs,
            on_progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    if find_rate is not None:
        rates = sustainable_rates(setting, policies, find_rate, comparison.setting["replications"], jobs)
        stated = {**comparison.setting, "find_rate": find_rate}
        comparison = replace(comparison, sustainable=rates, setting=stated)
    if sensitivity:
        comparison = replace(comparison, sensitivity=vary(setting, policies, comparison, jobs))
    if timeline is not None:
        write_timeline(timeline, setting, policies)
    _deliver(comparison, output, json)


def main() -> None:
    """Entry point of the `simulate` command."""
    run(app)


def _deliver(comparison: Comparison, output: Path | None, as_json: bool) -> None:
    if output is not None:
        write_atomically(output, json_lines(comparison))
    if as_json:
        sys.stdout.write(json_report(comparison).decode() + "\n")
        return
    wide = Console()
    print_report(comparison, wide if wide.is_terminal else Console(width=160))


def _defaults(gamma: int) -> list[str]:
    return [text if not text.startswith("fixed") else f"fixed:k={gamma}" for text in DEFAULT_POLICIES]


def _check_target(path: Path | None) -> None:
    """Find out before the work that a result has nowhere to go."""
    if path is None:
        return
    if path.is_dir():
        raise InputError(f"cannot write {path}: is a directory")
    if not path.parent.is_dir():
        raise InputError(f"cannot write {path}: {path.parent} is no directory")


def _progress() -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=Console(stderr=True), transient=True)
