"""Profiles by name or file: a table becomes a `StepCost`, and what it does not give becomes a stated assumption."""

from __future__ import annotations

from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeGuard

import msgspec
import numpy as np

from sglang_dspark.cost.assumptions import Assumption
from sglang_dspark.cost.curves import Curve, make_curve
from sglang_dspark.cost.diagonal import gamma_of, manifest_gamma
from sglang_dspark.cost.estimate.accuracy import stated_of_estimate
from sglang_dspark.cost.estimate.asked import Asked, is_estimate
from sglang_dspark.cost.model import StepCost
from sglang_dspark.cost.tables import SpsAdditiveCostTable, SpsCostTable, Table, Tiered, decode_table
from sglang_dspark.cost.terms import check_terms, filled_terms
from sglang_dspark.errors import InputError

_FORCED = Assumption(
    "diagonal_forced",
    None,
    "",
    "forced by the user",
    "off-diagonal prices come from a table measured only at B = R (1 + gamma)",
)
_NO_EAGER = Assumption(
    "eager",
    None,
    "",
    "eager steps are not in the source",
    "beyond the last captured size a step costs what that size costs",
)


def profile_names() -> list[str]:
    """Names of the profiles that the package ships, measured ones first."""
    found = [item.name.removesuffix(".json") for item in files("dspark_profiles").iterdir() if ".json" in item.name]
    return sorted(found, key=lambda name: (name.startswith("estimate-"), name))


def load_profile(name: str, *, force_diagonal: bool = False) -> StepCost:
    """A step-cost model by shipped name, from a user's file, or estimated (`estimate:GPU/MODEL,...`).

    force_diagonal: accept a table measured only at B = R (1 + gamma) for other B too; the result states it.
    Errors: InputError names the file and what does not fit.
    """
    if is_estimate(name):
        from sglang_dspark.cost.estimate.table import estimate_table

        return model_from_table(estimate_table(Asked.of(name)), name, force_diagonal=force_diagonal)
    table = decode_table(_read(name), name)
    if isinstance(table, SpsCostTable) and name not in profile_names():
        gamma = manifest_gamma(Path(name))
        if gamma is not None:
            table = msgspec.structs.replace(table, meta={"gamma": gamma, **(table.meta or {})})
    return model_from_table(table, _stem(name), force_diagonal=force_diagonal)


def model_from_table(table: Table, name: str, *, force_diagonal: bool = False) -> StepCost:
    """See `load_profile`."""
    meta = dict(table.meta or {})
    if isinstance(table, SpsCostTable):
        model = _from_one_dimensional(table, name, meta)
    elif table.tiered is None:
        model = _from_additive(table, name, meta)
    else:
        model = _from_tiered(table.tiered, name, meta)
    if meta.get("estimate"):
        model = replace(model, assumptions=(*stated_of_estimate(meta, name), *model.assumptions))
    if model.diagonal and force_diagonal:
        return replace(model, diagonal=False, assumptions=(*model.assumptions, _FORCED))
    return model


def provenance(model: StepCost) -> str:
    """One line: hardware, model, software, date, how it was measured."""
    keys = ("hardware", "model", "software", "date", "how", "source")
    known = [str(model.meta[key]) for key in keys if model.meta.get(key)]
    return "; ".join(known) if known else "no provenance in the file"


def _read(name: str) -> bytes:
    if name in profile_names():
        return files("dspark_profiles").joinpath(f"{name}.json").read_bytes()
    path = Path(name)
    if not path.suffix and not path.exists():
        known = ", ".join(profile_names())
        raise InputError(f"unknown profile '{name}', expected a file or one of {known}, or estimate:GPU/MODEL")
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"profile {name}: {error.strerror}") from error


def _stem(name: str) -> str:
    return Path(name).name.removesuffix(".json")


def _unpadded(what: str) -> Assumption:
    return Assumption("captured_tokens", None, "", "captured sizes are not in the file", what)


def _flat(seconds: float) -> Curve:
    return Curve(np.array([1.0]), np.array([seconds]))


def _from_one_dimensional(table: SpsCostTable, name: str, meta: dict[str, Any]) -> StepCost:
    where = f"profile {name}: sample_steps_per_sec"
    rates = table.sample_steps_per_sec
    curve = make_curve(where, table.sample_batch_tokens, list(rates), floor=True, least_probes=2)
    if table.max_batch_tokens < table.sample_batch_tokens[-1]:
        last = table.sample_batch_tokens[-1]
        raise InputError(
            f"profile {name}: max_batch_tokens={table.max_batch_tokens}, expected at least the last probe {last}"
        )
    seconds = Curve(curve.probes, 1.0 / curve.seconds, None, True)
    captured, slots = _graphs(meta, name)
    terms, stated = filled_terms({}, seconds, name)
    if captured is None:
        stated += (_unpadded("tokens are priced unpadded, by the probe below"),)
    # SGLang's own profiler fills this form from a sweep over the batch size with full blocks.
    diagonal = meta.get("sweep", "diagonal") != "off-diagonal"
    gamma = None
    if diagonal:
        gamma, assumed = gamma_of(table.sample_batch_tokens, meta, name)
        stated += assumed
    return StepCost(
        name,
        "1-d",
        _flat(0.0),
        seconds,
        captured=captured,
        captured_requests=slots,
        splits_draft=False,
        diagonal=diagonal,
        diagonal_gamma=gamma,
        terms=terms,
        assumptions=stated,
        meta=meta,
    )


