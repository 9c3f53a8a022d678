"""Rules from users' own packages: found by entry point, and accepted once their contract has passed.

The contract runs in the process that starts, once a class and version; workers and tensor-parallel ranks inherit the
verdict by their environment and do not run it again.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points

from sglang_dspark.errors import InputError
from sglang_dspark.policies.base import Policy
from sglang_dspark.policies.contract import ContractViolation, check_class

GROUP = "sglang_dspark.policies"
_PASSED = "DSPARK_POLICIES_PASSED"


@dataclass(frozen=True)
class Found:
    """An entry point. package: name and version of the distribution that has it."""

    name: str
    value: str
    package: str
    entry: EntryPoint

    @property
    def key(self) -> str:
        """What has passed, once it has."""
        return f"{self.name}={self.value}@{self.package}"


def offered(taken: Iterable[str]) -> dict[str, Found]:
    """Every rule that an installed package offers, by name, none of them loaded yet.

    Errors: InputError where two packages, or a package and this one, use one name.
    """
    found: dict[str, Found] = {}
    own = set(taken)
    for entry in entry_points(group=GROUP):
        package = f"{entry.dist.name} {entry.dist.version}" if entry.dist else "an unknown package"
        here = Found(entry.name, entry.value, package, entry)
        other = found.get(entry.name)
        if entry.name in own:
            raise InputError(f"policy '{entry.name}' of {package} is refused: sglang-dspark has a policy of that name")
        if other is not None and other.key != here.key:
            raise InputError(f"policy '{entry.name}' is offered by {other.package} and by {package}: expected one")
        found[entry.name] = here
    return found


def accepted(found: Found) -> type[Policy]:
    """The class of an entry point, loaded, and its contract run unless it has passed already.

    Prints the seconds that the contract took on stderr.
    Errors: InputError when it cannot be loaded, is no policy, has another name, or fails a check.
    """
    where = f"policy '{found.name}' of {found.package}"
    try:
        policy = found.entry.load()
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{where} cannot be loaded from {found.value}: {type(error).__name__}: {error}") from error
    check_kind(policy, where)
    if policy.name != found.name:
        raise InputError(f"{where} is refused: its class is named '{policy.name}', expected '{found.name}'")
    passed = os.environ.get(_PASSED, "").split("\n")
    if found.key not in passed:
        began = time.perf_counter()
        try:
            check_class(policy)
        except ContractViolation as error:
            raise InputError(f"{where} is refused, it fails its contract: {error}") from error
        print(f"{where}: contract passed in {time.perf_counter() - began:.1f} s", file=sys.stderr)
        os.environ[_PASSED] = "\n".join([*filter(None, passed), found.key])
    return policy


def check_kind(policy: object, where: str) -> None:
    """Refuse (InputError) what is not a class of policies that can be made."""
    if not (isinstance(policy, type) and issubclass(policy, Policy)):
        raise InputError(
            f"{where} is refused: {policy!r} is no policy class, expected a subclass of BudgetRule, "
            "StoppingRule or LengthRule"
        )
    missing = sorted(getattr(policy, "__abstractmethods__", ()))
    if missing or not isinstance(getattr(policy, "name", None), str):
        raise InputError(f"{where} is refused: {policy.__name__} lacks {', '.join(missing) or 'a name'}")
