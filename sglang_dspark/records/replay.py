"""Decision replay (teacher-forced): every recorded step's inputs are given to the policy, which must decide the same.

Prediction is another thing (`simulator.results.prediction`): there the simulator runs freely and only the workload is
recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from sglang_dspark.cost import StepCost
from sglang_dspark.errors import InputError
from sglang_dspark.policies import LiveBlock, NotAFault, Past, Policy, SelfTuning, carry_from_json, make_policy
from sglang_dspark.policies.classes import of_plan
from sglang_dspark.policies.shared_tier import ask_for, filled
from sglang_dspark.records import FORCED, ROUNDED, CostRecord, Header, Record, StepRecord
from sglang_dspark.records.costs import cost_from_plain

_EXPLAINED = 10
_LEARNS_COSTS = 4
"""The format from which on self-tuning carries what it has learned of step costs."""


@dataclass
class Replay:
    """How many recorded decisions came out the same.

    equal, different: steps that the policy decided, full blocks that it decided included. verified_all: steps of which
    the record says that the policy did not decide ("late", "explore", ...) and that verified the full block.
    skipped: steps without enough of their inputs, by reason. first: explanations of the first differences.
    """

    equal: int = 0
    different: int = 0
    verified_all: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    first: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Plain values for `--json`."""
        return {
            "equal": self.equal,
            "different": self.different,
            "verified_all": self.verified_all,
            "skipped": self.skipped,
            "first": self.first,
        }


def replay(records: Iterable[Record], policy: Callable[[str], Policy] = make_policy) -> Replay:
    """Give each recorded step's inputs to its policy and compare verify lengths.

    records: a `RecordSet` or any iterable in which headers precede their steps. policy: from the recorded string form.
    Errors: InputError for records that are rounded, and so not exactly replayable.
    """
    result, header = Replay(), Header(gamma=0)
    costs: dict[str, StepCost] = {}
    named = lru_cache(maxsize=256)(policy)
    for record in records:
        if isinstance(record, Header):
            if record.fidelity == ROUNDED:
                raise InputError(f"records of run {record.run} are {ROUNDED}: their decisions cannot be replayed")
            header = record
            costs.update({table: cost_from_plain(plain) for table, plain in record.costs.items() if table not in costs})
        elif isinstance(record, CostRecord):
            costs[record.table] = cost_from_plain(record.cost)
        elif isinstance(record, StepRecord):
            _replay_step(record, header, costs, named, result)
    return result


def decide(step: StepRecord, gamma: int, cost: StepCost | None, policy: Policy) -> np.ndarray:
    """The verify lengths [R] that `policy` chooses on a recorded step's inputs; KeyError names a lag not recorded.

    cost: None for a policy that looks at no prices. Under DP attention: what it makes of the group's recorded tier.
    Errors: AskedOtherwise where it would have asked the group for another number of tokens than is recorded.
    """
    past = Past(
        step.num_requests,
        gamma,
        cost.prices(step.num_requests, gamma, step.context_tokens) if cost else None,  # type: ignore[arg-type]
        lagged_lookup(step),
        carry_from_json(step.carry),
        step.waiting,
        None if step.caps is None else step.caps.astype(np.int64),
    )
    if step.confidence is None:
        # Only rules that look at no live value can be asked: a block that would show one is given nothing to show.
        live = LiveBlock(np.zeros((step.num_requests, gamma), dtype=np.int64))
    else:
        live = LiveBlock.of(step.confidence)
    decision = policy.decide(past, live)
    if step.asked_tokens is None:
        return decision.lengths
    asks, asked = ask_for(step.num_requests, gamma, decision.total), int(step.asked_tokens[step.rank])
    if asks != asked:
        raise AskedOtherwise(f"{step.policy} asks the group for {asks} tokens, recorded are {asked}")
    plan = filled(policy, past, decision.total, step.shared_tier)
    return decision.lengths if plan is None else of_plan(plan, live).lengths


class AskedOtherwise(NotAFault, ValueError):
    """A policy asks its group for another number of tokens than is recorded."""


def lagged_lookup(step: StepRecord) -> Callable[[int], tuple[np.ndarray, np.ndarray]] | None:
    """What `Past.lagged` was in this step."""
    if not step.lagged:
        return None
    by_lag = {item.lag: item for item in step.lagged}
    return lambda lag: (by_lag[lag].units.astype(np.int64), by_lag[lag].published.astype(bool))


def _replay_step(
    step: StepRecord, header: Header, costs: dict[str, StepCost], policy: Callable[[str], Policy], result: Replay
) -> None:
    if step.override == FORCED:
        _skip(result, "an operator forced the budget")
        return
    if step.override:
        if bool((step.lengths == (header.gamma if step.caps is None else step.caps)).all()):
            result.verified_all += 1
        else:
            _differs(result, step, f"the record says '{step.override}', verify all, and has", None)
        return
    try:
        rule = policy(step.policy)
    except InputError as error:
        _skip(result, str(error))
        return
    missing = _missing(step, rule, costs, header.version)
    if missing:
        _skip(result, missing)
        return
    try:
        decided = decide(step, header.gamma, costs.get(step.table), rule)
    except AskedOtherwise as error:
        _differs(result, step, f"{error}; verified were", None)
        return
    if np.array_equal(decided, step.lengths):
        result.equal += 1
    else:
        _differs(result, step, f"{step.policy} decides {_short(decided)}, recorded", decided)


def _missing(step: StepRecord, rule: Policy, costs: dict[str, StepCost], version: int) -> str:
    """Why a step cannot be replayed, or nothing."""
    if step.table and step.table not in costs:
        return f"the cost model '{step.table}' is not in the records"
    if step.confidence is None and rule.name not in ("fixed", "none"):
        return "no confidences were recorded and no reason given"
    if version < _LEARNS_COSTS and rule.name == SelfTuning.name:
        return f"self-tuning learned no step costs when records of format {version} were made"
    if rule.max_lag and not step.lagged and step.num_requests:
        return "lagged survivals were not recorded"
    return ""


def _differs(result: Replay, step: StepRecord, what: str, decided: np.ndarray | None) -> None:
    result.different += 1
    if len(result.first) >= _EXPLAINED:
        return
    rows = ""
    if decided is not None and decided.shape == step.lengths.shape:
        first = int(np.argmax(decided != step.lengths))
        rows = (
            f"; total {int(decided.sum())} against {int(step.lengths.sum())}, first in row {first} "
            f"({decided[first]} against {step.lengths[first]})"
        )
    result.first.append(f"step {step.step} of rank {step.rank}: {what} {_short(step.lengths)}{rows}")


def _skip(result: Replay, reason: str) -> None:
    result.skipped[reason] = result.skipped.get(reason, 0) + 1


def _short(lengths: np.ndarray) -> str:
    shown = " ".join(str(length) for length in lengths[:12].tolist())
    return f"[{shown}{' ...' if lengths.size > 12 else ''}]"
