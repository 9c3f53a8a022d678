"""One rule, shown another past or another block: what `calibrate=online` and `costs=online` have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sglang_dspark.policies.base import Policy
from sglang_dspark.policies.classes import Combined
from sglang_dspark.policies.parameters import parameter
from sglang_dspark.policies.rules.budget import Argmax
from sglang_dspark.policies.state import Past


@dataclass(frozen=True)
class Wrapped(Combined):
    """`inner` decides. What it carries is (what the wrapper has learned, what `inner` carries)."""

    inner: Policy = parameter(Argmax(), None, doc="the rule that decides")

    @property
    def kind(self) -> str:  # type: ignore[override]
        return self.inner.kind

    @property
    def parts(self) -> tuple[Policy]:
        return (self.inner,)

    @property
    def learns(self) -> bool:  # type: ignore[override]
        return True

    @property
    def max_lag(self) -> int:
        return self.inner.max_lag

    @property
    def min_lag(self) -> int:
        return self.inner.min_lag

    @property
    def fills(self) -> bool:
        return self.inner.fills

    def choose(self, past: Past) -> int:
        return 0

    def holds(self, kind: type[Policy]) -> bool:
        """Whether the rule, or a part of it, is one of `kind` already."""
        return any(isinstance(part, kind) for part in _all_parts(self.inner))


def _all_parts(policy: Policy) -> list[Any]:
    parts = policy.parts if isinstance(policy, Combined) else ()
    return [policy, *(inside for part in parts for inside in _all_parts(part))]
