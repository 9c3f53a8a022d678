"""Values of flags that are more than a number: lists, and key=value pairs."""

from __future__ import annotations

import math
from collections.abc import Mapping

from sglang_dspark.errors import InputError

_MOST = 64


def key_values(flag: str, text: str | None, known: Mapping[str, object] | tuple[str, ...]) -> dict[str, float]:
    """`a=1,b=2` as numbers; InputError names the flag and what it takes."""
    out: dict[str, float] = {}
    for item in text.split(",") if text else ():
        key, _, value = (part.strip() for part in item.partition("="))
        if key not in known:
            raise InputError(f"{flag}: '{item}' is refused, expected {', '.join(f'{name}=NUMBER' for name in known)}")
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise InputError(f"{flag}: {key}='{value}' is refused, expected a finite number")
        if key in out:
            raise InputError(f"{flag}: '{key}' is given twice")
        out[key] = number
    return out


def numbers(flag: str, text: str, *, whole: bool = False) -> list[float]:
    """`8,16,32` as increasing numbers, each once; InputError names the flag."""
    kind = "integers" if whole else "numbers"
    try:
        found = [int(item) if whole else float(item) for item in text.split(",")]
    except ValueError:
        raise InputError(f"{flag} {text} is refused, expected {kind} such as 8 or 8,16,32") from None
    if any(math.isnan(number) for number in found) or len(found) > _MOST:
        raise InputError(f"{flag} {text} is refused, expected at most {_MOST} {kind} such as 8 or 8,16,32")
    if found != sorted(set(found)):
        raise InputError(f"{flag} {text} is refused, expected increasing {kind}, each once")
    return list(found)
