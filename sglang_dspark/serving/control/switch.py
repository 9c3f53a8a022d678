"""Scheduler side of the runtime control: switch the policy between two steps, read its state back.

The switch rides on SGLang's `set_internal_state`, which every rank handles at the same point between two steps. Its
wire type carries numbers under free keys, so the policy's text is part of the key: {"dspark_policy=hull": 1} switches,
the value 0 only asks whether every rank would. {"dspark_policy=hull@600,50": 1} is on trial for 600 s, at no more than
50 ms per output token (0: whatever it takes).
"""

from __future__ import annotations

import logging
from typing import Any

from sglang_dspark.errors import InputError, printable
from sglang_dspark.policies import Policy, policy_from_string
from sglang_dspark.serving.base.faults import sentence_of
from sglang_dspark.serving.base.trial_plan import TrialPlan

logger = logging.getLogger(__name__)

KEY = "dspark_policy="
_CLASS = "sglang.srt.managers.scheduler_components.internal_state.SchedulerInternalStateController"
_WEIGHTS = "sglang.srt.managers.scheduler_components.weight_updater.SchedulerWeightUpdaterManager"


def register(registry: Any, kinds: Any) -> None:
    """Register our hooks on SGLang's state controller."""
    registry.register(f"{_CLASS}.__init__", attach, kinds.AFTER)
    registry.register(f"{_CLASS}._update_handlers", with_policy_switch, kinds.AFTER)
    registry.register(f"{_CLASS}._add_speculative", add_state, kinds.AFTER)
    for call in ("begin_weight_update", "end_weight_update"):
        registry.register(f"{_WEIGHTS}.{call}", follow_weight_session, kinds.AFTER)


def attach(result: Any, controller: Any, scheduler: Any, *args: Any, **kwargs: Any) -> None:
    """AFTER the controller's constructor: the engine learns of the queue and of idle moments."""
    engine = _engine(scheduler)
    if engine is None:
        return
    engine.reader.waiting = lambda: len(scheduler.waiting_queue)
    on_idle = scheduler.on_idle

    def settle_when_idle() -> None:
        with engine.faults.caught("settling"):
            engine.settle()
        on_idle()

    scheduler.on_idle = settle_when_idle


def follow_weight_session(result: Any, manager: Any, *args: Any, **kwargs: Any) -> None:
    """AFTER a session of weight updates begins or ends: while one is open, weights may change at any time."""
    tell = getattr(manager.draft_worker, "weight_session", None)
    if tell is not None:
        tell(opened=manager._session is not None)


def add_state(result: Any, controller: Any, state: dict[str, Any]) -> None:
    """AFTER `_add_speculative`: /server_info shows `internal_states[i].dspark`."""
    engine = _engine(controller.scheduler)
    if engine is not None:
        with engine.faults.caught("state"):
            state["dspark"] = engine.state()


def with_policy_switch(handlers: dict[str, Any], controller: Any) -> dict[str, Any] | None:
    """AFTER `_update_handlers`: one more handler, for every key that begins with `KEY`."""
    engine = _engine(controller.scheduler)
    return None if engine is None else _Handlers(handlers, SwitchHandler(engine))


class _Handlers(dict[str, Any]):
    """SGLang's handlers by key, and ours by prefix."""

    def __init__(self, handlers: dict[str, Any], switch: SwitchHandler) -> None:
        super().__init__(handlers)
        self._switch = switch

    def get(self, key: str, default: Any = None) -> Any:
        return self._switch if key.startswith(KEY) else super().get(key, default)

    def __getitem__(self, key: str) -> Any:
        return self._switch if key.startswith(KEY) else super().__getitem__(key)


class SwitchHandler:
    """validate on every rank, and apply on all of them or none."""

    def __init__(self, engine: Any) -> None:
        """One for every control message: what it validates is what it applies."""
        self._engine = engine
        self._policies: dict[str, tuple[Policy, TrialPlan | None]] = {}

    def validate(self, key: str, value: float) -> None:
        """Raise SGLang's UpdateRejected unless every rank of the group can run the policy.

        SGLang validates every key of a message before it applies any; two policies in one message are refused.
        """
        from sglang.srt.managers.scheduler_components.internal_state import UpdateRejected

        (text, _, on_trial), reason, policy = key.removeprefix(KEY).partition("@"), "another rank refused it", None
        trial = None
        try:
            if self._policies and key not in self._policies:
                raise InputError("the message names another policy as well, expected one")
            trial = trial_of(on_trial) if on_trial else None
            policy = self._parse(text)
        except InputError as error:
            reason = str(error)
        except Exception as error:  # what a policy of anybody's raises refuses the policy, and ends nothing
            reason = sentence_of(error)
        if not self._engine.can_switch(policy):
            raise UpdateRejected(printable(f"DSpark policy '{text}' stays unused: {reason}"))
        assert policy is not None
        self._policies[key] = policy, trial

    def _parse(self, text: str) -> Policy:
        policy = policy_from_string(text)
        decider = self._engine.decider
        decider.check_switch(policy)
        policy.start(decider.gamma)  # raises here rather than where the switch is made
        return policy

    def apply(self, key: str, value: float) -> None:
        """Switch, when the value asks for more than a check."""
        if value and key in self._policies:
            self._engine.switch(*self._policies[key])
            live = self._engine.decider.live
            logger.info("DSpark policy is now %s (from decode step %d)", live.text, live.since_step)


def trial_of(text: str) -> TrialPlan:
    """`SECONDS,TPOT_MS` of a key."""
    seconds, _, tpot_ms = text.partition(",")
    try:
        limit = float(tpot_ms or 0)
        return TrialPlan(float(seconds), limit or None)
    except ValueError as error:
        raise InputError(f"trial '{text}' is refused, expected seconds and milliseconds") from error


def _engine(scheduler: Any) -> Any:
    return getattr(getattr(scheduler, "draft_worker", None), "policy_engine", None)
