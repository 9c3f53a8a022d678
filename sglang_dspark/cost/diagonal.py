"""Tables that were measured only with whole blocks, B = R (1 + gamma): their gamma, and what they cannot price.

SGLang's profiler fills its 1-D table so (static mode, one batch size after another) and leaves gamma + 1 in the
manifest beside it, as `verify_num_draft_tokens`.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import msgspec

from sglang_dspark.cost.assumptions import Assumption
from sglang_dspark.errors import InputError

_KEY = "diagonal_gamma"


def manifest_gamma(table: Path) -> int | None:
    """Gamma by the manifest that SGLang's profiler wrote beside a table; None where there is none."""
    manifest = table.with_name(f"{table.name}.manifest.json")
    if not manifest.is_file():
        return None
    try:
        size = msgspec.json.decode(manifest.read_bytes())["verify_num_draft_tokens"]
    except (OSError, msgspec.DecodeError, KeyError, TypeError) as error:
        raise InputError(f"{manifest}: cannot be read as SGLang's manifest ({error})") from error
    if not isinstance(size, int) or size < 2:
        raise InputError(f"{manifest}: verify_num_draft_tokens={size!r} is refused, expected an integer from 2")
    return size - 1


def gamma_of(probes: list[int], meta: dict[str, Any], name: str) -> tuple[int | None, tuple[Assumption, ...]]:
    """The gamma on whose diagonal all `probes` lie, as `meta.gamma` says or the probes imply, and what is assumed."""
    divisor, given = math.gcd(*probes), meta.get("gamma")
    if given is not None:
        if not isinstance(given, int) or given < 1 or divisor % (given + 1):
            raise InputError(
                f"profile {name}: meta.gamma={given!r} is refused, expected probes that are multiples of gamma + 1 "
                f"(they are of {divisor}), or meta.sweep 'off-diagonal'"
            )
        return given, ()
    if divisor < 2:
        why = "its probes have no common divisor and it has no meta.gamma"
        return None, (Assumption(_KEY, None, "", why, "with which gamma the table was measured is not known"),)
    gamma, why = divisor - 1, "the greatest common divisor of its probes, less the anchor: it has no meta.gamma"
    return gamma, (Assumption(_KEY, gamma, "draft tokens", why, f"the table was measured with gamma {gamma}"),)
