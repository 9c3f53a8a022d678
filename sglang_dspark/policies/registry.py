"""The one registry: every rule in the modules of `rules`, and those of packages that users have installed.

A rule is added to the project by adding its file to `rules`, to an installation by an entry point in the group
`sglang_dspark.policies` of any package: `name = "module:Class"`.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from functools import cache

from sglang_dspark.errors import InputError
from sglang_dspark.policies import external, rules
from sglang_dspark.policies.base import Policy


def _built_in() -> dict[str, type[Policy]]:
    found: dict[str, type[Policy]] = {}
    for module in pkgutil.iter_modules(rules.__path__, rules.__name__ + "."):
        for policy in vars(importlib.import_module(module.name)).values():
            own = isinstance(policy, type) and issubclass(policy, Policy) and policy.__module__ == module.name
            if own and "name" in vars(policy) and not inspect.isabstract(policy):
                assert policy.name not in found, f"two rules are named '{policy.name}'"
                found[policy.name] = policy
    return found


POLICIES: dict[str, type[Policy]] = _built_in()
"""The package's own, by name."""


@cache
def installed() -> dict[str, external.Found]:
    """What other packages offer, by name. Errors: InputError for a name that is taken, naming both sides."""
    return external.offered(POLICIES)


def find_policy(name: str) -> type[Policy]:
    """The class of that name. A user's class has passed its contract by the time this returns.

    Errors: InputError for a name that nobody offers, or a class that fails.
    """
    offered = installed()
    if name in POLICIES:
        return POLICIES[name]
    if name in offered:
        return external.accepted(offered[name])
    known = ", ".join(sorted([*POLICIES, *offered]))
    raise InputError(f"unknown policy '{name}', expected one of {known}")
