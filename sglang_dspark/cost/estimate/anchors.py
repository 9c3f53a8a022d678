"""Kernel times scaled to steps that the user has measured, such as the mean TPOT of a bench_serving run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from sglang_dspark.cost.curves import Floats
from sglang_dspark.cost.estimate.asked import Anchor
from sglang_dspark.errors import InputError

REFERENCE_CONTEXT = 1024
"""Context tokens a request that a measured step is taken to have had."""

_REFUSED = 3.0  # a measured step this many times above or below the tables is not of what was asked for


@dataclass(frozen=True)
class Scale:
    """Factors by tokens of a step, linear in their logarithm between anchors; overall: of everything else."""

    tokens: tuple[int, ...] = (1,)
    factors: tuple[float, ...] = (1.0,)
    overall: float = 1.0

    def at(self, tokens: Sequence[int]) -> Floats:
        """Factors of steps with so many tokens."""
        return np.asarray(np.interp(np.log2(tokens), np.log2(self.tokens), self.factors))


def scale_to(anchors: Sequence[Anchor], step: Callable[[int], float], context_s: float) -> Scale:
    """Factors with which a decode step of so many requests takes what was measured.

    step(tokens): kernel seconds without context. context_s: per context token. Errors: InputError for an anchor that
    is far from the tables.
    """
    if not anchors:
        return Scale()
    bases = np.array([step(anchor.requests) for anchor in anchors])
    held = context_s * REFERENCE_CONTEXT * np.array([anchor.requests for anchor in anchors])
    measured = np.array([anchor.seconds for anchor in anchors])
    ratios = measured / (bases + held)
    for anchor, ratio in zip(anchors, ratios, strict=True):
        if not 1 / _REFUSED <= ratio <= _REFUSED:
            raise InputError(
                f"anchor {anchor.text} is refused: it is {ratio:.2g} times what the kernel times add up to "
                f"({1e3 * anchor.seconds / ratio:.3g} ms), expected 1/{_REFUSED:g} to {_REFUSED:g}; are GPU, model, tp "
                "and precisions those of the server that was measured?"
            )
    overall = float(np.exp(np.log(ratios).mean()))
    factors = (measured - overall * held) / bases
    if factors.min() <= 0:
        raise InputError(
            f"anchors {' '.join(anchor.text for anchor in anchors)} are refused: they contradict each other, expected "
            "steps that grow with the requests about as the kernel times do"
        )
    return Scale(tuple(anchor.requests for anchor in anchors), tuple(factors.tolist()), overall)
