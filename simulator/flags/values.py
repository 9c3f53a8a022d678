"""Command-line values of `simulate` that are more than a number: key=value lists, and flags that need each other."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from sglang_dspark.cost import TERMS, StepCost
from sglang_dspark.errors import InputError
from sglang_dspark.policies import Policy
from simulator.engine.recorded_load import RecordedLoad, holds_records, load_records
from simulator.engine.settings import EngineSettings
from simulator.simulate import find_cost
from simulator.traces import Trace, example_trace, first_requests, load_trace, scale_rate, window

_PRICELESS = ("none", "fixed", "threshold", "schedule", "tetris")


def key_values(flag: str, text: str | None, known: Mapping[str, object] | tuple[str, ...]) -> dict[str, float]:
    """`a=1,b=2` as numbers; InputError names the flag and what it takes."""
    out: dict[str, float] = {}
    for item in text.split(",") if text else ():
        key, _, value = (part.strip() for part in item.partition("="))
        if key not in known:
            raise InputError(f"{flag}: '{item}' is refused, expected {', '.join(f'{name}=NUMBER' for name in known)}")
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise InputError(f"{flag}: {key}='{value}' is refused, expected a finite number")
        if key in out:
            raise InputError(f"{flag}: '{key}' is given twice")
        out[key] = number
    return out


def load(
    trace: str,
    seed: int,
    gamma: int | None,
    *,
    complete: bool,
    format: str | None,
    time_unit: str | None,
    jitter: bool | None,
    block_tokens: int | None,
    start_s: float | None,
    end_s: float | None,
    limit: int | None,
    rate_scale: float | None,
    **said_by_records: str | None,
) -> Trace | RecordedLoad:
    """The requests of `--trace`: first the window, then the limit, then the rate; of records with their acceptance."""
    of_files: dict[str, str | bool | int | None] = {
        "format": format,
        "time-unit": time_unit,
        "no-jitter" if jitter is False else "jitter": jitter,
        "block-tokens": block_tokens,
    }
    if trace != "example" and holds_records(trace):
        for flag, value in (of_files | said_by_records).items():
            if value is not None:
                raise InputError(f"--{flag} does nothing with records, which say it themselves")
        records = load_records(trace, window=gamma, complete=complete, seed=seed)
        return replace(records, trace=selected(records.trace, start_s, end_s, limit, rate_scale))
    if complete:
        raise InputError(f"--complete does nothing with {trace}: only records have trimmed blocks")
    if trace != "example":
        return load_trace(
            trace,
            format=format,
            seed=seed,
            limit=limit,
            start_s=start_s,
            end_s=end_s,
            time_unit=time_unit,
            jitter=jitter,
            block_tokens=block_tokens,
            rate_scale=rate_scale,
        )
    for flag, value in of_files.items():
        if value is not None:
            raise InputError(f"--{flag} does nothing with the embedded example")
    return selected(example_trace(), start_s, end_s, limit, rate_scale)


def selected(trace: Trace, start_s: float | None, end_s: float | None, limit: int | None, rate: float | None) -> Trace:
    """First the window, then the limit, then the rate."""
    trace = first_requests(window(trace, start_s, end_s), limit)
    return trace if rate is None else scale_rate(trace, rate)


def engine_settings(load: Trace | RecordedLoad, **flags: float | str | bool | None) -> EngineSettings:
    """The flags that were given, over what records say of their server, over SGLang's defaults."""
    known = load.engine if isinstance(load, RecordedLoad) else EngineSettings()
    given = {name: value for name, value in flags.items() if value is not None}
    return replace(known, **given)  # type: ignore[arg-type]


def decode_server(text: str | None, **flags: int | None) -> float | None:
    """Seconds of `--prefill elsewhere[:MS]`; flags: those of a server that prefills itself, which then do nothing."""
    if text is None:
        return None
    word, colon, delay = text.partition(":")
    try:
        seconds = float(delay) / 1e3 if colon else 0.0
    except ValueError:
        seconds = math.nan
    if word != "elsewhere" or not 0 <= seconds < math.inf:
        raise InputError(f"--prefill {text} is refused, expected elsewhere or elsewhere:MILLISECONDS")
    for flag, value in flags.items():
        if value is not None:
            name = flag.replace("_", "-")
            raise InputError(f"--{name} does nothing with --prefill elsewhere, where nothing is prefilled")
    return seconds


def graphs(text: str | None) -> str | list[int] | None:
    """`--graphs`: a word, or batch sizes."""
    if text is None or text.isalpha():
        return text
    try:
        return [int(size) for size in text.split(",")]
    except ValueError:
        raise InputError(f"--graphs '{text}' is refused, expected sglang, profile or sizes such as 1,2,4,8") from None


def cost_model(name: str, terms: dict[str, float], *, force_diagonal: bool) -> StepCost:
    """A profile with the user's terms on top."""
    cost = find_cost(name, force_diagonal=force_diagonal)
    return cost.with_terms(**terms) if terms else cost


def refuse_idle_force(names: list[str | None], *, force_diagonal: bool) -> None:
    """--force-diagonal where no profile is diagonal would do nothing."""
    if force_diagonal and not any(find_cost(name).diagonal for name in names if name is not None):
        raise InputError("--force-diagonal does nothing here: no profile was measured only at B = R (1 + gamma)")


def refuse_idle_flags(
    *,
    concurrency: int | None,
    rate_scale: float | None,
    request_rate: float | None,
    jitter: bool | None,
    replicas: int,
    router: str | None,
    kv_tokens: int | None,
    cost: str | None,
    output: Path | None,
    timeline: Path | None,
) -> None:
    """A flag that would do nothing is an error."""
    if concurrency is not None and (rate_scale is not None or request_rate is not None):
        flag = "--rate-scale" if rate_scale is not None else "--request-rate"
        raise InputError(f"{flag} does nothing with --concurrency, which ignores arrival times: give one of them")
    if rate_scale is not None and request_rate is not None:
        raise InputError(
            "--rate-scale does nothing with --request-rate, which draws its own arrivals: give one of them"
        )
    if jitter is not None and (concurrency is not None or request_rate is not None):
        flags = "--jitter" if jitter else "--no-jitter", "--request-rate" if concurrency is None else "--concurrency"
        raise InputError(f"{flags[0]} does nothing with {flags[1]}, which ignores the trace's stamps: give one of them")
    if router is not None and replicas == 1:
        raise InputError("--router does nothing with one replica: give --replicas 2 or more")
    if kv_tokens is not None and "kv_tokens" in key_values("--cost", cost, TERMS):
        raise InputError("--cost kv_tokens does nothing with --kv-tokens: give one of them")
    if output is not None and output == timeline:
        raise InputError(f"--output and --timeline name the same file {output}: give two")


def refuse_unread(policies: list[Policy], policy_profile: str | None) -> None:
    """Beliefs that no policy reads are an error."""
    if policy_profile is not None and all(policy.name in _PRICELESS for policy in policies):
        raise InputError("--policy-profile does nothing here: none of the policies looks at step costs")
