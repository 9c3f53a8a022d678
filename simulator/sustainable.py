"""The highest request rate at which a policy still keeps the limits of goodput."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from sglang_dspark.errors import InputError
from sglang_dspark.policies import Policy, policy_to_string
from sglang_dspark.workers import Hire
from simulator.engine.run import Setting
from simulator.parallel import run_all
from simulator.traces import scale_rate

PRECISION = 1.02
"""The search ends when the rate that holds and the one that does not are this close."""

_FURTHEST = 2.0**20


def sustainable_rates(
    setting: Setting, policies: Sequence[Policy], share: float, replications: int, jobs: int | Hire | None = None
) -> dict[str, float]:
    """{policy: requests a second at which at least `share` of the requests meet every limit}; 0 where none does.

    The arrivals are those of the setting, faster or slower: Poisson where `request_rate` is given, else the trace's own
    stamps scaled. Errors: InputError, see `check_find_rate`.
    """
    check_find_rate(setting, share)
    return {policy_to_string(policy): _search(setting, policy, share, replications, jobs) for policy in policies}


def check_find_rate(setting: Setting, share: float) -> None:
    """Refuse (InputError) a search without limits, in a closed loop, from no rate, or for a share outside 0..1."""
    if not setting.slos_ms or setting.concurrency is not None:
        raise InputError(
            "--find-rate finds a rate of an open loop that meets --goodput: give that, and no --concurrency"
        )
    if setting.windows > 1:
        raise InputError("--find-rate has one rate for the whole trace, --windows one a window: give one of them")
    if not 0 < share <= 1:
        raise InputError(f"--find-rate {share} is refused, expected a share of the requests in 0..1")
    if _own_rate(setting) == math.inf:
        raise InputError("--find-rate needs a rate to start from, and all requests come at once: give --request-rate")


def _search(setting: Setting, policy: Policy, share: float, replications: int, jobs: int | Hire | None) -> float:
    def holds(factor: float) -> bool:
        (runs,) = run_all(_faster(setting, factor), [policy], replications, jobs)
        return bool(np.mean([run["slo_attainment"] for run in runs]) >= share - 1e-9)

    low, high = 1.0, 1.0
    if holds(1.0):
        while holds(high := 2 * high):
            low = high
            if high >= _FURTHEST:
                return math.inf
    else:
        while not holds(low := low / 2):
            high = low
            if low <= 1 / _FURTHEST:
                return 0.0
    while high / low > PRECISION:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low * _own_rate(setting)


def _own_rate(setting: Setting) -> float:
    if setting.request_rate is not None:
        return setting.request_rate
    return (len(setting.trace) - 1) / setting.trace.span_s if setting.trace.span_s else math.inf


def _faster(setting: Setting, factor: float) -> Setting:
    if setting.request_rate is not None:
        return replace(setting, request_rate=setting.request_rate * factor)
    return replace(setting, trace=scale_rate(setting.trace, factor))
