"""Step-cost models: SPS(B) tables in all their forms, priced as what is executed.

`load_profile(NAME_OR_FILE)` gives a `StepCost`; policies decide on its `StepPrices`.
"""

from sglang_dspark.cost.assumptions import Assumption, keys_of
from sglang_dspark.cost.model import StepCost
from sglang_dspark.cost.prices import StepPrices
from sglang_dspark.cost.profiles import load_profile, model_from_table, profile_names, provenance
from sglang_dspark.cost.tables import (
    MeasuredDraft,
    MeasuredVerify,
    SpsAdditiveCostTable,
    SpsCostTable,
    Tiered,
    decode_table,
    encode_table,
    write_atomically,
    write_table,
)
from sglang_dspark.cost.terms import TERMS

__all__ = [
    "TERMS",
    "Assumption",
    "MeasuredDraft",
    "MeasuredVerify",
    "SpsAdditiveCostTable",
    "SpsCostTable",
    "StepCost",
    "StepPrices",
    "Tiered",
    "decode_table",
    "encode_table",
    "keys_of",
    "load_profile",
    "model_from_table",
    "profile_names",
    "provenance",
    "write_atomically",
    "write_table",
]
