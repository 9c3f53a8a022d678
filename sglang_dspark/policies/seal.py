"""The seal: which classes a user's rule may subclass, and which names are the package's own.

A policy is lossless because of what its rule is handed. So the parts that handle the live block, and the words
`lossless` and `kind`, belong to the classes; a rule fills in the rest. This stops a leak that is written by accident,
not a program that goes out of its way (Python has no locks): `policies.contract` and the exact audit look for those.
"""

from __future__ import annotations

from typing import Any

from sglang_dspark.errors import InputError

PACKAGE = "sglang_dspark.policies."
_OPEN = ("BudgetRule", "StoppingRule", "LengthRule", "Unrestricted")


def is_own(cls: type[Any]) -> bool:
    """Whether a class is the package's own."""
    return cls.__module__.startswith(PACKAGE)


def check_seal(cls: type[Any]) -> None:
    """Refuse (InputError) a user's class that is no rule of one of the open classes, or that defines a sealed name."""
    if is_own(cls):
        return
    where = f"policy class {cls.__module__}.{cls.__qualname__}"
    classes = [base.__name__ for base in cls.__mro__ if base.__name__ in _OPEN and is_own(base)]
    if len(classes) != 1:
        found = f"subclasses {' and '.join(classes)}" if classes else "subclasses none of them"
        raise InputError(
            f"{where} is refused: it {found}, expected exactly one of BudgetRule, StoppingRule, LengthRule, or for "
            "research Unrestricted"
        )
    for name in sorted(cls._sealed):
        owner = next(base for base in cls.__mro__ if name in vars(base))
        if not is_own(owner):
            raise InputError(
                f"{where} is refused: '{name}' is the package's own in a {classes[0]}, expected a rule that defines "
                f"{cls._supplies}"
            )
