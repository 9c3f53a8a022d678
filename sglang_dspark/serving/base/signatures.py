"""Whether a function of SGLang still takes what we pass to it, or is passed what ours takes (pure, no sglang).

What is expected is written as it is called: `name` positional, `*name` keyword-only. Anything else that SGLang has is a
difference, unless the text ends with `**` (ours stands in for it and takes whatever else is passed) or with `=` (we
call it, and the others have defaults).
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass

ANYTHING, DEFAULTS = "**", "="


@dataclass(frozen=True)
class Parameter:
    """One parameter: whether it is keyword-only, has a default, or takes the rest (`*args`, `**kwargs`)."""

    name: str
    keyword: bool = False
    default: bool = False
    rest: bool = False


def parameters_of(signature: inspect.Signature) -> list[Parameter]:
    """Of a function that is there to be asked."""
    return [
        Parameter(
            one.name,
            one.kind is one.KEYWORD_ONLY,
            one.default is not one.empty,
            one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD),
        )
        for one in signature.parameters.values()
    ]


def difference(expected: str, found: Sequence[Parameter]) -> str | None:
    """What does not fit, in words, or None."""
    wanted = [part.strip() for part in expected.split(",") if part.strip()]
    rule = wanted.pop() if wanted and wanted[-1] in (ANYTHING, DEFAULTS) else ""
    named = {one.name: one for one in found if not one.rest}
    keywords = [one[1:] for one in wanted if one.startswith("*")]
    positional = [one for one in wanted if not one.startswith("*")]
    gone = [name for name in (*positional, *keywords) if name not in named]
    if gone:
        return f"does not take {', '.join(gone)}"
    order = [one.name for one in found if not one.keyword and not one.rest]
    if order[: len(positional)] != positional:
        return f"takes ({', '.join(order)}) by position, expected ({', '.join(positional)})"
    more = [one for name, one in named.items() if name not in positional and name not in keywords]
    if rule == DEFAULTS:
        more = [one for one in more if not one.default]
    elif rule == ANYTHING:
        more = []
    if more:
        return f"takes {', '.join(one.name for one in more)} as well, which is not expected"
    return None
