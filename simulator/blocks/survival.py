"""Acceptance by position in its two forms, conditional and survival, and what is refused of either.

Conditional at j: the chance that draft token j is accepted given that those before it were. Survival at j: the share of
blocks accepted up to j, the product of the conditionals (vLLM's "per position" figures and AL(k) - AL(k - 1)).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from sglang_dspark.errors import InputError

Positions = tuple[float, ...]
KINDS = ("conditional", "prefix")
MOST_POSITIONS = 64
"""Positions that a policy's sort keys have room for."""

_ROUNDS = 80  # halvings of a logit interval: to the last bit


def checked_conditionals(values: Sequence[object], kind: str, where: str) -> Positions:
    """Conditionals by position from numbers of either kind.

    kind: one of `KINDS`. where: begins the sentence of a refusal. Errors: InputError for anything but 1..64 finite
    numbers in 0..1, and for survivals that rise.
    """
    if kind not in KINDS:
        raise InputError(f"{where}: kind '{kind}' is unknown, expected {' or '.join(KINDS)}")
    if not 1 <= len(values) <= MOST_POSITIONS:
        raise InputError(f"{where}: {len(values)} positions are given, expected 1..{MOST_POSITIONS}")
    numbers: list[float] = []
    for position, value in enumerate(values, start=1):
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise InputError(f"{where}: position {position} is {value!r}, expected a number in 0..1")
        if kind == "prefix" and numbers and value > numbers[-1]:
            raise InputError(
                f"{where}: survival rises from {numbers[-1]:g} to {value:g} at position {position}, expected "
                "survivals that never rise (or conditionals, without prefix)"
            )
        numbers.append(float(value))
    return conditionals(numbers) if kind == "prefix" else tuple(numbers)


def conditionals(survival: Sequence[float]) -> Positions:
    """Of survivals that never rise; 0 behind a survival of 0, where nobody ever gets."""
    before = (1.0, *survival[:-1])
    return tuple(min(here / earlier, 1.0) if earlier else 0.0 for here, earlier in zip(survival, before, strict=True))


def survivals(conditional: Sequence[float]) -> Positions:
    """The running product of conditionals."""
    out, product = [], 1.0
    for value in conditional:
        product *= value
        out.append(product)
    return tuple(out)


def accept_length(conditional: Sequence[float]) -> float:
    """Mean accepted length of whole blocks, bonus included."""
    return 1.0 + sum(survivals(conditional))


def shifted_to_length(conditional: Sequence[float], length: float) -> Positions:
    """The same shape at another accepted length: one shift of all positions in logit space, found by bisection.

    conditional: in (0, 1). Errors: InputError for a length outside 1..positions + 1, bounds excluded.
    """
    if not 1.0 < length < len(conditional) + 1:
        raise InputError(f"accepted length {length:g} is refused for {len(conditional)} positions, bonus included")
    logits = [math.log(value / (1.0 - value)) for value in conditional]
    low, high = -30.0, 30.0
    found: Positions = ()
    for _ in range(_ROUNDS):
        shift = (low + high) / 2
        found = tuple(1.0 / (1.0 + math.exp(-(logit + shift))) for logit in logits)
        low, high = (shift, high) if accept_length(found) < length else (low, shift)
    return found
