"""The trial that is under way on an engine: watched by one rank, ended on every rank at one step."""

from __future__ import annotations

import logging
from collections.abc import Callable

from sglang_dspark.policies import Policy
from sglang_dspark.serving.base.steps import StepRecord
from sglang_dspark.serving.base.trial_plan import TrialPlan
from sglang_dspark.serving.feedback.trial import Ledger, Trial, TrialOutcome

logger = logging.getLogger(__name__)


class Trials:
    """trial: the latest one, its verdict there to be read until the next switch; None without one.

    fails: every rank has been told that the trial failed, and returns before its next decision.
    """

    def __init__(self, *, tells: bool, judges: bool) -> None:
        """tells: this rank logs and counts. judges: its measurements decide (the first rank's, where ranks share)."""
        self.trial: Trial | None = None
        self.fails = False
        self.listeners: list[Callable[[TrialOutcome], None]] = []
        self._tells, self._judges = tells, judges
        self._ledger = Ledger()

    @property
    def due(self) -> bool:
        """Whether this rank wants to return with the next step."""
        return self.trial is not None and self.trial.due

    def switched(
        self, text: str, since_step: int, previous: Policy, previous_text: str, plan: TrialPlan | None
    ) -> None:
        """A switch to `text`, on trial where there is a plan; it ends a trial that is under way."""
        if self.trial is not None and self.trial.verdict == "running":
            self._tell("replaced")
        self.fails = False
        before, self._ledger = self._ledger, Ledger(since_step)
        self.trial = None if plan is None else Trial(plan, text, previous, previous_text, before)

    def failed(self) -> Trial:
        """The trial that every rank now ends; also on ranks that have not measured it."""
        assert self.trial is not None, "every rank knows of a trial"
        self.trial.verdict, self.trial.returned = "reverted", True
        return self.trial

    def returned(self, trial: Trial) -> None:
        """The engine is back at the policy before `trial`."""
        self.trial = trial
        self._tell("reverted")
        if self._tells:
            logger.warning("sglang-dspark: %s", trial.sentence())

    def watch(self, record: StepRecord) -> None:
        """A step that has arrived."""
        completed, trial = self._ledger.on_step(record), self.trial
        if trial is None or trial.verdict != "running" or not self._judges:
            return
        if record.decision.fault is not None and record.policy == trial.policy:
            trial.fell_back()
        elif completed:
            trial.look(self._ledger)
        if trial.verdict == "kept":
            self._tell("kept")
            logger.info("sglang-dspark: %s", trial.sentence())

    def _tell(self, outcome: TrialOutcome) -> None:
        for listener in self.listeners if self._tells else ():
            listener(outcome)
