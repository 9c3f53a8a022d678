"""What every policy must keep, as checks that anyone's own policy can be run through.

    from sglang_dspark.policies.contract import check_policy
    check_policy(MyRule(k=3))

The checks draw random blocks, pasts and step costs; the first that fails raises `ContractViolation` with the case. That
a policy is lossless follows from its class for the three rule classes; `dspark audit exact` verifies it for any policy.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from sglang_dspark.errors import InputError
from sglang_dspark.jit import numpy_only
from sglang_dspark.policies.arithmetic import SCALE, Ints
from sglang_dspark.policies.base import Policy
from sglang_dspark.policies.classes import (
    BudgetRule,
    Combined,
    LengthRule,
    StoppingRule,
    Unrestricted,
    of_plan,
    one_by_one,
    position_by_position,
)
from sglang_dspark.policies.drawing import Case, ContractViolation, random_cases, random_confidence, random_outcome
from sglang_dspark.policies.format import policy_to_string
from sglang_dspark.policies.parameters import some_values
from sglang_dspark.policies.state import Decision, LiveBlock, Outcome

_INSTANCES = 4


def check_class(policy: type[Policy], *, cases: int = 60, seed: int = 0) -> None:
    """Run every check on a class: with its defaults, and with a few draws of its parameters.

    Errors: ContractViolation, the first that was found.
    """
    for instance in instances(policy, seed):
        check_policy(instance, cases=cases, seed=seed)


def instances(policy: type[Policy], seed: int = 0) -> Iterator[Policy]:
    """The policy with its defaults, and with draws of its parameters that it accepts."""
    yield policy()
    rng = np.random.default_rng(seed)
    for _ in range(_INSTANCES - 1 if dataclasses.fields(policy) else 0):
        try:
            yield policy(**some_values(policy, rng))
        except InputError:
            continue  # parameters that do not go together


def check_policy(policy: Policy, *, cases: int = 60, seed: int = 0) -> None:
    """Run every check on `cases` random decisions. Errors: ContractViolation, the first that was found."""
    rng = np.random.default_rng(seed)
    for number, case in enumerate(random_cases(policy, rng, cases)):
        for name, check in CHECKS.items():
            try:
                check(policy, case, rng)
            except Exception as error:
                shape = "R={}, gamma={}".format(*case.confidence.shape)
                where = f"policy '{policy_to_string(policy)}', check '{name}', case {number} of seed {seed} ({shape})"
                said = str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
                raise ContractViolation(f"{where}: {said}") from error


def _decide(policy: Policy, case: Case, live: LiveBlock | None = None) -> Decision:
    decision = policy.decide(case.past(policy), _live(policy, case) if live is None else live)
    assert decision.fault is None, decision.fault
    return decision


def _live(policy: Policy, case: Case) -> LiveBlock:
    return case.known() if isinstance(policy, Unrestricted) and policy.knows_depth else case.live()


def check_class_of_policies(policy: Policy, case: Case, rng: np.random.Generator) -> None:
    """It belongs to one of the classes, which says whether it is lossless."""
    classes = (BudgetRule, StoppingRule, LengthRule, Combined, Unrestricted)
    assert isinstance(policy, classes), "it is of no class, and nothing says what it may see"
    if isinstance(policy, Unrestricted):
        assert not policy.lossless, "it sees everything and calls itself lossless"


def check_bounds(policy: Policy, case: Case, rng: np.random.Generator) -> None:
    """Lengths are [R] integers that sum to `total`, at least the floor, at most the cap and what a request allows."""
    requests, gamma = case.confidence.shape
    decision = _decide(policy, case)
    lengths = decision.lengths
    assert lengths.shape == (requests,), f"lengths have shape {lengths.shape}, expected ({requests},)"
    assert lengths.dtype == np.int64, f"lengths are {lengths.dtype}, expected int64"
    low, high = (np.full(requests, bound) for bound in policy.bounds(gamma))
    if case.caps is not None and not isinstance(policy, Unrestricted):
        low, high = np.minimum(low, case.caps), np.minimum(high, case.caps)
    assert ((lengths >= low) & (lengths <= high)).all(), (
        f"lengths {lengths.tolist()} leave {low.min(initial=gamma)}..{high.max(initial=0)}"
    )
    assert int(lengths.sum()) == decision.total, f"lengths sum to {lengths.sum()}, total says {decision.total}"


def check_pure(policy: Policy, case: Case, rng: np.random.Generator) -> None:
    """The same input gives the same decision and stays as it was."""
    before, live = copy.deepcopy(case), _live(policy, case)
    first, second = _decide(policy, case, live), _decide(policy, case, live)
    assert np.array_equal(first.lengths, second.lengths), "two calls with the same input differ"
    assert _same(live.units, before.units) and _same(live.confidence, before.confidence), "the live block was changed"
    assert _same(case.lagged, before.lagged), "the lagged survivals were changed"
    assert _same(case.carry, before.carry), "the carried state was changed in place by a decision"
    outcome = random_outcome(rng, *case.confidence.shape)
    kept = copy.deepcopy(outcome)
    after = policy.learn(case.carry, outcome)
    assert _same(case.carry, before.carry), "learn changed the carried state in place"
    assert _same(after, policy.learn(before.carry, kept)), "learn gave two results for one input"
    for array, copied in zip((outcome.survival, outcome.lengths, outcome.accepted), _arrays(kept), strict=True):
        assert _same(array, copied), "learn changed the outcome"


def check_admission_order(policy: Policy, case: Case, rng: np.random.Generator) -> None:
    """Budget and stopping rules admit a prefix of the live admission order, ties by position, then request."""
    if not isinstance(policy, BudgetRule | StoppingRule):
        return
    decision = _decide(policy, case)
    lengths = _start(policy, case)
    for request, _ in _ranked(policy, case.units, case.caps)[: decision.total - int(lengths.sum())]:
        lengths[request] += 1
    assert np.array_equal(lengths, decision.lengths), (
        f"lengths {decision.lengths.tolist()} are not the first {decision.total} of the admission order, "
        f"which gives {lengths.tolist()}"
    )


def check_plan(policy: Policy, case: Case, rng: np.random.Generator) -> None:
    """A policy that is not live has a plan, made before the draft, and any plan gives the decision."""
    plan = policy.plan(case.past(policy))
    assert plan is not None or policy.live, "it is not live and has no plan"
    if plan is None:
        return
    decision = _decide(policy, case)
    planned = of_plan(plan, case.live()).lengths
    assert plan.budget == decision.total, f"the plan has budget {plan.budget}, the decision {decision.total}"
    assert np.array_equal(planned, decision.lengths), "the plan and the decision admit different tokens"


def check_confidence_need(policy: Policy, case: Case, rng: np.random.Generator) -> None:
    """A policy that does not say `reads_confidence` decides the same without confidences."""
    if not policy.reads_confidence:
        live = _live(policy, case)
        without = _decide(policy, case, dataclasses.replace(live, confidence=None))
        assert np.array_equal(without.lengths, _decide(policy, case, live).lengths), "reads the confidences"


def check_budget_rule(policy: Policy, case: Case, rng: np.random.Generator) -> None:
    """K does not change when the live survivals change."""
    if not isinstance(policy, BudgetRule):
        return
    total = _decide(policy, case).total
    for _ in range(3):
        other = _decide(policy, case, LiveBlock.of(random_confidence(rng, *case.confidence.shape))).total
        assert other == total, f"K is {total} for one live block and {other} for another"


def check_stopping_rule(policy: Policy, case: Case, rng: np.random.Generator) -> None:
    """Whether rank m is admitted does not change when the survivals of later ranks change."""
    if not isinstance(policy, StoppingRule):
        return
    units, start = case.units, int(_start(policy, case).sum())
    ranked = _ranked(policy, units, case.caps)
    total = _decide(policy, case, LiveBlock(units)).total
    for rank in {0, total - start, total - start + 1, int(rng.integers(0, len(ranked) + 1))}:
        if 0 <= rank <= len(ranked):
            changed = _change_later(case, ranked, rank, _start(policy, case), rng)
            other = _decide(policy, case, LiveBlock(changed)).total
            was, now = total - start >= rank, other - start >= rank
            assert was == now, f"rank {rank} was admitted: {was}; after later survivals changed: {now}"


def check_stopping_walk(policy: Policy, case: Case, rng: np.random.Generator) -> None:
    """The array form `walk` admits as many as asking `admits` one candidate at a time."""
    if not isinstance(policy, StoppingRule):
        return
    past, units, low = case.past(policy), case.units, _start(policy, case)
    start = int(low.sum())
    tau = len(units) * SCALE + sum(int(row[:kept].sum()) for row, kept in zip(units, low.tolist(), strict=True))
    ranked = _ranked(policy, units, case.caps)
    survivals = np.array([units[request, position] for request, position in ranked], dtype=np.int64)
    scalar, _ = one_by_one(policy, past, start, tau, survivals)
    array = policy.walk(past, policy.tables(past), start, tau, survivals)
    assert array == scalar, f"walk admits {array}, admits one at a time {scalar}"


def check_length_rule(policy: Policy, case: Case, rng: np.random.Generator) -> None:
    """`lengths` is what `admits` says, and hangs on a request's own confidences up to the position asked about."""
    if not isinstance(policy, LengthRule):
        return
    past = case.past(policy)
    tables = policy.tables(past)
    lengths = policy.lengths(past, tables, case.live())
    scalar, _ = position_by_position(policy, past, case.live())
    assert np.array_equal(lengths, scalar), f"lengths {lengths.tolist()}, admits one at a time {scalar.tolist()}"
    requests, gamma = case.confidence.shape
    for request in range(min(requests, 3)):
        for position in {int(lengths[request]), min(int(lengths[request]) + 1, gamma), int(rng.integers(1, gamma + 1))}:
            changed = random_confidence(rng, requests, gamma)
            changed[request, :position] = case.confidence[request, :position]
            now = int(policy.lengths(past, tables, LiveBlock.of(changed))[request])
            assert (now >= position) == (lengths[request] >= position), (
                f"position {position} of request {request} is verified or not by later positions or other requests"
            )


