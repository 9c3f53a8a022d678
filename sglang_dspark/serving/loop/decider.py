"""Decides, step by step, what the live engine verifies: the policies of `sglang_dspark.policies` on live state.

Pure host logic without torch or sglang, so that tests and replays run the very code. One `Decider` lives in every
scheduler process; only rank 0 of a tensor-parallel group decides, the others follow (`agreement`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sglang_dspark.policies import (
    Decision,
    LiveBlock,
    NoPrices,
    Outcome,
    Past,
    Plan,
    Policy,
    StepTiming,
    learned,
    policy_to_string,
    started,
    timing_of,
)
from sglang_dspark.policies.shared_tier import Asked, filled, group_seconds
from sglang_dspark.serving.base.faults import Faults
from sglang_dspark.serving.base.options import (
    OVERLAPPED_LAG,
    Resolved,
    Schedule,
    check_policy,
    check_shadow,
)
from sglang_dspark.serving.base.steps import BatchView, Reason, StepDecision, StepRecord
from sglang_dspark.serving.feedback.publishes import Publishes

_FALLBACK = "the fallback of its class decides"


@dataclass(slots=True)
class _Slot:
    """A policy at work: what it carries, and since which decode step it decides."""

    policy: Policy
    schedule: Schedule
    carry: Any
    since_step: int
    text: str = field(init=False)

    def __post_init__(self) -> None:
        self.text = policy_to_string(self.policy)


class Decider:
    """The live policy, an optional shadow, and their past."""

    def __init__(
        self, resolved: Resolved, gamma: int, publishes: Publishes, seed: int = 0, faults: Faults | None = None
    ) -> None:
        self.gamma = gamma
        self._resolved = resolved
        self.cost = resolved.cost
        self.explore = resolved.explore
        self.forced_fraction: float | None = None
        self.steps = 0
        self.faults = faults or Faults()
        self.publishes = publishes
        self._decide_with(self._slot(resolved.policy, resolved.schedule))
        self.shadow = None if resolved.shadow is None else self._slot(resolved.shadow, resolved.schedule)
        self._seed = seed

    @property
    def schedule(self) -> Schedule:
        """When the present policy decides."""
        return self.live.schedule

    def _decide_with(self, slot: _Slot) -> None:
        self.live = slot
        synchronous = slot.schedule == "synchronous"
        self.publishes.follow(1 if synchronous else OVERLAPPED_LAG, waits=synchronous)

    def _slot(self, policy: Policy, schedule: Schedule) -> _Slot:
        policy = policy.for_schedule(schedule == "synchronous")
        carry, fault = started(policy, self.gamma)
        slot = _Slot(policy, schedule, carry, self.steps)
        self._note(slot, fault)
        return slot

    def _note(self, slot: _Slot, fault: str | None, instead: str = "what it carries stays as it was") -> None:
        """A rule raised, if this says something."""
        if fault is not None:
            self.faults.note(f"policy {slot.text}", fault, instead)

    def switch(self, policy: Policy) -> None:
        """Make `policy` decide from the next step on (InputError when this server cannot run it).

        It ends SGLang's forced budget, which its own control message, numbers only, can set and not take back.
        """
        self._decide_with(self._slot(policy, self.check_switch(policy)))
        self.forced_fraction = None

    def check_switch(self, policy: Policy) -> Schedule:
        """The schedule under which `policy` would decide here; InputError when this server cannot run it."""
        schedule = self._resolved.schedule_of(policy, self.schedule)
        check_policy(policy, schedule, self.cost, self.gamma)
        if self.shadow is not None:
            check_shadow(self.shadow.policy, schedule, self.cost, self.gamma)
        return schedule

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
            batch.caps,
        )

    def before_draft(self, batch: BatchView, late: bool) -> StepDecision | None:
        """The decision when it does not need this step's draft; None when it does (synchronous schedule).

        late: a publish that this step should see has not arrived. A policy that looks at no past decides all the same.
        """
        if self.forced_fraction is not None:
            most = self.past(batch).totals(0, self.gamma)[1]
            budget = int(self.forced_fraction * most)
            return self._planned("forced", batch, Plan(budget, 0, self.gamma, batch.caps))
        if self._explores():
            return self.everything("explore", batch)
        policy = self.live.policy
        if late and (policy.max_lag > 0 or policy.learns):
            return self.everything("late", batch)
        plan = None if policy.live else policy.plan(self.past(batch))
        if plan is None:
            return None
        self._note(self.live, plan.fault, _FALLBACK)
        return self._planned("policy", batch, plan)

    def everything(self, reason: Reason, batch: BatchView) -> StepDecision:
        """Verify all, but for requests that asked for less."""
        if batch.caps is None:
            return StepDecision(reason, None)
        total = int(np.minimum(batch.caps, self.gamma).sum())
        return self._planned(reason, batch, Plan(total, 0, self.gamma, batch.caps))

    def after_draft(self, batch: BatchView, confidence: NDArray[np.float32]) -> StepDecision:
        """The decision of a policy that reads this step's confidences [R, gamma] float32."""
        return self.decided(batch, self.live.policy.decide(self.past(batch), LiveBlock.of(confidence)))

    def decided(self, batch: BatchView, decision: Decision, slot: _Slot | None = None) -> StepDecision:
        """A policy's decision (the live one's), with the time that the profile gives for it."""
        self._note(slot or self.live, decision.fault, _FALLBACK)
        seconds = self.predicted_s(batch, decision.total)
        return StepDecision("policy", decision.total, None, decision.lengths, seconds, decision.fault)

    def under_tier(self, batch: BatchView, decision: StepDecision, asked: Asked, tier: int) -> StepDecision:
        """What a decision becomes in a group whose ranks execute `tier` tokens: filled where its policy fills, at the
        group's price; the whole block in so many words, since ranks that do not verify all share its tier."""
        total, seconds = decision.total, self._group_seconds(asked, tier)
        if total is None:
            whole = Plan(batch.num_requests * self.gamma, self.gamma, self.gamma)
            return replace(decision, total=whole.budget, plan=whole, predicted_s=seconds)
        plan = None
        if decision.reason == "policy":
            plan = filled(self.live.policy, self.past(batch), total, tier)
        if plan is None:
            return replace(decision, predicted_s=seconds)
        plan = replace(plan, fault=decision.fault)
        return replace(decision, total=plan.budget, plan=plan, lengths=None, predicted_s=seconds)

    def _group_seconds(self, asked: Asked, tier: int) -> float | None:
        return None if self.cost is None else sum(group_seconds(self.cost, asked, tier))

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
            return self.decided(batch, slot.policy.decide(past, LiveBlock.of(confidence)), slot)

        return decide

    def predicted_s(self, batch: BatchView, total: int | None) -> float | None:
        """Step time that the profile gives for K = total (None: verify all) under the live policy, or None without a
        profile."""
        if self.cost is None:
            return None
        seconds = self._prices(batch).seconds
        more = self.cost.terms["adaptive_s"] if self.live.policy.adaptive else 0.0
        return float(seconds[-1 if total is None else min(total, seconds.size - 1)]) + more

    def everything_s(self, batch: BatchView) -> float | None:
        """The same for verifying everything under a policy that needs no survivals."""
        return None if self.cost is None else float(self._prices(batch).seconds[-1])

    def timing(self, record: StepRecord) -> StepTiming | None:
        """What an ended step took beside the belief; None without either. In a group: of the tier that all executed."""
        batch, decision, measured_s = record.batch, record.decision, record.step_s
        if self.cost is None or measured_s is None or batch.num_requests == 0:
            return None
        if record.shared_tier and decision.predicted_s is not None:
            return StepTiming(record.shared_tier, decision.predicted_s, measured_s)
        prices = self._prices(batch)
        admitted = prices.seconds.size - 1 if decision.total is None else decision.total
        return timing_of(prices, batch.num_requests, admitted, measured_s)

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
