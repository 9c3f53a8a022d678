"""Named drafters: how often their tokens are accepted, by domain and position, and what a block costs to draft.

Conditional acceptance comes from the DSpark paper (2026), Figure 2 (Qwen3-4B, positions 1..7, bonus excluded).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from sglang_dspark.cost import Assumption
from sglang_dspark.errors import InputError

Acceptance = dict[str, tuple[float, ...]]
DOMAINS = ("math", "code", "chat")

_DSPARK: Acceptance = {
    "math": (0.9053, 0.8899, 0.8878, 0.8854, 0.8872, 0.8906, 0.8824),
    "code": (0.8857, 0.8719, 0.8598, 0.8608, 0.8579, 0.8594, 0.8510),
    "chat": (0.7353, 0.7376, 0.7402, 0.7441, 0.7583, 0.7656, 0.7609),
}
_DFLASH: Acceptance = {
    "math": (0.8850, 0.8270, 0.8198, 0.8338, 0.8414, 0.8390, 0.8277),
    "code": (0.8654, 0.8145, 0.7971, 0.8013, 0.8098, 0.8014, 0.7770),
    "chat": (0.7181, 0.6479, 0.6382, 0.6606, 0.6820, 0.6919, 0.6877),
}
_EAGLE3: Acceptance = {
    "math": (0.8106, 0.8231, 0.8382, 0.8442, 0.8508, 0.8557, 0.8502),
    "code": (0.7710, 0.7737, 0.7812, 0.7913, 0.7870, 0.7939, 0.7840),
    "chat": (0.5336, 0.5894, 0.6421, 0.6782, 0.7086, 0.7289, 0.7325),
}
# One multi-token-prediction head: InferenceX golden acceptance lengths, DeepSeek-V4-Pro, SPEED-Bench coding, mean of
# thinking on (1.79) and off (1.92); the source has no other domain.
_MTP1: Acceptance = dict.fromkeys(DOMAINS, (0.855,))


@dataclass(frozen=True)
class Drafter:
    """acceptance: conditional acceptance by domain, position 1..gamma, given that the positions before were accepted.

    cost_scale: draft time relative to the profile's DSpark block. has_confidence: without a confidence head every
    block reports the mean acceptance. assumptions: what of this is not measured.
    """

    name: str
    acceptance: Acceptance
    cost_scale: float
    has_confidence: bool
    assumptions: tuple[Assumption, ...] = ()

    @property
    def gamma(self) -> int:
        """Draft block size."""
        return len(next(iter(self.acceptance.values())))


def _scaled(scale: float, words: str, why: str) -> Assumption:
    return Assumption("draft_time", scale, "blocks of the profile", why, words)


DRAFTERS: dict[str, Drafter] = {
    "dspark": Drafter("dspark", _DSPARK, 1.0, True),
    "dflash": Drafter(
        "dflash", _DFLASH, 1.0, False,
        (_scaled(1.0, "dflash draft time = the profile's block", "the Markov head's share is not published"),),
    ),
    "eagle3": Drafter(
        "eagle3", _EAGLE3, 1.4, False,
        (_scaled(
            1.4, "eagle3 draft time = 7/5 of the profile's block", "seven passes of one layer against one of five"
        ),),
    ),
    "mtp1": Drafter(
        "mtp1", _MTP1, 0.2, False,
        (
            _scaled(0.2, "mtp1 draft time = 1/5 of the profile's block", "one layer of five"),
            Assumption(
                "acceptance", _MTP1["code"][0], "", "the source has no other",
                "mtp1 acceptance is that of coding prompts in every domain",
            ),
        ),
    ),
    "none": Drafter("none", dict.fromkeys(DOMAINS, (0.5,)), 0.0, False),
}  # fmt: skip
"""`none` has no drafter: only policy `none` runs with it (its one acceptance entry is never read)."""

DEFAULT_DRAFTER = "dspark"


def find_drafter(name: str, gamma: int | None = None) -> Drafter:
    """A drafter by name, its block cut to `gamma` tokens (draft time in proportion to nothing: one parallel pass)."""
    if name not in DRAFTERS:
        raise InputError(f"unknown drafter '{name}', expected one of {', '.join(DRAFTERS)}")
    drafter = DRAFTERS[name]
    if gamma is None or gamma == drafter.gamma:
        return drafter
    if not 1 <= gamma < drafter.gamma:
        raise InputError(f"gamma={gamma} is refused for drafter '{name}', expected 1..{drafter.gamma}")
    cut = {domain: values[:gamma] for domain, values in drafter.acceptance.items()}
    return replace(drafter, acceptance=cut)
