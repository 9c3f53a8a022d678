"""The arithmetic of the rules as loops that numba compiles; `sglang_dspark.jit` says whether they are used.

Every function here has a NumPy form that gives the same bits and says what it is for. Arrays are C-contiguous.

Named here is what Python calls, all of it run by `warm`; compiled code imports from the modules.
"""

from sglang_dspark.policies.loops.learning import corrected, corrected_lagged, followed
from sglang_dspark.policies.loops.order import allocate, highest, sorted_survivals, survival_units
from sglang_dspark.policies.loops.rules import (
    best_budget,
    first_decline,
    foresight_tables,
    foresight_walk,
    lookahead_walk,
    table_lengths,
)
from sglang_dspark.policies.loops.warm import warm

__all__ = [
    "allocate",
    "best_budget",
    "corrected",
    "corrected_lagged",
    "first_decline",
    "followed",
    "foresight_tables",
    "foresight_walk",
    "highest",
    "lookahead_walk",
    "sorted_survivals",
    "survival_units",
    "table_lengths",
    "warm",
]
