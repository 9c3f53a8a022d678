"""Decides, step by step, what the live engine verifies: the policies of `sglang_dspark.policies` on live state.

Pure host logic without torch or sglang, so that tests and replays run the very code. One `Decider` lives in every
scheduler process; only rank 0 of a tensor-parallel group decides, the others follow (`agreement`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sglang_dspark.policies import Decision, LiveBlock, Outcome, Past, Plan, Policy, learned, policy_to_string, started
from sglang_dspark.serving.base.options import NoPrices, Resolved, check_policy
from sglang_dspark.serving.base.steps import BatchView, Reason, StepDecision
from sglang_dspark.serving.feedback.publishes import Publishes

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Slot:
    """A policy at work: what it carries, and since which decode step it decides."""

    policy: Policy
    carry: Any
    since_step: int
    fault: str | None = None
    text: str = field(init=False)

    def __post_init__(self) -> None:
        self.text = policy_to_string(self.policy)


class Decider:
    """The live policy, an optional shadow, and their past."""

    def __init__(self, resolved: Resolved, gamma: int, publishes: Publishes, seed: int = 0) -> None:
        self.gamma = gamma
        self.schedule = resolved.schedule
        self.cost = resolved.cost
        self.explore = resolved.explore
        self.forced_fraction: float | None = None
        self.steps = 0
        self.learning_faults = 0
        self.publishes = publishes
        self.live = self._slot(resolved.policy)
        self.shadow = None if resolved.shadow is None else self._slot(resolved.shadow)
        self._seed = seed

    def _slot(self, policy: Policy) -> _Slot:
        carry, fault = started(policy, self.gamma)
        slot = _Slot(policy, carry, self.steps)
        self._note(slot, fault)
        return slot

    def _note(self, slot: _Slot, fault: str | None) -> None:
        """A rule raised where it learns: said once a policy; what it carries has stayed as it was."""
        if fault is not None:
            self.learning_faults += 1
            if slot.fault is None:
                logger.warning("DSpark policy %s: %s; what it carries stays as it was", slot.text, fault)
            slot.fault = fault

    def switch(self, policy: Policy) -> None:
        """Make `policy` decide from the next step on (InputError when this server cannot run it).

        It ends SGLang's forced budget, which its own control message, numbers only, can set and not take back.
        """
        check_policy(policy, self.schedule, self.cost, self.gamma)
        self.live = self._slot(policy)
        self.forced_fraction = None

    @property
    def learns(self) -> bool:
        """Whether the policy or its shadow wants outcomes."""
        return self.live.policy.learns or (self.shadow is not None and self.shadow.policy.learns)

    def learn(self, outcome: Outcome) -> None:
        """The outcome of an earlier step, in order."""
        for slot in (self.live, self.shadow):
            if slot is not None and slot.policy.learns:
                slot.carry, fault = learned(slot.policy, slot.carry, outcome)
                self._note(slot, fault)

    def past(self, batch: BatchView, slot: _Slot | None = None) -> Past:
        """What is known before this step's draft, for the live policy or another slot."""
        return Past(
            batch.num_requests,
            self.gamma,
            self._prices(batch),
            lambda lag: self.publishes.look(batch.slots, batch.generation, lag),
            (slot or self.live).carry,
            batch.waiting,
        )

    def before_draft(self, batch: BatchView, late: bool) -> StepDecision | None:
        """The decision when it does not need this step's draft; None when it does (synchronous schedule).

        late: a publish that this step should see has not arrived. A policy that looks at no past decides all the same.
        """
        if self.forced_fraction is not None:
            budget = int(self.forced_fraction * batch.num_requests * self.gamma)
            return self._planned("forced", batch, Plan(budget, 0, self.gamma))
        if self._explores():
            return StepDecision("explore", None)
        policy = self.live.policy
        if late and (policy.max_lag > 0 or policy.learns):
            return StepDecision("late", None)
        plan = None if policy.live else policy.plan(self.past(batch))
        return None if plan is None else self._planned("policy", batch, plan)

    def after_draft(self, batch: BatchView, confidence: NDArray[np.float32]) -> StepDecision:
        """The decision of a policy that reads this step's confidences [R, gamma] float32."""
        return self.decided(batch, self.live.policy.decide(self.past(batch), LiveBlock.of(confidence)))

    def decided(self, batch: BatchView, decision: Decision) -> StepDecision:
        """The live policy's decision, with the time that the profile gives for it."""
        seconds = self.predicted_s(batch, decision.total)
        return StepDecision("policy", decision.total, None, decision.lengths, seconds, decision.fault)

    def shadow_ticket(self, batch: BatchView) -> Callable[[NDArray[np.float32]], StepDecision] | None:
        """The shadow's decision on this step's past, to be taken once the confidences are on the host.

        The past is frozen now: by then the ring has moved on. None without a shadow.
        """
        slot = self.shadow
        if slot is None:
            return None
        past = self.past(batch, slot)
        first = self.publishes.visible_lag
        frozen = {lag: past.survival(lag) for lag in range(first, slot.policy.max_lag + 1)}
        past = replace(past, lagged=lambda lag: (frozen[lag][0].copy(), frozen[lag][1].copy()))

        def decide(confidence: NDArray[np.float32]) -> StepDecision:
            return self.decided(batch, slot.policy.decide(past, LiveBlock.of(confidence)))

        return decide

    def predicted_s(self, batch: BatchView, total: int | None) -> float | None:
        """Step time that the profile gives for K = total (None: verify all), or None without a profile."""
        if self.cost is None:
            return None
        seconds = self._prices(batch).seconds
        return float(seconds[-1 if total is None else min(total, seconds.size - 1)])

    def _prices(self, batch: BatchView) -> Any:
        if self.cost is None:
            return NoPrices()
        return self.cost.prices(batch.num_requests, self.gamma, float(batch.context_tokens))

    def _planned(self, reason: Reason, batch: BatchView, plan: Plan) -> StepDecision:
        return StepDecision(reason, plan.budget, plan, None, self.predicted_s(batch, plan.budget), plan.fault)

    def _explores(self) -> bool:
        """A coin of this step alone, drawn by counter before the draft: the past decides, so it is a budget rule."""
        if self.explore <= 0.0:
            return False
        return bool(np.random.Generator(np.random.Philox(key=[self._seed, self.steps])).random() < self.explore)
