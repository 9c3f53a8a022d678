"""What a decode step is: the batch it decides on, the decision, and the record that observers get of it as host values.

Anything that wants to see what the engine does (a recorder, counters, metrics) is given to
`PolicyEngine.add_observer` and implements `StepObserver`. `on_step` is called on the scheduler's thread, in step
order, when the step's values have arrived on the host: `visible_lag` steps later under the overlapped schedule, and
when the engine turns idle or its state is read (`PolicyEngine.settle`). It must return at once; anything slow belongs
on a thread of the observer. Only rank 0 of a tensor-parallel group has observers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from sglang_dspark.policies import Plan
from sglang_dspark.policies.arithmetic import Ints
from sglang_dspark.policies.shared_tier import Asked

Reason = Literal["policy", "late", "explore", "forced", "fault"]
SERVERS_OWN = "dspark_sent_by_server"
"""Set in the `custom_params` of SGLang's start-up request, so that the recorder leaves it out."""

REASONS: tuple[Reason, ...] = ("policy", "late", "explore", "forced", "fault")
"""fault: something of ours that is no policy raised on the way to the decision, and everything was verified."""


@dataclass(frozen=True, slots=True)
class BatchView:
    """The decode batch as a decision sees it. slots, generation: [R] int64 request slots and their owners. caps: [R]
    int64, what each request lets the server verify, or None where none of them said anything."""

    slots: Ints
    generation: Ints
    context_tokens: int = 0
    waiting: int = 0
    caps: Ints | None = None

    @property
    def num_requests(self) -> int:
        return int(self.slots.size)


@dataclass(frozen=True, slots=True)
class StepDecision:
    """What one step verifies.

    total: admitted draft tokens K, or None for "none, verify-all". plan: K, floor and cap fixed before the draft; the
    live admission order then says which. lengths: [R] decided from this step's survivals. With neither, all. fault:
    what the rule raised, where this is what was decided instead. goes_back: a trial has failed, and every rank returns
    to the policy before it with the next step.
    """

    reason: Reason
    total: int | None
    plan: Plan | None = None
    lengths: Ints | None = None
    predicted_s: float | None = None
    fault: str | None = None
    goes_back: bool = False


@dataclass(frozen=True, slots=True)
class SamplingView:
    """How each row of a batch samples: [R] float32 temperature and top-p, [R] int64 top-k (SGLang's values)."""

    temperature: NDArray[np.float32]
    top_p: NDArray[np.float32]
    top_k: Ints


@dataclass(slots=True)
class StepRecord:
    """One decode step. Arrays are [R] in row order unless a shape is given.

    step: decode steps of this server so far. forward: SGLang's forward counter. began_s: time.perf_counter() when the
    worker began. lagged: {lag: (units [R, gamma], published [R])} as the decision could look it up. decision: what was
    decided; executed_tier: padded tokens of the graph that ran (0: eager). confidence: [R, gamma] float32 of this
    step's draft. lengths: verified draft tokens. accepted: accepted ones. uncapped: accepted depth of the whole
    block, -1 where the cut hides it. step_s: until the next decode step began, None when something else ran between.
    draft_s, verify_s: measured parts. prefill_before: a prefill ran since the previous decode step. invalid:
    confidences that were no probabilities; `confidence` has 0 there.
    policy, carry, since_step: the policy as text, what it carried into the decision, and since when it decides.
    schedule: when this step was decided. asked, shared_tier: what the ranks of a DP-attention group asked to verify,
    and the tokens that all of them execute; None and 0 without one.
    correction: of the confidences, as the decision applied it. everything_s: what
    the profile says for verifying everything. decide_s: what deciding took on the host. figures: see
    `feedback.figures.figures_of`.
    """

    step: int
    forward: int
    began_s: float
    rids: list[str]
    batch: BatchView
    prefix_lengths: Ints
    sampling: SamplingView
    policy: str
    carry: Any
    since_step: int
    decision: StepDecision
    lagged: dict[int, tuple[Ints, NDArray[np.bool_]]]
    prefill_before: bool
    schedule: str = "overlapped"
    asked: Asked | None = None
    shared_tier: int = 0
    executed_tier: int = 0
    step_s: float | None = None
    draft_s: float | None = None
    verify_s: float | None = None
    shadow: StepDecision | None = None
    correction: tuple[float, float] | None = None
    everything_s: float | None = None
    decide_s: float = 0.0
    figures: Any = None
    invalid: int = 0
    confidence: NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 0), np.float32))
    lengths: Ints = field(default_factory=lambda: np.empty(0, np.int64))
    accepted: Ints = field(default_factory=lambda: np.empty(0, np.int64))
    uncapped: Ints = field(default_factory=lambda: np.empty(0, np.int64))

    @property
    def verified_tokens(self) -> int:
        """B: verified draft tokens and anchors."""
        return self.batch.num_requests + int(self.lengths.sum())

    @property
    def executed_tokens(self) -> int:
        """What ran for them: the padded graph, or as many."""
        return self.executed_tier or self.verified_tokens


class StepObserver(Protocol):
    """Sees every decode step, and what happens to requests around them."""

    def on_step(self, record: StepRecord) -> None:
        """A decode step whose values are all on the host."""
        ...

    def on_prefill(self, reqs: list[Any], num_tokens: int) -> None:
        """A prefill step began: SGLang's request objects and the number of new tokens."""
        ...

    def on_finished(self, rid: str, natural_stop: bool) -> None:
        """A request left the engine."""
        ...

    def on_switch(self, policy: str, since_step: int) -> None:
        """Another policy decides from this step on."""
        ...
