"""Online costs as a part that any rule that compares step times can have: `argmax:costs=online`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

from sglang_dspark.errors import InputError
from sglang_dspark.policies import tier_costs
from sglang_dspark.policies.needs import knows_depth, needs_prices
from sglang_dspark.policies.rules.wrapped import Wrapped
from sglang_dspark.policies.state import Outcome, Past


@dataclass(frozen=True)
class Repriced(Wrapped):
    """`inner` with believed step times corrected tier by tier, by the measured times of earlier steps.

    Starts at the belief. Written as `costs=online` among the parameters of `inner`.
    """

    name: ClassVar[str] = "repriced"

    def __post_init__(self) -> None:
        super().__post_init__()
        if knows_depth(self.inner):
            raise InputError(
                f"policy '{self.inner.name}': costs=online is refused, it knows what will be accepted; expected a rule "
                "that goes by confidences or by prices alone"
            )
        if self.holds(Repriced) or not needs_prices(self.inner):
            raise InputError(
                f"policy '{self.inner.name}': costs=online is refused, it compares no step times or learns them "
                "already; expected a rule that compares step times"
            )

    @property
    def reads_confidence(self) -> bool:  # type: ignore[override]
        return self.inner.reads_confidence

    def start(self, gamma: int) -> tuple[tier_costs.State, Any]:
        """Nothing learned, and what `inner` carries."""
        return tier_costs.START, self.inner.start(gamma)

    def learn(self, carry: tuple[tier_costs.State, Any], outcome: Outcome) -> tuple[tier_costs.State, Any]:
        state, inner = carry
        inner = self.inner.learn(inner, outcome) if self.inner.learns else inner
        return (state if outcome.timing is None else tier_costs.followed(state, outcome.timing)), inner

    def seen(self, past: Past, chosen: int) -> Past:
        state, carry = past.carry
        by_tier = tier_costs.corrections(state)
        if not by_tier:
            return past.carrying(carry)
        prices = tier_costs.corrected(past.prices, past.num_requests, by_tier)
        return replace(past, prices=prices, carry=carry)