def check_combined(policy: Policy, case: Case, rng: np.random.Generator) -> None:
    """A combination decides as one of its parts does, the same part whatever the live block."""
    if not isinstance(policy, Combined):
        return
    past = case.past(policy)
    chosen = policy.choose(past)
    part = policy.parts[chosen]
    for confidence in (case.confidence, random_confidence(rng, *case.confidence.shape)):
        live = LiveBlock.of(confidence)
        expected = part.decide(policy.seen(past, chosen), policy.shown(past, live)).lengths
        assert np.array_equal(_decide(policy, case, live).lengths, expected), f"not what its part {part.name} decides"


def check_compiled(policy: Policy, case: Case, rng: np.random.Generator) -> None:
    """Compiled code, where any is in use, and NumPy decide alike and learn alike, to the last bit."""
    own = np.random.default_rng(int(case.units.sum()))  # what the other checks draw stays as it is
    outcomes = [random_outcome(own, *case.confidence.shape) for _ in range(3)]

    def decided_and_learned() -> tuple[Any, ...]:
        decision, carry = _decide(policy, case), case.carry
        for outcome in outcomes:
            carry = policy.learn(carry, outcome)
        later = _decide(policy, dataclasses.replace(case, carry=carry))
        return decision.lengths, decision.total, carry, later.lengths, later.total

    compiled = decided_and_learned()
    with numpy_only():
        assert _same(compiled, decided_and_learned()), "compiled code and NumPy differ"