def _from_additive(table: SpsAdditiveCostTable, name: str, meta: dict[str, Any]) -> StepCost:
    if not np.isfinite(table.bias_seconds) or table.bias_seconds <= 0:
        raise InputError(f"profile {name}: bias_seconds={table.bias_seconds}, expected a positive number")
    alpha = make_curve(f"profile {name}: alpha_seconds", table.bs_probes, table.alpha_seconds, relative=True)
    theta = make_curve(
        f"profile {name}: theta_seconds", table.m_probes, table.theta_seconds, least_probes=2, relative=True
    )
    smallest = table.bias_seconds + float(alpha.seconds.min()) + float(theta.seconds.min())
    if smallest <= 0:
        raise InputError(f"profile {name}: its smallest step takes {smallest} s, expected positive seconds")
    alpha = _measured_to(alpha, meta, "requests", name)
    theta = _measured_to(theta, meta, "tokens", name)
    captured, slots = _graphs(meta, name)
    alpha, given = _context_apart(alpha, meta, name)
    if meta.get("adaptive_seconds") is not None:
        given["adaptive_s"] = meta["adaptive_seconds"]
    terms, stated = filled_terms(given, theta, name, table.bias_seconds)
    if captured is None:
        stated += (_unpadded("tokens are priced unpadded"),)
    return StepCost(
        name,
        "additive",
        alpha,
        theta,
        bias_s=table.bias_seconds,
        captured=captured,
        captured_requests=slots,
        splits_draft=False,
        terms=terms,
        assumptions=stated,
        meta=meta,
    )


def _from_tiered(tiered: Tiered, name: str, meta: dict[str, Any]) -> StepCost:
    draft = make_curve(
        f"profile {name}: draft",
        tiered.draft.num_requests,
        tiered.draft.seconds,
        tiered.draft.context_tokens_per_request,
    )
    verify = make_curve(
        f"profile {name}: verify",
        tiered.verify.num_tokens,
        tiered.verify.seconds,
        tiered.verify.context_tokens_per_request,
        least_probes=2,
    )
    eager = None
    if tiered.eager is not None:
        eager = make_curve(
            f"profile {name}: eager",
            tiered.eager.num_tokens,
            tiered.eager.seconds,
            tiered.eager.context_tokens_per_request,
        )
    captured = _captured(tiered.captured_tokens, name)
    slots = _captured_requests(tiered.captured_requests, name)
    if not np.any((captured >= verify.span[0]) & (captured <= verify.span[1])):
        low, high = map(int, verify.span)
        raise InputError(f"profile {name}: no captured_tokens lie in the measured {low}..{high}, expected some")
    terms, stated = filled_terms(tiered.terms, eager or verify, name, float(verify.at(1)))
    if eager is None:
        stated += (_NO_EAGER,)
    return StepCost(
        name,
        "tiered",
        draft,
        verify,
        captured=captured,
        captured_requests=slots,
        eager=eager,
        terms=terms,
        assumptions=stated,
        meta=meta,
    )


def _graphs(meta: dict[str, Any], name: str) -> tuple[np.ndarray[Any, np.dtype[np.int64]] | None, int | None]:
    """Graph sizes that a plain SGLang table carries in its meta object."""
    captured, requests = meta.get("captured_tokens"), meta.get("captured_requests")
    slots = None if requests is None else _captured_requests(requests, name)
    return (None if captured is None else _captured(captured, name)), slots


def _measured_to(curve: Curve, meta: dict[str, Any], axis: str, name: str) -> Curve:
    """The curve, whose last probes may lie beyond what `meta.measured_to` says was measured (`dspark profile`)."""
    ends = meta.get("measured_to")
    if ends is None:
        return curve
    end = ends.get(axis) if isinstance(ends, dict) else None
    low, high = curve.span
    if not _is_count(end) or not low <= end <= high:
        raise InputError(f"profile {name}: meta.measured_to={ends!r} is refused, expected {axis} in {low}..{high}")
    return replace(curve, measured_to=end)


def _context_apart(alpha: Curve, meta: dict[str, Any], name: str) -> tuple[Curve, dict[str, float]]:
    """The context's share taken out of alpha, which holds that of the mean context, and the terms that then hold it."""
    slope, mean = meta.get("seconds_per_context_token"), meta.get("context_tokens_per_request")
    if slope is None or mean is None:
        return alpha, {}
    good = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (slope, mean))
    if not good or not 0 <= mean <= 1e9:
        raise InputError(f"profile {name}: meta says {slope!r} s a token at {mean!r} tokens, expected numbers from 0")
    check_terms({"context_token_s": slope}, f"profile {name}")
    return replace(alpha, seconds=alpha.seconds - slope * mean * alpha.probes), {"context_token_s": float(slope)}


def _is_count(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 2**31


def _captured_requests(value: Any, name: str) -> int:
    if not _is_count(value):
        raise InputError(f"profile {name}: captured_requests={value!r} is refused, expected an integer of at least 1")
    return int(value)


def _captured(sizes: Any, name: str) -> np.ndarray[Any, np.dtype[np.int64]]:
    good = isinstance(sizes, list) and bool(sizes) and all(map(_is_count, sizes))
    if not good or sizes != sorted(set(sizes)):
        raise InputError(f"profile {name}: captured_tokens is refused, expected strictly increasing positive integers")
    return np.asarray(sizes, dtype=np.int64)
