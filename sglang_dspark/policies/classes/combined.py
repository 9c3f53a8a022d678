"""`Combined`: policies put together, the package's own. `Unrestricted`: for research, not lossless."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from sglang_dspark.policies.arithmetic import Ints
from sglang_dspark.policies.base import Policy
from sglang_dspark.policies.classes.bounded import of_plan
from sglang_dspark.policies.fallback import fault_of
from sglang_dspark.policies.state import Decision, LiveBlock, Outcome, Past, Plan


@dataclass(frozen=True)
class Unrestricted(Policy):
    """For research: sees the whole live block. Not lossless, refused by the live engine."""

    kind: ClassVar[str] = "unrestricted"
    reads_confidence: ClassVar[bool] = True
    knows_depth: ClassVar[bool] = False
    """Whether it is handed a `KnownBlock`, which only the simulator can make."""
    _supplies: ClassVar[str] = "choose(past, live)"

    @property
    def lossless(self) -> bool:
        return False

    @abstractmethod
    def choose(self, past: Past, live: LiveBlock) -> Ints:
        """Admitted tokens of each request, [R] int64."""

    def decide(self, past: Past, live: LiveBlock) -> Decision:
        lengths = self.choose(past, live)
        return Decision(lengths, int(lengths.sum()))


@dataclass(frozen=True)
class Combined(Policy):
    """Policies put together: which of them decides a step is known from the past. Lossless if all of them are."""

    kind: ClassVar[str] = "combined"

    @property
    @abstractmethod
    def parts(self) -> Sequence[Policy]:
        """The policies that it holds."""

    @abstractmethod
    def choose(self, past: Past) -> int:
        """Which part decides, from the past alone. `past.carry` holds what each of them carries."""

    @property
    def lossless(self) -> bool:
        return all(part.lossless for part in self.parts)

    @property
    def learns(self) -> bool:  # type: ignore[override]
        return any(part.learns for part in self.parts)

    @property
    def reads_confidence(self) -> bool:  # type: ignore[override]
        return any(part.reads_confidence for part in self.parts)

    @property
    def live(self) -> bool:
        return any(part.live for part in self.parts)

    @property
    def adaptive(self) -> bool:
        return True

    def bounds(self, gamma: int) -> tuple[int, int]:
        bounds = [part.bounds(gamma) for part in self.parts]
        return min(low for low, _ in bounds), max(high for _, high in bounds)

    def check(self, gamma: int) -> None:
        for part in self.parts:
            part.check(gamma)

    def start(self, gamma: int) -> tuple[Any, ...]:
        """What each part carries."""
        return tuple(part.start(gamma) for part in self.parts)

    def learn(self, carry: tuple[Any, ...], outcome: Outcome) -> tuple[Any, ...]:
        return tuple(part.learn(state, outcome) for part, state in zip(self.parts, carry, strict=True))

    def seen(self, past: Past, chosen: int) -> Past:
        """The past as the chosen part sees it: with what it carries itself."""
        return past.carrying(past.carry[chosen])

    def shown(self, past: Past, live: LiveBlock) -> LiveBlock:
        """The block as every part sees it."""
        return live

    def plan(self, past: Past) -> Plan | None:
        """None in a step in which a live part decides."""
        chosen = self._chosen(past)
        return chosen if isinstance(chosen, Plan) else chosen[0].plan(chosen[1])

    def decide(self, past: Past, live: LiveBlock) -> Decision:
        chosen = self._chosen(past)
        if isinstance(chosen, Plan):
            return of_plan(chosen, live)
        return chosen[0].decide(chosen[1], self.shown(past, live))

    def _chosen(self, past: Past) -> tuple[Policy, Past] | Plan:
        """The part that decides and the past as it sees it; where `choose` raises, what is done then."""
        try:
            chosen = self.choose(past)
            return self.parts[chosen], self.seen(past, chosen)
        except Exception as error:
            return past.everything(self.bounds(past.gamma)[1], fault_of(error, "choose"))
