"""What every policy must keep, as checks that anyone's own policy can be run through.

    from sglang_dspark.policies.contract import check_policy
    check_policy(MyRule(k=3))

The checks draw random blocks, pasts and step costs; the first that fails raises `ContractViolation` with the case. That
a policy is lossless follows from its class for the three rule classes; `dspark audit exact` verifies it for any policy.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sglang_dspark.cost import MeasuredDraft, MeasuredVerify, SpsAdditiveCostTable, StepCost, Tiered, model_from_table
from sglang_dspark.errors import InputError
from sglang_dspark.policies.arithmetic import SCALE, Ints, allocate, survival_units
from sglang_dspark.policies.base import BudgetRule, LengthRule, Policy, StoppingRule
from sglang_dspark.policies.spec import policy_to_string
from sglang_dspark.policies.state import Decision, LiveBlock, Outcome, Past

_LARGEST_GAMMA = 9


class ContractViolation(AssertionError):
    """A policy broke the contract; the message names the policy, the check and the case."""


@dataclass(frozen=True)
class Case:
    """One decision: lagged[lag] is what lag - 1 publishes ago was published, [R, gamma] units and [R] published."""

    cost: StepCost
    confidence: NDArray[np.float32]
    lagged: tuple[tuple[Ints, NDArray[np.bool_]], ...]
    carry: Any
    waiting: int

    @property
    def units(self) -> Ints:
        return survival_units(self.confidence)

    def past(self, policy: Policy) -> Past:
        """The past of this case; asking for a lag beyond `max_lag` is a violation."""

        def lagged(lag: int) -> tuple[Ints, NDArray[np.bool_]]:
            if not 1 <= lag <= policy.max_lag:
                raise ContractViolation(f"'{policy.name}' asks for lag {lag} but its max_lag is {policy.max_lag}")
            return self.lagged[lag - 1]

        requests, gamma = self.confidence.shape
        return Past(requests, gamma, self.cost.prices(requests, gamma), lagged, self.carry, self.waiting)

    def live(self) -> LiveBlock:
        return LiveBlock.of(self.confidence.copy(), np.full(len(self.confidence), self.confidence.shape[1]))


def check_policy(policy: Policy, *, cases: int = 60, seed: int = 0) -> None:
    """Run every check on `cases` random decisions. Errors: ContractViolation, the first that was found."""
    rng = np.random.default_rng(seed)
    for number, case in enumerate(random_cases(policy, rng, cases)):
        for name, check in CHECKS.items():
            try:
                check(policy, case, rng)
            except AssertionError as error:
                shape = "R={}, gamma={}".format(*case.confidence.shape)
                where = f"policy '{policy_to_string(policy)}', check '{name}', case {number} of seed {seed} ({shape})"
                raise ContractViolation(f"{where}: {error}") from error


def random_cases(policy: Policy, rng: np.random.Generator, count: int) -> Iterator[Case]:
    """Decisions of every shape that the policy accepts: R = 0 and 1, gamma = 1, all ones, all zeros, ties."""
    gammas = [gamma for gamma in range(1, _LARGEST_GAMMA + 1) if _accepts(policy, gamma)]
    if not gammas:
        raise ContractViolation(f"policy '{policy.name}' accepts no block size in 1..{_LARGEST_GAMMA}")
    for number in range(count):
        gamma = gammas[0] if number % 5 == 0 else int(rng.choice(gammas))
        requests = number % 3 if number < 6 else int(rng.integers(1, 20))
        yield random_case(policy, rng, requests, gamma)


def random_case(policy: Policy, rng: np.random.Generator, requests: int, gamma: int) -> Case:
    """One decision for `requests` blocks of `gamma`."""
    lagged = []
    for _ in range(policy.max_lag):
        units = survival_units(random_confidence(rng, requests, gamma))
        published = rng.random(requests) < 0.8
        units[~published] = SCALE
        units.setflags(write=False)
        lagged.append((units, published))
    carry = policy.start(gamma)
    for _ in range(int(rng.integers(0, 4))):
        carry = policy.learn(carry, random_outcome(rng, requests, gamma))
    confidence = random_confidence(rng, requests, gamma)
    cost = random_cost(rng, max(requests, 1), gamma)
    return Case(cost, confidence, tuple(lagged), carry, int(rng.integers(0, 5)))


def random_confidence(rng: np.random.Generator, requests: int, gamma: int) -> NDArray[np.float32]:
    """[R, gamma] float32: any of spread out, tied, saturated, all ones, all zeros, vanishing."""
    shape = (requests, gamma)
    kind = int(rng.integers(0, 6))
    if kind == 0:
        return np.full(shape, rng.integers(0, 2), dtype=np.float32)
    if kind == 1:
        return rng.choice([0.5, 1.0], size=shape).astype(np.float32)
    if kind == 2:
        return rng.choice([1.0, 0.9, 0.3, 0.0], size=shape).astype(np.float32)
    if kind == 3:
        return (rng.random(shape) ** 6).astype(np.float32)
    return rng.beta(2.0, 1.0, size=shape).astype(np.float32)


def random_outcome(rng: np.random.Generator, requests: int, gamma: int) -> Outcome:
    """How an earlier step may have ended."""
    lengths = rng.integers(0, gamma + 1, size=requests)
    return Outcome(survival_units(random_confidence(rng, requests, gamma)), lengths, rng.integers(0, lengths + 1))


def random_cost(rng: np.random.Generator, requests: int, gamma: int) -> StepCost:
    """A noisy staircase with captured sizes up to, or short of, R (1 + gamma) tokens, and often an eager cliff."""
    most = requests * (1 + gamma)
    last = int(rng.integers(1, most + 1)) if rng.random() < 0.3 else most
    captured = sorted({last, *rng.integers(1, last + 1, size=int(rng.integers(1, 12))).tolist()})
    probes = [*captured, most + 1]
    verify = np.cumsum(rng.choice([0.0, 0.01, 0.1, 0.5], size=len(probes))) + rng.uniform(0.5, 2.0)
    verify = np.maximum(verify + rng.normal(0.0, 0.02, len(probes)), 0.1)
    eager = MeasuredVerify([last + 1], [float(verify.max() * rng.uniform(1.0, 4.0))]) if rng.random() < 0.6 else None
    draft = MeasuredDraft([1, most], [0.05, float(rng.uniform(0.05, 1.0))]) if most > 1 else MeasuredDraft([1], [0.05])
    tiered = Tiered(draft, MeasuredVerify(probes, verify.tolist()), captured, requests, eager)
    additive = SpsAdditiveCostTable(1.0, [1], [0.0], probes, [0.0] * len(probes), tiered=tiered)
    return model_from_table(additive, "random")


def _accepts(policy: Policy, gamma: int) -> bool:
    try:
        policy.check(gamma)
    except InputError:
        return False
    return True


def _decide(policy: Policy, case: Case, live: LiveBlock | None = None) -> Decision:
    return policy.decide(case.past(policy), case.live() if live is None else live)


def check_bounds(policy: Policy, case: Case, rng: np.random.Generator) -> None:
    """Lengths are [R] integers in 0..gamma that sum to `total`, at least the floor and at most the cap."""
    requests, gamma = case.confidence.shape
    decision = _decide(policy, case)
    lengths = decision.lengths
    assert lengths.shape == (requests,), f"lengths have shape {lengths.shape}, expected ({requests},)"
    assert lengths.dtype == np.int64, f"lengths are {lengths.dtype}, expected int64"
    low = getattr(policy, "floor", 0)
    cap = getattr(policy, "cap", None)
    high = gamma if cap is None else cap
    assert ((lengths >= low) & (lengths <= high)).all(), f"lengths {lengths.tolist()} leave {low}..{high}"
    assert int(lengths.sum()) == decision.total, f"lengths sum to {lengths.sum()}, total says {decision.total}"


def check_pure(policy: Policy, case: Case, rng: np.random.Generator) -> None:
    """The same input gives the same decision and stays as it was."""
    before, live = copy.deepcopy(case), case.live()
    first, second = _decide(policy, case, live), _decide(policy, case, live)
    assert np.array_equal(first.lengths, second.lengths), "two calls with the same input differ"
    assert _same(live.units, before.units) and _same(live.confidence, before.confidence), "the live block was changed"
    assert _same(case.lagged, before.lagged), "the lagged survivals were changed"
    assert _same(case.carry, before.carry), "the carried state was changed in place by a decision"
    outcome = random_outcome(rng, *case.confidence.shape)
    kept = copy.deepcopy(outcome)
    learned = policy.learn(case.carry, outcome)
    assert _same(case.carry, before.carry), "learn changed the carried state in place"
    assert _same(learned, policy.learn(before.carry, kept)), "learn gave two results for one input"
    for array, copied in zip((outcome.survival, outcome.lengths, outcome.accepted), _arrays(kept), strict=True):
        assert _same(array, copied), "learn changed the outcome"


def check_admission_order(policy: Policy, case: Case, rng: np.random.Generator) -> None:
    """Budget and stopping rules admit a prefix of the live admission order, ties by position, then request."""
    if not isinstance(policy, BudgetRule | StoppingRule):
        return
    decision = _decide(policy, case)
    lengths = np.full(len(case.units), policy.floor)
    for request, _ in _ranked(policy, case.units)[: decision.total - int(lengths.sum())]:
        lengths[request] += 1
    assert np.array_equal(lengths, decision.lengths), (
        f"lengths {decision.lengths.tolist()} are not the first {decision.total} of the admission order, "
        f"which gives {lengths.tolist()}"
    )


def check_plan(policy: Policy, case: Case, rng: np.random.Generator) -> None:
    """A policy that is not live has a plan, made before the draft, that gives the same decision."""
    if policy.live:
        return
    plan = policy.plan(case.past(policy))  # type: ignore[attr-defined]
    decision = _decide(policy, case)
    planned = allocate(case.units, plan.budget, plan.floor, plan.cap)
    assert plan.budget == decision.total, f"the plan has budget {plan.budget}, the decision {decision.total}"
    assert np.array_equal(planned, decision.lengths), "the plan and the decision admit different tokens"


def check_confidence_need(policy: Policy, case: Case, rng: np.random.Generator) -> None:
    """A policy that does not say `reads_confidence` decides the same without confidences."""
    if not policy.reads_confidence:
        live = case.live()
        without = _decide(policy, case, LiveBlock(live.units, None, live.depth))
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
    units, start = case.units, len(case.units) * policy.floor
    ranked = _ranked(policy, units)
    total = _decide(policy, case, LiveBlock(units)).total
    for rank in {0, total - start, total - start + 1, int(rng.integers(0, len(ranked) + 1))}:
        if 0 <= rank <= len(ranked):
            other = _decide(policy, case, LiveBlock(_change_later(policy, units, ranked, rank, rng))).total
            was, now = total - start >= rank, other - start >= rank
            assert was == now, f"rank {rank} was admitted: {was}; after later survivals changed: {now}"


def check_stopping_walk(policy: Policy, case: Case, rng: np.random.Generator) -> None:
    """The array form `walk` admits as many as asking `admits` one candidate at a time."""
    if not isinstance(policy, StoppingRule):
        return
    past, units = case.past(policy), case.units
    start = len(units) * policy.floor
    tau = len(units) * SCALE + int(units[:, : policy.floor].sum())
    survivals = np.array([units[request, position] for request, position in _ranked(policy, units)], dtype=np.int64)
    scalar = StoppingRule.walk(policy, past, start, tau, survivals)
    array = policy.walk(past, start, tau, survivals)
    assert array == scalar, f"walk admits {array}, admits one at a time {scalar}"


def check_length_rule(policy: Policy, case: Case, rng: np.random.Generator) -> None:
    """`lengths` is what `admits` says, and hangs on a request's own confidences up to the position asked about."""
    if not isinstance(policy, LengthRule):
        return
    past = case.past(policy)
    lengths = policy.lengths(past, case.live())
    scalar = LengthRule.lengths(policy, past, case.live())
    assert np.array_equal(lengths, scalar), f"lengths {lengths.tolist()}, admits one at a time {scalar.tolist()}"
    requests, gamma = case.confidence.shape
    for request in range(min(requests, 3)):
        for position in {int(lengths[request]), min(int(lengths[request]) + 1, gamma), int(rng.integers(1, gamma + 1))}:
            changed = random_confidence(rng, requests, gamma)
            changed[request, :position] = case.confidence[request, :position]
            now = int(policy.lengths(past, LiveBlock.of(changed))[request])
            assert (now >= position) == (lengths[request] >= position), (
                f"position {position} of request {request} is verified or not by later positions or other requests"
            )


CHECKS: dict[str, Callable[[Policy, Case, np.random.Generator], None]] = {
    "bounds": check_bounds,
    "pure": check_pure,
    "admission order": check_admission_order,
    "plan": check_plan,
    "confidence need": check_confidence_need,
    "budget rule": check_budget_rule,
    "stopping rule": check_stopping_rule,
    "stopping walk": check_stopping_walk,
    "length rule": check_length_rule,
}
"""Every check by name: called with a policy, a case and a generator, raises AssertionError."""


def _ranked(policy: BudgetRule | StoppingRule, units: Ints) -> list[tuple[int, int]]:
    """The admission order (request, position from 0) of what the walk may admit, by definition: sorted tuples."""
    cap = units.shape[1] if policy.cap is None else policy.cap
    found = [(-int(units[r, j]), j, r) for r in range(len(units)) for j in range(policy.floor, cap)]
    return [(request, position) for _, position, request in sorted(found)]


def _change_later(
    policy: StoppingRule, units: Ints, ranked: list[tuple[int, int]], rank: int, rng: np.random.Generator
) -> Ints:
    """Other survivals after the first `rank` of the order, all below the last that is kept."""
    changed = units.copy()
    kept = np.full(len(units), policy.floor)
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
