"""What every policy is. The classes that a rule subclasses are in `classes`; what they may see is in `state`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from sglang_dspark.errors import InputError
from sglang_dspark.policies.parameters import check_parameters
from sglang_dspark.policies.seal import check_seal
from sglang_dspark.policies.state import Decision, LiveBlock, Outcome, Past, Plan


@dataclass(frozen=True)
class Policy(ABC):
    """Chooses how many draft tokens of each request the target verifies. Pure in what it is given.

    name: as written on a command line. kind: the class, in a word. lossless: granted by the class.
    """

    name: ClassVar[str]
    kind: ClassVar[str]
    learns: ClassVar[bool] = False
    """Whether `learn` wants the outcomes of earlier steps."""
    reads_confidence: ClassVar[bool] = False
    """Whether `LiveBlock.confidence` must be filled; most rules read survivals alone."""
    _sealed: ClassVar[frozenset[str]] = frozenset({"lossless", "kind", "live", "bounds", "plan", "decide"})
    _supplies: ClassVar[str] = "what its class asks for"

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        check_seal(cls)

    def __post_init__(self) -> None:
        check_parameters(self)

    @property
    @abstractmethod
    def lossless(self) -> bool:
        """Whether the joint output law is the target's whatever the rule does: the class says so, never a rule."""

    @property
    def drafts(self) -> bool:
        """False when there is no drafter at all."""
        return True

    @property
    def live(self) -> bool:
        """Whether the number of verified tokens depends on this step's survivals (needs the synchronous schedule)."""
        return True

    @property
    def adaptive(self) -> bool:
        """Whether what is verified depends on survivals at all, lagged or live: such a policy needs them every step."""
        return True

    @property
    def max_lag(self) -> int:
        """The oldest publish that it looks at; 0 if it never looks at lagged survivals."""
        return 0

    @property
    def min_lag(self) -> int:
        """The newest publish that it looks at; 0 if it never looks at lagged survivals."""
        return self.max_lag

    @property
    def fills(self) -> bool:
        """Whether tokens that cost nothing are verified too: up to a tier that runs anyway (`shared_tier`). What it
        decides must then be the first of the live admission order, as budget and stopping rules' is."""
        return False

    def bounds(self, gamma: int) -> tuple[int, int]:
        """(positions that every request verifies, the last that any may verify) in a block of gamma."""
        return 0, gamma

    def for_schedule(self, synchronous: bool) -> Policy:
        """The policy as it decides under a schedule: most decide alike under any that they can run under."""
        return self

    def positions(self) -> dict[str, int | None]:
        """The parameters that are positions of the draft block, by name."""
        return {}

    def check(self, gamma: int) -> None:
        """Refuse parameters that make no sense for this block size (InputError)."""
        for field, value in self.positions().items():
            if value is not None and value > gamma:
                raise InputError(f"policy '{self.name}': {field}={value} exceeds the draft block, expected 0..{gamma}")

    def start(self, gamma: int) -> Any:
        """The carried state before the first step."""
        return None

    def learn(self, carry: Any, outcome: Outcome) -> Any:
        """The carried state after the outcome of an earlier step; never sees the current draft."""
        return carry

    def plan(self, past: Past) -> Plan | None:
        """The whole decision where it can be made before the draft is drawn, else None."""
        return None

    @abstractmethod
    def decide(self, past: Past, live: LiveBlock) -> Decision:
        """Verify lengths of this step. The classes implement it; a rule does not."""
