"""The package's own rules as compiled code meets them: a number for what is done, and tables made from prices.

`program_of` gives None for everything else, anyone's own rule above all: that is asked in Python, step by step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sglang_dspark.cost import StepPrices
from sglang_dspark.policies import calibration, tier_costs
from sglang_dspark.policies.arithmetic import Floats, Ints
from sglang_dspark.policies.base import Policy
from sglang_dspark.policies.rules.budget import SGLANG_LEAST, Argmax, Goodput, Schedule, Tetris
from sglang_dspark.policies.rules.calibrated import Calibrated
from sglang_dspark.policies.rules.foresight import Foresight
from sglang_dspark.policies.rules.length import Fixed, NoDraft, Threshold
from sglang_dspark.policies.rules.repriced import Repriced
from sglang_dspark.policies.rules.self_tuning import SelfTuning
from sglang_dspark.policies.rules.stopping import EarlyStop, Hull, Lookahead
from sglang_dspark.policies.state import Past

CONSTANT, BUDGET, ARGMAX, GOODPUT, STOP, LOOKAHEAD, FORESIGHT, LENGTH = range(8)
_KINDS: dict[type[Policy], int] = {
    NoDraft: CONSTANT,
    Fixed: CONSTANT,
    Schedule: BUDGET,
    Tetris: BUDGET,
    Argmax: ARGMAX,
    Goodput: GOODPUT,
    EarlyStop: STOP,
    Hull: STOP,
    Lookahead: LOOKAHEAD,
    Foresight: FORESIGHT,
    Threshold: LENGTH,
}

_NO_FLOATS, _NO_INTS = np.empty(0), np.empty(0, dtype=np.int64)


@dataclass(frozen=True)
class Program:
    """rule: the innermost of what the policy holds. kind: one of the numbers above. calibrated, repriced: whether
    confidences, and step times, are corrected around it by what was learned."""

    rule: Policy
    kind: int
    calibrated: bool
    repriced: bool

    @property
    def least(self) -> int:
        """Survivals below so many units are left out of an argmax."""
        return SGLANG_LEAST if isinstance(self.rule, Argmax) and self.rule.pricing == "floor" else 0

    @property
    def cold(self) -> bool:
        """Whether requests without lagged survivals count as the running mean."""
        return isinstance(self.rule, Argmax) and self.rule.cold == "prior"

    def tables(
        self, prices: StepPrices, num_requests: int, gamma: int, by_tier: tuple[tuple[int, int], ...] = ()
    ) -> tuple[Floats, Ints]:
        """What the rule reads of one batch's prices, corrected `by_tier`: (by admitted count, by count or by tier)."""
        if by_tier:
            prices = tier_costs.corrected(prices, num_requests, by_tier)
        rule, past = self.rule, Past(num_requests, gamma, prices)
        if isinstance(rule, Schedule | Tetris):
            low, high = past.totals(*rule.bounds(gamma))
            return _NO_FLOATS, np.array([min(max(rule.budget(past), low), high)], dtype=np.int64)
        if isinstance(rule, Argmax):
            return (prices.floor_inverse if rule.pricing == "floor" else prices.inverse), _NO_INTS
        if isinstance(rule, Goodput):
            return prices.inverse[::num_requests], _NO_INTS
        if isinstance(rule, EarlyStop | Hull):
            stop = rule.tables(past)
            return stop.inverse, _NO_INTS if stop.fill_to is None else stop.fill_to
        if isinstance(rule, Lookahead):
            return prices.inverse, rule.tables(past)
        if isinstance(rule, Foresight):
            return prices.inverse, prices.tier_tops
        if isinstance(rule, Threshold):
            least = rule.tables(past)
            return (
                _NO_FLOATS if least.confidence is None else least.confidence.astype(np.float64),
                _NO_INTS if least.survival is None else least.survival,
            )
        return _NO_FLOATS, _NO_INTS


def learned_parts(policy: Policy, carry: Any) -> tuple[tier_costs.State, calibration.State, Any]:
    """(step times, correction, what the rule itself carries) of what a policy with a program carries."""
    tiers, fit, held = tier_costs.START, calibration.START, policy
    while isinstance(held, SelfTuning | Repriced | Calibrated):
        if isinstance(held, SelfTuning):
            (carry,) = carry
        elif isinstance(held, Repriced):
            tiers, carry = carry
        else:
            fit, carry = carry
        held = held.parts[0]
    return tiers, fit, carry


def carry_of(policy: Policy, tiers: tier_costs.State, fit: calibration.State, inner: Any) -> Any:
    """What the policy carries, of its parts."""
    if not isinstance(policy, SelfTuning | Repriced | Calibrated):
        return inner
    held = carry_of(policy.parts[0], tiers, fit, inner)
    if isinstance(policy, SelfTuning):
        return (held,)
    return (tiers if isinstance(policy, Repriced) else fit), held


def program_of(policy: Policy) -> Program | None:
    """The program of a policy, None where compiled code does not know what it does."""
    calibrated = repriced = False
    rule: Any = policy
    while type(rule) in (SelfTuning, Repriced, Calibrated):
        calibrated |= type(rule) is Calibrated
        repriced |= type(rule) is Repriced
        rule = rule.parts[0]
    kind = _KINDS.get(type(rule))
    return None if kind is None else Program(rule, kind, calibrated, repriced)
