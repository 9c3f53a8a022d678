"""The policy classes: each hands its rule only what the class may see, so that a leak cannot be written by accident.

A rule subclasses one of
  `BudgetRule`    how many draft tokens, from the past alone;
  `StoppingRule`  rank by rank along the live admission order: go on or stop. `TableStop`: from tables of the past;
  `LengthRule`    per request, position by position, from its own confidences so far;
all three keep the joint output law exactly the target's (design.md 3). `Unrestricted` sees everything, is not lossless
and is refused by the live engine. `Combined` puts policies together and is the package's own.

What walks the live block here (`decide`, `walk`, `lengths`) is sealed (`seal`). What a rule raises is a decision too
(`fallback`).
"""

from sglang_dspark.policies.classes.bounded import Bounded, of_plan
from sglang_dspark.policies.classes.budget import BudgetRule, best_budget
from sglang_dspark.policies.classes.combined import Combined, Unrestricted
from sglang_dspark.policies.classes.length import LengthRule, LengthTable, TableLength, position_by_position
from sglang_dspark.policies.classes.stopping import StoppingRule, StopTables, TableStop, one_by_one

__all__ = [
    "Bounded",
    "BudgetRule",
    "Combined",
    "LengthRule",
    "LengthTable",
    "StopTables",
    "StoppingRule",
    "TableLength",
    "TableStop",
    "Unrestricted",
    "best_budget",
    "of_plan",
    "one_by_one",
    "position_by_position",
]
