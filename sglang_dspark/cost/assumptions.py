"""What no source gave: the value that stands in for it, and why."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Assumption:
    """One thing that is assumed. Look it up by `key`; `text` is for people.

    key: what it is about, of a fixed set of names (a cost term, "captured_tokens", "domain_mix", ...). value: what is
    assumed, in `unit` (None: nothing to count). source: who says so or why. what: the assumption in words, where
    `key = value` would not do.
    """

    key: str
    value: float | str | None
    unit: str
    source: str
    what: str = ""

    @property
    def text(self) -> str:
        """One sentence for people."""
        value = self.value if isinstance(self.value, str | None) else f"{self.value:.3g}"
        said = self.what or f"{self.key} = {value}"
        return f"{said} ({self.source})" if self.source else said

    def as_json(self) -> dict[str, Any]:
        """Plain values for reports."""
        return {
            "key": self.key,
            "value": self.value,
            "unit": self.unit,
            "source": self.source,
            "text": self.text,
        }

    def as_plain(self) -> dict[str, Any]:
        """Every field, for `from_plain`."""
        return asdict(self)

    @classmethod
    def from_plain(cls, plain: dict[str, Any] | str) -> Assumption:
        """The assumption back. Files of record format 1 hold sentences, which keep their words and have no key."""
        return cls("", None, "", "", plain) if isinstance(plain, str) else cls(**plain)


def keys_of(assumptions: Iterable[Assumption]) -> set[str]:
    """What the assumptions are about."""
    return {assumption.key for assumption in assumptions}
