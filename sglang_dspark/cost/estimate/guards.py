"""What looks wrong in an estimate, in words: times far above the roofline, and larger steps that cost less."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from sglang_dspark.cost.curves import Floats

MOST_OVER_ROOFLINE = 4.0
DIP = 0.15
"""A larger token count that is cheaper than a smaller one by this share is doubtful (simulator.results.probes)."""

_FOUND = 0.7  # of the time that ought to come from measured tables


def over_roofline(tokens: Sequence[int], seconds: Floats, roofline: Floats) -> tuple[float, str]:
    """(largest ratio, what to say of it; empty where nothing is)."""
    ratios = np.asarray(seconds) / np.asarray(roofline)
    worst = int(ratios.argmax())
    over = [count for count, ratio in zip(tokens, ratios, strict=True) if ratio > MOST_OVER_ROOFLINE]
    if not over:
        return float(ratios.max()), ""
    said = (
        f"steps of {_counts(over)} tokens take more than {MOST_OVER_ROOFLINE:g} times what memory and arithmetic allow "
        f"({ratios[worst]:.1f} times at {tokens[worst]}): launch latency of many small kernels, or a wrong table entry"
    )
    return float(ratios.max()), said


def dips(tokens: Sequence[int], seconds: Sequence[float]) -> str:
    """Larger steps that cost much less than smaller ones; empty where there are none."""
    values = np.asarray(seconds)
    deep = 1 - values / np.maximum.accumulate(values)
    if deep.max() < DIP:
        return ""
    worst = int(deep.argmax())
    before = int(values[: worst + 1].argmax())
    return (
        f"a step of {tokens[worst]} tokens costs {deep[worst]:.0%} less than one of {tokens[before]}: as the kernels "
        "were measured, and doubtful; gains that hang on it are warned of"
    )


def unmeasured(shares: Mapping[str, float]) -> str:
    """Where much of the time comes from models of kernels instead of measured ones; empty where little does."""
    measured = shares.get("silicon", 0.0)
    if measured >= _FOUND:
        return ""
    rest = ", ".join(f"{name} {share:.0%}" for name, share in shares.items() if name != "silicon")
    return f"only {measured:.0%} of a step of 64 tokens comes from measured kernels ({rest})"


def _counts(over: Sequence[int]) -> str:
    return f"{over[0]}" if len(over) == 1 else f"{over[0]} to {over[-1]}"
