"""Verification policies: which of the drafted tokens the target verifies.

`POLICIES` is the registry; `make_policy` makes one from `hull:fill=true` or a JSON file. NumPy only: the same objects
decide in the simulator and in the live engine.
"""

from pathlib import Path

from sglang_dspark.policies.arithmetic import SCALE, allocate, survival_units
from sglang_dspark.policies.base import BudgetRule, LengthRule, Policy, StoppingRule, Unrestricted
from sglang_dspark.policies.budget import Argmax, Goodput, Schedule, Tetris
from sglang_dspark.policies.guard import Guard
from sglang_dspark.policies.length import Fixed, NoDraft, Threshold
from sglang_dspark.policies.research import ArgmaxLive, Oracle
from sglang_dspark.policies.spec import (
    load_policy_file,
    policy_from_json,
    policy_from_string,
    policy_to_json,
    policy_to_string,
)
from sglang_dspark.policies.state import Decision, LiveBlock, Outcome, Past, Plan, SurvivalRing
from sglang_dspark.policies.stopping import EarlyStop, Hull, Lookahead

POLICIES: dict[str, type[Policy]] = {
    "none": NoDraft,
    "fixed": Fixed,
    "threshold": Threshold,
    "early-stop": EarlyStop,
    "hull": Hull,
    "lookahead": Lookahead,
    "argmax": Argmax,
    "schedule": Schedule,
    "goodput": Goodput,
    "tetris": Tetris,
    "guard": Guard,
    "oracle": Oracle,
    "argmax-live": ArgmaxLive,
}


def make_policy(text: str) -> Policy:
    """A policy from its string form, or from a JSON file when `text` ends in .json.

    Errors: InputError names the policy, the parameter and the accepted range.
    """
    if text.endswith(".json"):
        return load_policy_file(Path(text), POLICIES)
    return policy_from_string(text, POLICIES)


__all__ = [
    "POLICIES",
    "SCALE",
    "Argmax",
    "ArgmaxLive",
    "BudgetRule",
    "Decision",
    "EarlyStop",
    "Fixed",
    "Goodput",
    "Guard",
    "Hull",
    "LengthRule",
    "LiveBlock",
    "Lookahead",
    "NoDraft",
    "Oracle",
    "Outcome",
    "Past",
    "Plan",
    "Policy",
    "Schedule",
    "StoppingRule",
    "SurvivalRing",
    "Tetris",
    "Threshold",
    "Unrestricted",
    "allocate",
    "make_policy",
    "policy_from_json",
    "policy_from_string",
    "policy_to_json",
    "policy_to_string",
    "survival_units",
]
