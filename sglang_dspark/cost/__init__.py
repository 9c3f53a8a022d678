"""Step-cost models: SPS(B) tables in all their forms, priced as what is executed.

`load_profile(NAME_OR_FILE)` gives a `StepCost`; policies decide on its `StepPrices`.
"""

from sglang_dspark.cost.model import TERMS, StepCost
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

__all__ = [
    "TERMS",
    "MeasuredDraft",
    "MeasuredVerify",
    "SpsAdditiveCostTable",
    "SpsCostTable",
    "StepCost",
    "StepPrices",
    "Tiered",
    "decode_table",
    "encode_table",
    "load_profile",
    "model_from_table",
    "profile_names",
    "provenance",
    "write_atomically",
    "write_table",
]
