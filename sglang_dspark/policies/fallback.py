"""What happens when a rule raises: a decision too, and it may depend only on what the class may see (design.md 3).

    raised on the past, before the draft     everything that floor and cap allow is verified;
    at rank m of a walk                      a decline at m, so the walk ends there;
    at a position of a request               that request ends before it, the others go on;
    in `start` or `learn`                    the carried state stays as it was.

"Whatever raises verifies everything" would leak: whether a later rank raises says something about it (TV 0.076).
The three classes apply these rules themselves (`classes`), so the simulator, the live engine, the replay and the audit
fall back alike; a decision says so in its `fault`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sglang_dspark.policies.base import Policy
    from sglang_dspark.policies.state import Outcome

_LONGEST = 200


class NotAFault:
    """Marks exceptions that pass through a rule on their way to whoever raised them: they are no fault of the rule."""


def fault_of(error: Exception, where: str) -> str:
    """One line that says what a rule raised and where. What is marked `NotAFault` goes on its way."""
    if isinstance(error, NotAFault):
        raise error
    what = " ".join(str(error).split())
    return f"{where} raised {type(error).__name__}{': ' if what else ''}{what[:_LONGEST]}"


def started(policy: Policy, gamma: int) -> tuple[Any, str | None]:
    """(what the policy carries into its first step, the fault if `start` raised: then it carries None)."""
    try:
        return policy.start(gamma), None
    except Exception as error:
        return None, fault_of(error, "start")


def learned(policy: Policy, carry: Any, outcome: Outcome) -> tuple[Any, str | None]:
    """(what the policy carries after an outcome, the fault if `learn` raised: then it is what it was)."""
    try:
        return policy.learn(carry, outcome), None
    except Exception as error:
        return carry, fault_of(error, "learn")
