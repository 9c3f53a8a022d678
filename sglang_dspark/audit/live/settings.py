"""What an audit does: how many samples of which tokens, beside what load, and when it calls a difference a bias."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sglang_dspark.errors import InputError

_RANGES: dict[str, tuple[float, float, str]] = {
    "skip": (0, 4096, "sampled tokens before the first audited one"),
    "tokens": (1, 64, "audited tokens of each continuation"),
    "samples": (100, 10_000_000, "continuations of each prompt"),
    "concurrency": (1, 4096, "audited requests at a time"),
    "background": (0, 4096, "long-running requests beside them"),
    "background_tokens": (16, 1_000_000, "most tokens of a background request"),
    "greedy_tokens": (1, 100_000, "tokens of each greedy continuation"),
    "control": (1, 10_000, "continuations of each prompt whose log-probabilities are asked for"),
    "alpha": (1e-12, 0.5, "chance that a lossless server is called biased"),
    "detect": (1e-3, 1.0, "total variation that must be visible for the verdict lossless"),
    "least_cut": (0.0, 1.0, "share of audited blocks that decisions must have cut"),
    "seed": (0, 2**31 - 1, "seed of the audit's own draws"),
}


@dataclass(frozen=True)
class AuditSettings:
    """InputError where a value is out of range; `_RANGES` says what each means.

    The defaults see a mean total variation of 0.05 in the token classes of one prompt out of four with 80 % power.
    """

    skip: int = 4
    tokens: int = 3
    samples: int = 2000
    concurrency: int = 8
    background: int = 4
    background_tokens: int = 512
    greedy_tokens: int = 64
    control: int = 8
    alpha: float = 0.001
    detect: float = 0.05
    least_cut: float = 0.30
    seed: int = 0

    def __post_init__(self) -> None:
        for name, (low, high, meaning) in _RANGES.items():
            value = getattr(self, name)
            if not math.isfinite(value) or not low <= value <= high:
                flag = "--" + name.replace("_", "-")
                raise InputError(f"{flag} {value} ({meaning}) is refused, expected {low:g}..{high:g}")

    @property
    def length(self) -> int:
        """Tokens of each continuation."""
        return self.skip + self.tokens
