"""Whose acceptance is priced on whose step costs."""

from __future__ import annotations

import re
from collections.abc import Sequence

from sglang_dspark.policies import Policy
from simulator.blocks.drafters import DRAFTERS
from simulator.engine.run import Setting

_IGNORED = re.compile(r"\d{4}|fp\d+|nvfp\d+|mxfp\d+|bf16|int\d+|awq|gptq|w\d+a\d+|instruct|chat|hf")
"""Dates, precisions and trainings: the acceptance of one is the best guess for another."""


def acceptance_text(setting: Setting) -> str:
    """One line: model, draft, data, temperature, source."""
    if setting.recorded is not None:
        return "recorded blocks of the trace's requests"
    return "no drafter" if setting.drafter.name == "none" else setting.drafter.origin.text


def other_model(setting: Setting, policies: Sequence[Policy]) -> tuple[str, ...]:
    """One warning where acceptance and step costs are of different models, as far as both are named."""
    drafted, priced = setting.drafter.origin.model, str(setting.cost.meta.get("model") or "")
    drafts = any(policy.drafts for policy in policies)
    if not drafts or not drafted or not priced or same_model(drafted, priced):
        return ()
    own = [name for name, each in DRAFTERS.items() if each.origin.model and same_model(each.origin.model, priced)]
    known = f", or --drafter {' or '.join(own)}" if own else ""
    return (
        f"warning: the acceptance is that of {drafted} ({setting.drafter.name}), the step costs are those of {priced}: "
        f"which policy wins depends on acceptance: give your own by --acceptance{known}",
    )


def same_model(one: str, other: str) -> bool:
    """Whether two names are of one model: the words of one stand in the other, in order and together."""
    words, within = sorted((_words(one), _words(other)), key=len)
    size = len(words)
    return size > 0 and any(within[at : at + size] == words for at in range(len(within) - size + 1))


def _words(name: str) -> list[str]:
    """Lower-case words of the model's own name, the owner before a slash and what follows a comma left out."""
    own = name.split(",")[0].rpartition("/")[2]
    return [word for word in re.findall(r"[a-z0-9.]+", own.lower()) if not _IGNORED.fullmatch(word)]
