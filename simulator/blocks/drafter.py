"""What a drafter is to the simulator: how often its tokens are accepted, what a block costs to draft, whose it is."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from sglang_dspark.cost import Assumption
from sglang_dspark.errors import InputError
from simulator.blocks.survival import Positions, accept_length

Acceptance = dict[str, Positions]
DOMAINS = ("math", "code", "chat")
"""Domains of the paper's figures; a drafter may have others, or one."""


@dataclass(frozen=True)
class Method:
    """A kind of drafter. label: its name for people.

    backbone: draft time in blocks of the profile's DSpark draft, head excluded; of a sequential one per drafted
    position. sequential: one pass a position, so that a policy that never verifies more than k positions drafts k;
    otherwise one pass drafts the whole block, whatever is verified. markov: DSpark's head runs at every position.
    confidence: whether there is a confidence head. why: where `backbone` comes from, empty if it is the profile's own.
    """

    name: str
    label: str
    backbone: float
    sequential: bool
    markov: bool
    confidence: bool
    why: str = ""


_ONE_LAYER = "one layer a position against five a block"
METHODS = {
    "dspark": Method("dspark", "DSpark", 1.0, sequential=False, markov=True, confidence=True),
    "dflash": Method(
        "dflash", "DFlash", 1.0, sequential=False, markov=False, confidence=False, why="five layers in one pass"
    ),
    "eagle3": Method("eagle3", "EAGLE-3", 0.2, sequential=True, markov=False, confidence=False, why=_ONE_LAYER),
    "mtp": Method("mtp", "MTP", 0.2, sequential=True, markov=False, confidence=False, why=_ONE_LAYER),
}


@dataclass(frozen=True)
class Origin:
    """Whose acceptance it is, in the source's words; empty where the source does not say."""

    model: str = ""
    draft: str = ""
    data: str = ""
    temperature: str = ""
    source: str = ""
    licence: str = ""

    @property
    def text(self) -> str:
        """One line for people."""
        model = self.model or "model not named"
        parts = (model + (f" with {self.draft}" if self.draft else ""), self.data, self.temperature, self.source)
        return "; ".join(part for part in parts if part)


@dataclass(frozen=True)
class Drafter:
    """acceptance: conditional acceptance by domain, position 1..gamma, given that the positions before were accepted.

    cost_scale: draft time relative to the profile's block, of the block or (sequential) of a position; see `Method`.
    has_confidence: without a confidence head every block reports the mean acceptance. assumptions: what of the
    acceptance is not measured. ends: why positions beyond gamma are refused.
    """

    name: str
    acceptance: Acceptance
    cost_scale: float
    has_confidence: bool
    assumptions: tuple[Assumption, ...] = ()
    method: Method = METHODS["dspark"]
    origin: Origin = Origin()
    ends: str = ""

    @classmethod
    def of(cls, name: str, method: Method, acceptance: Acceptance, **more: Any) -> Drafter:
        """A drafter with the draft time and the confidence head of its method; `more`: further fields."""
        return cls(name, acceptance, method.backbone, method.confidence, method=method, **more)

    @property
    def gamma(self) -> int:
        """Draft block size."""
        return len(next(iter(self.acceptance.values())))

    @property
    def domains(self) -> tuple[str, ...]:
        """Domains with an acceptance of their own, in order."""
        return tuple(self.acceptance)

    @property
    def knows_domains(self) -> bool:
        """Whether the domain of a request makes a difference."""
        return len(set(self.acceptance.values())) > 1

    def cut(self, gamma: int | None) -> Drafter:
        """The same drafter with blocks of `gamma` tokens (None: its own); InputError beyond what is known."""
        if gamma is None or gamma == self.gamma:
            return self
        if not 1 <= gamma < self.gamma:
            if self.gamma == 0:
                raise InputError(f"gamma={gamma} is refused for drafter '{self.name}': it drafts nothing")
            why = f": {self.ends}" if self.ends and gamma > self.gamma else ""
            raise InputError(f"gamma={gamma} is refused for drafter '{self.name}', expected 1..{self.gamma}{why}")
        return replace(self, acceptance={domain: values[:gamma] for domain, values in self.acceptance.items()})

    def stated(self) -> dict[str, Any]:
        """Plain values for reports."""
        lengths = {domain: round(accept_length(values), 3) for domain, values in self.acceptance.items()}
        named = {key: value or None for key, value in asdict(self.origin).items()}
        return {
            "method": self.method.name,
            **named,
            "conditional": {d: list(v) for d, v in self.acceptance.items()},
            "accept_length": lengths,
        }
