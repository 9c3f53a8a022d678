"""Mean, standard deviation and percentiles as NumPy's linear ones, of values that stand for many equal ones too."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from sglang_dspark.policies.arithmetic import Ints

Floats = NDArray[np.float64]

SHARES = {"median": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}


def spread_ms(name: str, values: Floats, counts: Ints | None = None) -> dict[str, float]:
    """mean, median, std, p90, p95, p99 in milliseconds of `values` seconds [n]; zeros when there is nothing.

    counts: [n] how often each value stands, as if it were written so many times.
    """
    if values.size == 0:
        return {f"{kind}_{name}_ms": 0.0 for kind in ("mean", "std", *SHARES)}
    weights = np.ones(values.size, dtype=np.int64) if counts is None else counts
    total = int(weights.sum())
    mean = float(values @ weights) / total
    out = {"mean": mean, "std": float(np.sqrt(((values - mean) ** 2) @ weights / total))}
    order = np.argsort(values, kind="stable")
    up_to = np.cumsum(weights[order])
    for kind, share in SHARES.items():
        rank = share * (total - 1)
        low, high = (
            float(values[order[np.searchsorted(up_to, at, side="right")]]) for at in (math.floor(rank), math.ceil(rank))
        )
        out[kind] = low + (high - low) * (rank - math.floor(rank))
    return {f"{kind}_{name}_ms": 1e3 * value for kind, value in out.items()}
