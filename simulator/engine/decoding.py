"""What one decode step drafts, decides and costs: the policy at work on the batch of one replica."""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np

from sglang_dspark.policies import (
    Decision,
    KnownBlock,
    LiveBlock,
    Outcome,
    Past,
    SurvivalRing,
    knows_depth,
    learned,
    policy_to_string,
    started,
    timing_of,
)
from sglang_dspark.policies.arithmetic import Ints
from sglang_dspark.policies.classes import of_plan
from sglang_dspark.policies.shared_tier import filled
from simulator.blocks.online import OnlineEstimate
from simulator.blocks.random import stream
from simulator.engine.batch import DecodeBatch
from simulator.engine.loops.layout import Room
from simulator.engine.model import EngineModel
from simulator.engine.recorder import Recorder
from simulator.engine.settings import OVERLAPPED_LAG

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Step:
    """A decode step under way. kv: tokens of memory held during it; accepted: [R] draft tokens that survive.

    live: the block as the policy saw it; depth: [R] what the target would accept of it. beyond_probes: whether the
    profile was not measured for this step.
    """

    decision: Decision
    live: LiveBlock
    depth: Ints
    accepted: Ints
    draft_s: float
    verify_s: float
    seconds: float
    kv: int
    beyond_probes: bool = False


@dataclass(slots=True)
class Drafted:
    """A step that is drafted and decided. past: what the policy decided on, None where it did not decide; depth: [R]
    tokens that would survive; context: tokens that the batch holds; eager: more requests than graphs."""

    decision: Decision
    past: Past | None
    live: LiveBlock
    depth: Ints
    context: int
    kv: int
    eager: bool


class Decoder:
    """The policy's past on one replica: published survivals, what it carries, outcomes on their way to the host."""

    def __init__(self, model: EngineModel, recorder: Recorder, room: Room) -> None:
        policy = model.policy
        self.model, self.recorder = model, recorder
        slots = (len(room.columns[0]), model.gamma, policy.max_lag)
        self.ring = SurvivalRing(*slots, (room.ring, room.owners)) if policy.max_lag else None
        self.carry, fault = started(policy, model.gamma)
        self._note(fault)
        self._knows_depth = knows_depth(policy)
        self._online = OnlineEstimate(model.gamma) if model.online else None
        self.outcomes: deque[Outcome] = deque()
        self._outcome_lag = OVERLAPPED_LAG if model.schedule == "overlapped" else 1
        self.slots = model.cost.captured_requests or (1 << 30)
        self._coins = stream(model.seed, "exploration") if model.explore else None

    @property
    def head(self) -> int:
        """Where the ring stands."""
        return 0 if self.ring is None else self.ring.head

    @head.setter
    def head(self, head: int) -> None:
        if self.ring is not None:
            self.ring.head = head

    def decide(self, batch: DecodeBatch, context: int, waiting: int, kv: int) -> Drafted:
        """What the batch drafts and, by itself, verifies.

        context: tokens its requests hold, kv: with reservations; waiting: requests.
        """
        size, blocks = batch.size, batch.blocks
        rows = batch.row[:size]
        confidence = None if blocks.confidence is None else blocks.confidence.take(rows, axis=0)
        depth = blocks.depth.take(rows)
        live = LiveBlock(blocks.units.take(rows, axis=0), confidence)
        if self._online is not None:
            live = self._online.report(live)
        if self._knows_depth:
            live = KnownBlock(live.units, live.confidence, 0, depth)
        eager = size > self.slots
        past, decision = self._decide(batch, live, context, waiting, eager=eager)
        return Drafted(decision, past, live, depth, context, kv, eager)

    def fill(self, drafted: Drafted, tier: int) -> None:
        """In a group whose ranks execute `tier` tokens: verify up to it where the policy fills."""
        if drafted.past is None:
            return
        plan = filled(self.model.policy, drafted.past, drafted.decision.total, tier)
        if plan is not None:
            drafted.decision = of_plan(plan, drafted.live)

    def execute(self, batch: DecodeBatch, drafted: Drafted) -> Step:
        """Verify what was decided; what the step costs by itself."""
        model, size, decision = self.model, batch.size, drafted.decision
        draft, verify = self._seconds(batch, decision, drafted.context, eager=drafted.eager)
        accepted = np.minimum(decision.lengths, drafted.depth)
        if self._online is not None:
            self._online.learn(decision.lengths, accepted)
        seconds = model.decode_seconds(draft, verify, live=model.policy.live and not drafted.eager)
        if model.policy.learns:
            prices = model.belief.prices(size, model.gamma, drafted.context)
            timing = timing_of(prices, size, decision.total, seconds)
            self._learn(Outcome(drafted.live.units, decision.lengths, accepted, timing))
        beyond = model.cost.beyond_probes(size, size + decision.total)
        live, depth = drafted.live, drafted.depth
        return Step(decision, live, depth, accepted, draft, verify, seconds, drafted.kv, beyond)

    def _seconds(self, batch: DecodeBatch, decision: Decision, context: int, *, eager: bool) -> tuple[float, float]:
        """(draft, verify) as executed."""
        model, size = self.model, batch.size
        draft, verify = model.cost.decode_s(size, model.gamma, decision.total, context)
        if eager:
            verify = float(model.cost.verify_s(size, size + decision.total, context, eager=True))
        verify += self.width_s(batch, decision)
        return (draft if model.policy.drafts else 0.0), verify

    def width_s(self, batch: DecodeBatch, decision: Decision) -> float:
        """See `EngineModel.width_context_s`."""
        if not self.model.cost.terms["width_context_s"]:
            return 0.0
        return self.model.width_context_s(decision.lengths, self._contexts(batch))

    def _contexts(self, batch: DecodeBatch) -> Ints:
        """[R] tokens that each running request holds."""
        return np.asarray(batch.whole[: batch.size] - batch.remaining[: batch.size])

    def _decide(
        self, batch: DecodeBatch, live: LiveBlock, context: int, waiting: int, *, eager: bool
    ) -> tuple[Past | None, Decision]:
        """The policy's decision and its past; eager and exploring steps verify everything, without one. All publish
        this step's survivals."""
        model, ring, size = self.model, self.ring, batch.size
        slots, generation = batch.slot[:size], batch.generation[:size]
        if eager or (self._coins is not None and self._coins.random() < model.explore):
            past, gamma = None, model.gamma if model.policy.drafts else 0
            decision = Decision(np.full(size, gamma, dtype=np.int64), size * gamma)
        else:
            prices = model.belief.prices(size, model.gamma, context)
            lagged = None if ring is None else partial(ring.look, slots, generation)
            past = Past(size, model.gamma, prices, lagged, self.carry, waiting)
            decision = model.policy.decide(past, live)
            self._note(decision.fault)
        if ring is not None:
            ring.publish(slots, generation, live.units)
        return past, decision

    def _learn(self, outcome: Outcome) -> None:
        """Outcomes reach the host with the lag of the schedule."""
        self.outcomes.append(outcome)
        if len(self.outcomes) >= self._outcome_lag:
            self.carry, fault = learned(self.model.policy, self.carry, self.outcomes.popleft())
            self._note(fault)

    def _note(self, fault: str | None) -> None:
        """The policy raised, if this says something."""
        if fault is not None:
            self.recorder.fallbacks += 1
            _say(policy_to_string(self.model.policy), fault)


@lru_cache(maxsize=16)
def _say(policy: str, fault: str) -> None:
    """Once a process: a comparison runs a policy many times."""
    logger.warning("policy %s: %s", policy, fault)
