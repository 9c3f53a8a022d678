"""Step-cost models inside records: every number exactly, named by a hash of what decides."""

from __future__ import annotations

import hashlib
from typing import Any

import msgspec
import numpy as np

from sglang_dspark.cost import TERMS, Assumption, StepCost
from sglang_dspark.cost.curves import Curve
from sglang_dspark.errors import InputError

_LATER = {"width_context_s": 0.0, "adaptive_s": 0.0, "draft_head_s": 0.0, "draft_kv_share": 0.0}
"""Terms that records of before do not hold, and what prices a step as it was priced then."""


def cost_to_plain(cost: StepCost) -> dict[str, Any]:
    """A step-cost model as plain values, for `Header.costs`."""
    return {
        "name": cost.name,
        "form": cost.form,
        "draft": _curve_to_plain(cost.draft),
        "verify": _curve_to_plain(cost.verify),
        "eager": None if cost.eager is None else _curve_to_plain(cost.eager),
        "bias_s": cost.bias_s,
        "captured": None if cost.captured is None else cost.captured.tolist(),
        "captured_requests": cost.captured_requests,
        "splits_draft": cost.splits_draft,
        "diagonal": cost.diagonal,
        "diagonal_gamma": cost.diagonal_gamma,
        "terms": {key: float(value) for key, value in cost.terms.items()},
        "assumptions": [assumption.as_plain() for assumption in cost.assumptions],
        "meta": cost.meta,
    }


def cost_from_plain(plain: dict[str, Any]) -> StepCost:
    """The model back; InputError if it was not written by `cost_to_plain`."""
    try:
        captured = plain["captured"]
        return StepCost(
            plain["name"],
            plain["form"],
            _curve_from_plain(plain["draft"]),
            _curve_from_plain(plain["verify"]),
            bias_s=plain["bias_s"],
            captured=None if captured is None else np.asarray(captured, dtype=np.int64),
            captured_requests=plain["captured_requests"],
            eager=None if plain["eager"] is None else _curve_from_plain(plain["eager"]),
            splits_draft=plain["splits_draft"],
            diagonal=plain["diagonal"],
            diagonal_gamma=plain.get("diagonal_gamma"),
            terms={key: float({**_LATER, **plain["terms"]}[key]) for key in TERMS},
            assumptions=tuple(map(Assumption.from_plain, plain["assumptions"])),
            meta=plain["meta"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"a step-cost model in the records cannot be read: {type(error).__name__} {error}") from error


def table_hash(cost: StepCost) -> str:
    """16 hexadecimal digits over everything that prices a step; what only says where it comes from does not count."""
    plain = cost_to_plain(cost)
    for key in ("name", "assumptions", "meta", "diagonal_gamma"):
        del plain[key]
    plain["terms"] = {key: value for key, value in plain["terms"].items() if value != _LATER.get(key)}
    for key in ("draft", "verify", "eager"):
        if plain[key] is not None:
            del plain[key]["measured_to"]
    return hashlib.sha256(msgspec.msgpack.encode(plain, order="deterministic")).hexdigest()[:16]


def _curve_to_plain(curve: Curve) -> dict[str, Any]:
    contexts = None if curve.contexts is None else curve.contexts.tolist()
    return {
        "probes": curve.probes.tolist(),
        "seconds": curve.seconds.tolist(),
        "contexts": contexts,
        "floor": curve.floor,
        "measured_to": curve.measured_to,
    }


def _curve_from_plain(plain: dict[str, Any]) -> Curve:
    contexts = plain["contexts"]
    return Curve(
        np.asarray(plain["probes"], dtype=np.float64),
        np.asarray(plain["seconds"], dtype=np.float64),
        None if contexts is None else np.asarray(contexts, dtype=np.float64),
        bool(plain["floor"]),
        plain.get("measured_to"),  # files of before the field have none
    )
