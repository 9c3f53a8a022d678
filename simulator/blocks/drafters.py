"""Drafters by name: those that the package ships, and short names for the paper's."""

from __future__ import annotations

from dataclasses import replace

from sglang_dspark.errors import InputError
from simulator.blocks.drafter import DOMAINS, METHODS, Acceptance, Drafter, Method
from simulator.blocks.own import Given, own_drafter
from simulator.blocks.published import published_drafters

__all__ = [
    "ALIASES",
    "DEFAULT_DRAFTER",
    "DOMAINS",
    "DRAFTERS",
    "METHODS",
    "Acceptance",
    "Drafter",
    "Method",
    "choose_drafter",
    "find_drafter",
]

PUBLISHED: dict[str, Drafter] = published_drafters()
"""By full name, method:model."""

NO_DRAFTER = Drafter("none", dict.fromkeys(DOMAINS, ()), 0.0, False)
"""Only policy `none` runs with it: blocks of no token."""

ALIASES = {
    "dspark": PUBLISHED["dspark:qwen3-4b"],
    "dflash": PUBLISHED["dflash:qwen3-4b"],
    "eagle3": PUBLISHED["eagle3:qwen3-4b"],
    "mtp1": replace(PUBLISHED["mtp:deepseek-v4-pro"].cut(1), ends="mtp1 is its first token, the full name has more"),
}
"""Short names."""

DRAFTERS: dict[str, Drafter] = {**ALIASES, **PUBLISHED, "none": NO_DRAFTER}
DEFAULT_DRAFTER = "dspark"


def find_drafter(name: str, gamma: int | None = None) -> Drafter:
    """A drafter by name, its block cut to `gamma` tokens; InputError for an unknown name or positions that it lacks."""
    if name not in DRAFTERS:
        short = ", ".join([*ALIASES, "none"])
        raise InputError(f"unknown drafter '{name}', expected one of {short}, or a name that `dspark drafters` lists")
    return DRAFTERS[name].cut(gamma)


def choose_drafter(name: str | None, acceptance: Given | None = None, gamma: int | None = None) -> Drafter:
    """The drafter of a simulation: by name, or with an acceptance of one's own (`own_drafter`).

    With an acceptance a short name says what kind of drafter it is of; a full one, which has its own, is refused.
    """
    if acceptance is None:
        return find_drafter(name or DEFAULT_DRAFTER, gamma)
    if name is None:
        return own_drafter(acceptance).cut(gamma)
    method = find_drafter(name).method
    if name not in ALIASES:
        kinds = ", ".join(ALIASES)
        raise InputError(
            f"drafter '{name}' does nothing with an acceptance given, as it has one of its own: give one of them, or "
            f"the kind of drafter alone ({kinds})"
        )
    return own_drafter(acceptance, method).cut(gamma)