CHECKS: dict[str, Callable[[Policy, Case, np.random.Generator], None]] = {
    "class": check_class_of_policies,
    "bounds": check_bounds,
    "pure": check_pure,
    "admission order": check_admission_order,
    "plan": check_plan,
    "confidence need": check_confidence_need,
    "budget rule": check_budget_rule,
    "stopping rule": check_stopping_rule,
    "stopping walk": check_stopping_walk,
    "length rule": check_length_rule,
    "combined": check_combined,
    "compiled": check_compiled,
}
"""Every check by name: called with a policy, a case and a generator, raises AssertionError."""


def _start(policy: BudgetRule | StoppingRule, case: Case) -> Ints:
    """[R] positions that are verified before the walk."""
    low = np.full(len(case.confidence), policy.floor)
    return low if case.caps is None else np.minimum(low, case.caps)


def _ranked(policy: BudgetRule | StoppingRule, units: Ints, caps: Ints | None) -> list[tuple[int, int]]:
    """The admission order (request, position from 0) of what the walk may admit, by definition: sorted tuples."""
    floor, cap = policy.bounds(units.shape[1])
    ends = [cap if caps is None else min(cap, int(caps[request])) for request in range(len(units))]
    found = [(-int(units[r, j]), j, r) for r, end in enumerate(ends) for j in range(floor, end)]
    return [(request, position) for _, position, request in sorted(found)]


def _change_later(case: Case, ranked: list[tuple[int, int]], rank: int, kept: Ints, rng: np.random.Generator) -> Ints:
    """Other survivals after the first `rank` of the order, all below the last that is kept."""
    units = case.units
    changed = units.copy()
    for request, _ in ranked[:rank]:
        kept[request] += 1
    bound = int(units[ranked[rank - 1]]) if rank else SCALE + 1
    for request, first in enumerate(kept.tolist()):
        width = units.shape[1] - first
        limit = min(bound, int(units[request, first - 1]) + 1) if first else bound
        changed[request, first:] = np.sort(rng.integers(0, max(limit, 1), size=width))[::-1]
    return changed


def _arrays(outcome: Outcome) -> tuple[Ints, Ints, Ints]:
    return outcome.survival, outcome.lengths, outcome.accepted


def _same(one: Any, two: Any) -> bool:
    """Equality that looks into arrays and tuples."""
    if isinstance(one, np.ndarray):
        return isinstance(two, np.ndarray) and one.dtype == two.dtype and np.array_equal(one, two)
    if isinstance(one, tuple | list):
        return len(one) == len(two) and all(_same(a, b) for a, b in zip(one, two, strict=True))
    return bool(one == two)
