"""The explorer's cases: for a drafter, a domain and a load one batch of drafted blocks and every policy's decision.

Everything is decided here, by the policies themselves; the page only steps through it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from sglang_dspark.errors import InputError
from sglang_dspark.policies import SCALE, Policy
from sglang_dspark.policies.arithmetic import Floats, keys_for, tau_along
from simulator.blocks.drafters import ALIASES, Drafter
from simulator.engine.run import Setting
from simulator.report.batch import HISTORY, Batch, draw_batch
from simulator.report.reasons import reasons

MOST_REQUESTS = 128
"""Requests of a batch at most: a larger load is shown by so many of them."""

_MOST_LOADS = 3
_LABELS = {"dspark": "DSpark", "dflash": "DFlash", "eagle3": "EAGLE-3", "mtp1": "MTP-1"}


def explore(
    setting: Setting, policies: Sequence[tuple[str, Policy]], loads: Sequence[tuple[str, int]], shown: int
) -> dict[str, Any]:
    """Cases of the four drafters (and of the setting's own, if it is another) by domain and load.

    policies: by name. loads: (in words, requests in the batch); shown: the one that is first. Plain values.
    """
    drafters = dict(_drafters(setting))
    loads = _few(loads, shown)
    cases = [
        _case(replace(setting, drafter=drafter, recorded=None, domain_mix=None), policies, keys, domain, size)
        for label, drafter in drafters.items()
        for domain, name in enumerate(drafter.domains)
        for load, size in loads
        for keys in ({"drafter": label, "domain": name, "load": load},)
    ]
    return {
        "drafters": [
            {"name": label, "text": drafter.name, "confidence": drafter.has_confidence, "origin": drafter.origin.text}
            for label, drafter in drafters.items()
        ],
        "loads": [load for load, _ in loads],
        "history": HISTORY,
        "most_requests": MOST_REQUESTS,
        "cases": cases,
    }


def _drafters(setting: Setting) -> list[tuple[str, Drafter]]:
    known = [(_LABELS[key], drafter) for key, drafter in ALIASES.items()]
    own = setting.drafter
    if setting.recorded is not None or own.name == "none":
        return known
    for number, (label, drafter) in enumerate(known):
        if drafter.acceptance == own.acceptance and drafter.method == own.method:
            return [known[number], *known[:number], *known[number + 1 :]]
        if drafter.name == own.name:  # the same at another gamma
            return [(label, own), *known[:number], *known[number + 1 :]]
    return [(f"{own.method.label} ({own.name})", own), *known]


def _few(loads: Sequence[tuple[str, int]], shown: int) -> list[tuple[str, int]]:
    """The smallest, the shown and the largest load, each once, no batch beyond `MOST_REQUESTS`."""
    kept = {0, shown, len(loads) - 1} if len(loads) > _MOST_LOADS else set(range(len(loads)))
    return [(loads[at][0], max(1, min(loads[at][1], MOST_REQUESTS))) for at in sorted(kept)]


def _case(
    setting: Setting, policies: Sequence[tuple[str, Policy]], keys: dict[str, str], domain: int, size: int
) -> dict[str, Any]:
    batch = draw_batch(setting, domain, size)
    units, gamma = batch.live.units, batch.gamma
    order = np.argsort(keys_for(size, 0, gamma).of(units.copy()))  # of all drafted tokens, request * gamma + position
    tau = tau_along(units.ravel()[order], size * SCALE) / SCALE
    prices: list[dict[str, Any]] = []
    decided = [_decision(setting, name, policy, batch, tau, prices) for name, policy in policies]
    assert batch.live.confidence is not None
    return {
        **keys,
        "requests": size,
        "gamma": gamma,
        "confidence": _rounded(batch.live.confidence.ravel(), 4),
        "survival": _rounded(units.ravel() / SCALE, 4),
        "depth": batch.depth.tolist(),
        "order": order.tolist(),
        "tau": _rounded(tau, 3),
        "prices": prices,
        "policies": decided,
    }


def _decision(
    setting: Setting, name: str, policy: Policy, batch: Batch, tau: Floats, prices: list[dict[str, Any]]
) -> dict[str, Any]:
    try:
        setting.check(policy)
        policy = policy.for_schedule(setting.engine.schedule_for(policy) != "overlapped")
    except InputError as error:
        return {"name": name, "refused": str(error)}
    past, live = batch.past(setting, policy), batch.shown_to(policy)
    decision = policy.decide(past, live)
    why = reasons(policy, past, live, decision)
    accepted = np.minimum(decision.lengths, batch.depth)
    step_s = past.prices.step_s(decision.total)
    return {
        "name": name,
        "verified": decision.total,
        "lengths": decision.lengths.tolist(),
        "committed": int(accepted.sum()) + batch.size,
        "wasted": int(decision.total - accepted.sum()),
        "step_ms": round(1e3 * step_s, 4),
        "expected": round(float((batch.size + _survivals(batch, decision.lengths)) / step_s), 1),
        "prices": _priced(past.prices.seconds, tau, prices),
        "rule": why.rule,
        "spans": [list(span) for span in why.spans],
        "yes": why.yes,
        "no": why.no,
        "sees": None if why.sees is None else _rounded(why.sees, 1),
        "sees_what": why.sees_what,
    }


def _survivals(batch: Batch, lengths: Any) -> float:
    """Expected draft tokens of what is verified, by the reported survivals."""
    inside = np.arange(batch.gamma) < lengths[:, None]
    return float(batch.live.units[inside].sum()) / SCALE


def _priced(seconds: Floats, tau: Floats, prices: list[dict[str, Any]]) -> int:
    """The number of this cost curve among `prices`, where it is added if it is new."""
    ms = _rounded(1e3 * seconds, 4)
    for number, known in enumerate(prices):
        if known["step_ms"] == ms:
            return number
    prices.append({"step_ms": ms, "theta": _rounded(tau / seconds, 1)})
    return len(prices) - 1


def _rounded(values: Any, digits: int) -> list[float]:
    return np.round(np.asarray(values, dtype=np.float64), digits).tolist()
