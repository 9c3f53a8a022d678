"""Verification policies: which of the drafted tokens the target verifies.

`make_policy` makes one from `hull:fill=true` or a JSON file; `POLICIES` are the package's own, and packages of users
can offer more (`registry`). The same objects decide in the simulator and in the live
engine, in NumPy or compiled (`sglang_dspark.jit`).
"""

from sglang_dspark.policies.arithmetic import SCALE, allocate, survival_units
from sglang_dspark.policies.base import Policy
from sglang_dspark.policies.classes import (
    BudgetRule,
    Combined,
    LengthRule,
    LengthTable,
    StoppingRule,
    StopTables,
    TableLength,
    TableStop,
    Unrestricted,
)
from sglang_dspark.policies.fallback import NotAFault, learned, started
from sglang_dspark.policies.format import policy_to_json, policy_to_string
from sglang_dspark.policies.needs import NoPrices, PriceNeeded, knows_depth, needs_prices
from sglang_dspark.policies.parameters import parameter
from sglang_dspark.policies.parse import make_policy, policy_from_json, policy_from_string
from sglang_dspark.policies.registry import POLICIES, find_policy, installed
from sglang_dspark.policies.rules.budget import Argmax, Goodput, Schedule, Tetris
from sglang_dspark.policies.rules.calibrated import Calibrated
from sglang_dspark.policies.rules.foresight import Foresight
from sglang_dspark.policies.rules.guard import Guard
from sglang_dspark.policies.rules.length import Fixed, NoDraft, Threshold
from sglang_dspark.policies.rules.repriced import Repriced
from sglang_dspark.policies.rules.research import ArgmaxLive, Oracle
from sglang_dspark.policies.rules.self_tuning import SelfTuning, calibration_of, costs_of, single_part
from sglang_dspark.policies.rules.stopping import EarlyStop, Hull, Lookahead
from sglang_dspark.policies.state import (
    Decision,
    KnownBlock,
    LiveBlock,
    Outcome,
    Past,
    Plan,
    StepTiming,
    SurvivalRing,
    carry_as_json,
    carry_from_json,
)
from sglang_dspark.policies.tier_costs import timing_of

__all__ = [
    "POLICIES",
    "SCALE",
    "Argmax",
    "ArgmaxLive",
    "BudgetRule",
    "Calibrated",
    "Combined",
    "Decision",
    "EarlyStop",
    "Fixed",
    "Foresight",
    "Goodput",
    "Guard",
    "Hull",
    "KnownBlock",
    "LengthRule",
    "LengthTable",
    "LiveBlock",
    "Lookahead",
    "NoDraft",
    "NoPrices",
    "NotAFault",
    "Oracle",
    "Outcome",
    "Past",
    "Plan",
    "Policy",
    "PriceNeeded",
    "Repriced",
    "Schedule",
    "SelfTuning",
    "StepTiming",
    "StopTables",
    "StoppingRule",
    "SurvivalRing",
    "TableLength",
    "TableStop",
    "Tetris",
    "Threshold",
    "Unrestricted",
    "allocate",
    "calibration_of",
    "carry_as_json",
    "carry_from_json",
    "costs_of",
    "find_policy",
    "installed",
    "knows_depth",
    "learned",
    "make_policy",
    "needs_prices",
    "parameter",
    "policy_from_json",
    "policy_from_string",
    "policy_to_json",
    "policy_to_string",
    "single_part",
    "started",
    "survival_units",
    "timing_of",
]
