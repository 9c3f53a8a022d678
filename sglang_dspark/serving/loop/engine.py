"""The part of the worker that knows policies: decides each decode step, follows its outcome, feeds observers.

It touches SGLang's objects only by attribute, so that tests drive it without a server. Call order in a decode step:
`before_forward` (overlapped schedule only), `enter`, `decide`, `lengths`, `published`.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from sglang_dspark import jit
from sglang_dspark.cost.capture import captured_as
from sglang_dspark.policies import Outcome, Policy, calibration_of, carry_as_json, costs_of
from sglang_dspark.policies.arithmetic import Ints
from sglang_dspark.policies.shared_tier import Asked, ask_for
from sglang_dspark.serving.base.admission import known_lengths, planned_lengths
from sglang_dspark.serving.base.faults import Faults
from sglang_dspark.serving.base.options import OVERLAPPED_LAG, Kernels, Resolved
from sglang_dspark.serving.base.start_line import shown_of
from sglang_dspark.serving.base.steps import BatchView, StepDecision, StepObserver, StepRecord
from sglang_dspark.serving.base.trial_plan import TrialPlan
from sglang_dspark.serving.feedback.clock import StepClock
from sglang_dspark.serving.feedback.copies import StepCopy
from sglang_dspark.serving.feedback.counters import Counters, ShadowLog
from sglang_dspark.serving.feedback.drift import DriftWatch
from sglang_dspark.serving.feedback.figures import CalibrationMeter, figures_of
from sglang_dspark.serving.feedback.observers import Observers
from sglang_dspark.serving.feedback.publishes import Publishes
from sglang_dspark.serving.gpu.device_kernels.live import LiveDecisions
from sglang_dspark.serving.loop.agreement import Agreement
from sglang_dspark.serving.loop.batch_reader import BatchReader
from sglang_dspark.serving.loop.decider import Decider
from sglang_dspark.serving.loop.tier_group import TierGroup
from sglang_dspark.serving.loop.trials import Trials


class PolicyEngine:
    """One per scheduler process. Only rank 0 of a group decides, keeps the past and has observers."""

    def __init__(
        self,
        resolved: Resolved,
        *,
        gamma: int,
        generations: torch.Tensor,
        device: torch.device,
        agreement: Agreement,
        caps_only: bool,
        seed: int = 0,
        kernels: Kernels = "auto",
        faults: Faults | None = None,
        tiers: TierGroup | None = None,
        everyone: Agreement | None = None,
    ) -> None:
        """generations: SGLang's `req_generation` [slots] on the host. caps_only: cap-accept instead of compact.

        agreement: the ranks that run this one's batch. tiers: the DP-attention ranks that run its tier, None without;
        everyone: all of them, for switches (None: `agreement`).

        kernels: whether live stopping rules may be decided on the device. faults: where what fails is counted.
        """
        self.faults = faults or Faults()
        publishes = Publishes(generations.shape[0], gamma, OVERLAPPED_LAG, waits=False)
        self.decider = Decider(resolved, gamma, publishes, seed, self.faults)
        self.counters = Counters()
        self.meter = CalibrationMeter()
        self.trials = Trials(tells=agreement.decides, judges=tiers is None or tiers.leads)
        self._agreement = agreement
        self._everyone = everyone or agreement
        self._tiers = tiers
        self.asked: Asked | None = None  # of the present step, with a group
        self._idled = False
        self._captured: Ints | None = None  # this engine's graphs
        self.reader = BatchReader(generations, gamma)
        self._device = device
        self._caps_only = caps_only
        self.drift = DriftWatch(lambda: None if self.decider.cost is None else self.decider.cost.name)
        self.observers = Observers(self.faults, self.counters, self.drift)
        if self.decider.shadow is not None:
            self.observers.add(ShadowLog(self.decider.shadow.text))
        self._records: deque[tuple[StepRecord, Any]] = deque()
        self._decision: StepDecision | None = None
        self._record: StepRecord | None = None
        self._ticket: Any = None
        self._previous: StepRecord | None = None
        self._prefill_before = False
        self.clock = StepClock(device, self.faults)
        self.live_decisions = LiveDecisions(device, kernels, self.faults)
        self.recording: Callable[[], dict[str, Any]] | None = None  # what the recorder says of itself, with one
        self.gpu_memory_gib: float | None = None  # of one GPU, where there is one
        self.hardware = ""  # this machine's accelerator by name
        self.graphs: list[int] = []  # captured batch sizes, increasing
        self.limits: dict[str, int] = {}  # max_running_requests, kv_tokens: what this engine holds
        self.kernels: dict[str, str] = {}  # whose each operation is, and why

    # --- observers -------------------------------------------------------------------------------------------------

    def add_observer(self, observer: StepObserver) -> None:
        """See `steps`."""
        self.observers.add(observer)

    def note_prefill(self, reqs: list[Any], num_tokens: int) -> None:
        """A prefill step begins."""
        self._prefill_before = True
        if self._agreement.decides:
            self.observers.on_prefill(reqs, num_tokens)

    def note_finished(self, rid: str, natural_stop: bool) -> None:
        """A request left the engine."""
        if self._agreement.decides:
            self.observers.on_finished(rid, natural_stop)

    def settle(self) -> None:
        """Bring every publish in flight to the host and to the observers; the worker calls it when it turns idle."""
        with self.faults.caught("publishes", "they are forgotten"):
            for published in self.decider.publishes.drain():
                self._arrived(published)
        self._in_step_with_publishes()
        self.observers.settle()

    # --- one decode step -------------------------------------------------------------------------------------------

    def before_forward(self, batch: Any) -> StepDecision | None:
        """Overlapped schedule: decide while the device still works on the previous step."""
        self._return_if_due()
        if self.decider.schedule != "overlapped":
            return None
        self._decision = self._agreed(self.reader.view(batch), batch, None)
        return self._decision

    def idle(self, *, before_forward: bool) -> None:
        """A decode step of other ranks, with nothing to do on this one: it asks for no tokens.

        Called before the forward and inside it; what the others do there, deciding and gathering, is done here.
        """
        if self._tiers is None:
            return
        if not before_forward and self._idled:
            self._idled = False
            return
        self._return_if_due()
        if before_forward and self.decider.schedule != "overlapped":
            return
        self._idled = before_forward
        self._previous = None  # its step does not end where the next one of this rank begins
        step = self._tiers.share(self.decider.steps, 0, 0, 0, goes_back=self.trials.due)
        self.asked, self.trials.fails = step.asked, step.goes_back
        self.decider.steps += 1

    def enter(self, batch: Any, forward: int) -> None:
        """The decode step begins; `batch` is what will be decided on if it has not been."""
        now = time.perf_counter()
        previous = self._previous
        if previous is not None and not self._prefill_before:
            previous.step_s = now - previous.began_s
        self._batch = batch
        self._began_s = now
        self._forward = forward
        if self.decider.schedule != "overlapped":
            self._decision = None  # of a step that failed before its outcome
        self.clock = StepClock(self._device, self.faults)

    def decide(self, confidence: torch.Tensor) -> StepDecision:
        """This step's decision; confidence: [R, gamma] of this step's draft, read only where the policy needs it."""
        if self._decision is None:
            self._return_if_due()
            self._decision = self._agreed(self.reader.view(self._batch), self._batch, confidence)
        return self._decision

    def lengths(self, confidence: torch.Tensor) -> torch.Tensor | None:
        """Admitted draft tokens [R] int64 on the draft's device, None to verify everything."""
        decision = self._decision
        if decision is None or decision.total is None:
            return None
        if decision.plan is not None:
            return planned_lengths(confidence, decision.plan)
        return torch.from_numpy(decision.lengths).to(confidence.device, non_blocking=True)

    def host_lengths(self, num_requests: int) -> list[int] | None:
        """Admitted draft tokens [R] where the decision itself fixes them, without a look at the device."""
        decision = self._decision
        if decision is None or decision.total is None:
            return None
        if decision.lengths is not None:
            return decision.lengths.tolist()
        found = None if decision.plan is None else known_lengths(decision.plan, num_requests)
        return None if found is None else found.tolist()

    def published(
        self,
        *,
        confidence: torch.Tensor,
        lengths: torch.Tensor | None,
        accepted: torch.Tensor,
        trimmed: torch.Tensor,
        prefix_lengths: torch.Tensor,
        executed_tier: int,
    ) -> None:
        """The step has ended on the device (or is enqueued there): its values start for the host."""
        record, shadow = self._record, self._ticket
        self._decision, self._record, self._prefill_before = None, None, False
        if record is None:
            return
        record.executed_tier, record.forward, record.began_s = executed_tier, self._forward, self._began_s
        self._previous = record
        values = (confidence, lengths, accepted, trimmed, prefix_lengths)
        copy = StepCopy(record, self.clock, *values, caps_only=self._caps_only)
        self._records.append((record, shadow))
        self.decider.publishes.issue(copy)

    # --- control ---------------------------------------------------------------------------------------------------

    def use_graphs(self, batches: list[int]) -> None:
        """Price the graphs of the batch sizes that this engine captured; a profile's own do not apply."""
        cost, self.graphs = self.decider.cost, sorted(batches)
        self._captured = np.array(self.graphs, dtype=np.int64) * (self.decider.gamma + 1)
        if cost is not None:
            self.decider.cost = captured_as(cost, self.graphs, self.decider.gamma + 1)

    def prepare_live_decisions(self, max_requests: int) -> None:
        """Before requests run, once the graphs are known: what live rules need on the device."""
        self.live_decisions.prepare(self.decider.cost, self.decider.gamma, max_requests)
        self.kernels |= {
            f"live {rule}, {1 << bits - 1} requests or more": str(choice)
            for (rule, bits), choice in self.live_decisions.choices.items()
        }

    def calibration(self) -> dict[str, float] | None:
        """What online calibration has learned, None where the policy has none."""
        found = calibration_of(self.decider.live.policy, self.decider.live.carry)
        return None if found is None else {"slope": found[0], "shift": found[1]}

    def costs(self) -> dict[str, float] | None:
        """Measured over believed step time by executed tokens, as `costs=online` has learned it; None without it."""
        found = costs_of(self.decider.live.policy, self.decider.live.carry)
        return None if found is None else {str(tokens): ratio for tokens, ratio in found.items()}

    def can_switch(self, policy: Policy | None) -> bool:
        """Whether every rank of the group accepts (None: this rank could not make the policy); a collective."""
        return self._everyone.unanimous(policy is not None)

    def switch(self, policy: Policy, trial: TrialPlan | None = None) -> None:
        """Decide with `policy` from the next step on. The caller has asked `can_switch`.

        trial: go back by itself where what is measured is worse. A switch ends a trial that is under way.
        """
        previous = self.decider.live
        self.decider.switch(policy)
        live = self.decider.live
        self.trials.switched(live.text, live.since_step, previous.policy, previous.text, trial)
        self.observers.on_switch(live.text, live.since_step)

    def _return_if_due(self) -> None:
        """Before a step is decided, on every rank at the same one: return to the policy before a failed trial."""
        if self.trials.fails:
            trial = self.trials.failed()
            self.switch(trial.previous)
            self.trials.returned(trial)

    def state(self) -> dict[str, Any]:
        """What /server_info shows: policies, per-rank view and counters; a collective."""
        decider = self.decider
        own = {"policy": decider.live.text, "since_step": decider.live.since_step, "faults": self.faults.as_list()}
        ranks = self._agreement.gather(own)
        return {
            "policy": decider.live.text,
            "class": decider.live.policy.kind,
            "lossless": decider.live.policy.lossless,
            "since_step": decider.live.since_step,
            "ranks": ranks,
            "shadow": None if decider.shadow is None else decider.shadow.text,
            "schedule": decider.schedule,
            "mode": "cap-accept" if self._caps_only else "compact",
            "gamma": decider.gamma,
            "profile": None if decider.cost is None else decider.cost.name,
            "gpu_memory_gib": self.gpu_memory_gib,
            "graphs": {"requests": self.graphs, "tokens_per_request": decider.gamma + 1} if self.graphs else None,
            "limits": self.limits,
            "explore": decider.explore,
            "forced_fraction": decider.forced_fraction,
            "counters": self.counters.as_dict(),
            "drift": self.drift.as_dict(),
            "confidences": self.meter.so_far(),
            "hardware": self.hardware,
            "provenance": None if decider.cost is None else shown_of(decider.cost, self.hardware),
            "kernels": self.kernels,
            "decisions": jit.stated(),
            "calibration": self.calibration(),
            "costs": self.costs(),
            "trial": None if self.trials.trial is None else self.trials.trial.as_dict(),
            "dp_rank": None if self._tiers is None else self._tiers.rank,
            "recording": None if self.recording is None else self.recording(),
        }

    # --- inside ----------------------------------------------------------------------------------------------------

    def _agreed(self, view: BatchView, batch: Any, confidence: torch.Tensor | None) -> StepDecision:
        decision = None
        if self._agreement.decides:
            try:
                decision = self._own(view, batch, confidence)
            except Exception as error:  # what a policy raises is its class's business, and does not come here
                self.faults.note("decision", error, "the step verifies everything")
                decision = self.decider.everything("fault", view)
            if self.trials.due:
                decision = replace(decision, goes_back=True)
        if self._tiers is not None:
            decision = self._in_group(self._tiers, view, decision)
        shared = self._agreement.share(self.decider.steps, view.num_requests, decision)
        self.decider.steps += 1
        self.trials.fails = shared.goes_back
        return shared

    def _in_group(self, tiers: TierGroup, view: BatchView, decision: StepDecision | None) -> StepDecision | None:
        """What this rank verifies under the group's tier; nothing that it decided is taken back. None: it follows."""
        tokens = 0 if decision is None else ask_for(view.num_requests, self.decider.gamma, decision.total)
        due = decision is not None and decision.goes_back
        step = tiers.share(self.decider.steps, tokens, view.num_requests, view.context_tokens, goes_back=due)
        self.asked = step.asked
        if decision is None:
            return None
        tier = step.asked.tier(self._captured)
        with self.faults.caught("shared tier", "what the policy asked for is verified"):
            decision = self.decider.under_tier(view, decision, step.asked, tier)
        decision = replace(decision, goes_back=step.goes_back)
        if self._record is not None:
            self._record.decision, self._record.asked, self._record.shared_tier = decision, step.asked, tier
        return decision

    def _own(self, view: BatchView, batch: Any, confidence: torch.Tensor | None) -> StepDecision:
        arrived, late = self._catch_up()
        for published in arrived:
            self._arrived(published)
        live = self.decider.live
        began = time.perf_counter()
        try:
            decision = self.decider.before_draft(view, late)
        except Exception as error:  # ours, not the rule's; nothing live has been looked at
            self.faults.note("decision", error, "the step verifies everything")
            decision = self.decider.everything("fault", view)
        if decision is None:
            assert confidence is not None, "a live policy decides after the draft"
            decision = self._after_draft(view, confidence)
        with self.faults.caught("step record", "the step is not shown to observers"):
            self._ticket = None if late else self.decider.shadow_ticket(view)
            self._record = self._new_record(view, batch, live, decision, late)
            self._record.decide_s = time.perf_counter() - began
        return decision

    def _catch_up(self) -> tuple[list[Any], bool]:
        """What has arrived, and whether something is missing; a publish that cannot be read is missing."""
        try:
            return self.decider.publishes.catch_up()
        except Exception as error:
            self.faults.note("publishes", error, "the step takes them as late")
            self._in_step_with_publishes()
            return [], True

    def _in_step_with_publishes(self) -> None:
        """Forget the records of publishes that were lost."""
        while len(self._records) > self.decider.publishes.in_flight:
            self._records.popleft()

    def _new_record(self, view: BatchView, batch: Any, live: Any, decision: StepDecision, late: bool) -> StepRecord:
        lags = () if late else range(self.decider.publishes.visible_lag, live.policy.max_lag + 1)
        rids = [req.rid for req in batch.reqs]
        return StepRecord(
            step=self.decider.steps,
            forward=-1,
            began_s=0.0,
            rids=rids,
            batch=view,
            prefix_lengths=np.empty(0, np.int64),
            sampling=self.reader.sampling(batch.reqs, rids),
            policy=live.text,
            carry=carry_as_json(live.carry),
            since_step=live.since_step,
            decision=decision,
            lagged={lag: self.decider.publishes.look(view.slots, view.generation, lag) for lag in lags},
            prefill_before=self._prefill_before,
            schedule=self.decider.schedule,
            correction=None if late else calibration_of(live.policy, live.carry),
            everything_s=self.decider.everything_s(view),
        )

    def _after_draft(self, view: BatchView, confidence: torch.Tensor) -> StepDecision:
        """A live decision: on the device where that is faster, else on the copied confidences."""
        found = self.live_decisions.decide(self.decider.live.policy, self.decider.past(view), confidence)
        if found is not None:
            return self.decider.decided(view, found)
        return self.decider.after_draft(view, confidence.to("cpu", torch.float32).numpy())

    def _arrived(self, published: Any) -> None:
        record, shadow = self._records.popleft()
        if record.invalid:
            what = f"{record.invalid} of step {record.step} are no probabilities"
            self.faults.note("confidences", what, "they count as 0")
        if self.decider.learns:
            timing = self.decider.timing(record)
            self.decider.learn(Outcome(published.units, published.lengths, published.accepted, timing))
        if shadow is not None:
            with self.faults.caught("shadow policy", "this step has no shadow"):
                record.shadow = shadow(published.confidence)
        with self.faults.caught("calibration meter", "this step's outcomes are not counted"):
            self.meter.add(figures_of(record).outcomes)
        with self.faults.caught("trial", "it goes on without this step"):
            self.trials.watch(record)
        self.observers.on_step(record)
