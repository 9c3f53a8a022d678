"""The exact audit: worst total variation of every policy over many random small worlds, in parallel processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sglang_dspark.audit.engine import Engine
from sglang_dspark.audit.enumeration import total_variation
from sglang_dspark.audit.ranks import distance as between_ranks
from sglang_dspark.audit.world import Shape, make_ranks, make_world
from sglang_dspark.errors import InputError
from sglang_dspark.policies import Policy, policy_to_string
from sglang_dspark.workers import Report, Work, Workers

TOLERANCE = 1e-9
"""A total variation above this is a bias: sums of a few thousand float64 terms stay below 1e-12."""
CHUNK = 5  # instances of one task

_NOT_ENUMERATED = {"oracle": "needs the accepted depth, which only the simulator knows"}


@dataclass(frozen=True)
class Verdict:
    """What was found for one policy. worst_instance: where the worst total variation is, with the audit's seed.

    not_enumerated: why a policy was left out, else empty.
    """

    policy: str
    claims_lossless: bool
    worst_tv: float
    biased: int
    instances: int
    worst_instance: int
    seconds: float
    not_enumerated: str = ""

    @property
    def fails(self) -> bool:
        """Whether a policy that claims to be lossless is not."""
        return self.claims_lossless and self.worst_tv > TOLERANCE

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "fails": self.fails}


@dataclass
class _Tally:
    worst_tv: float = 0.0
    worst_instance: int = 0
    biased: int = 0
    instances: int = 0
    seconds: float = 0.0

    def add(self, index: int, distance: float, seconds: float) -> None:
        if distance > self.worst_tv:
            self.worst_tv, self.worst_instance = distance, index
        self.biased += distance > TOLERANCE
        self.instances += 1
        self.seconds += seconds


Found = tuple[int, int, float, float]
"""(policy, instance, total variation, seconds)."""


def audit_exactly(
    policies: Sequence[Policy],
    shape: Shape,
    *,
    instances: int = 200,
    seed: int = 0,
    jobs: int = 1,
    engine: Engine | None = None,
    ranks: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> list[Verdict]:
    """Enumerate every policy in the same `instances` worlds; results in the order of `policies`.

    jobs: worker processes; 1 stays in this one (needed for policies that cannot be pickled). engine: what is assumed
    of the engine, for tests. ranks: 2 for two DP-attention ranks of `shape` that share a tier.
    progress: called with (done, total) enumerations.
    Errors: InputError for bad numbers, parameters that exceed gamma, or steps < lag + 2.
    """
    for name, value, low, high in (
        ("instances", instances, 1, 1_000_000),
        ("jobs", jobs, 1, 256),
        ("ranks", ranks, 1, 2),
    ):
        if not low <= value <= high:
            raise InputError(f"{name}={value} is refused, expected {low}..{high}")
    if seed < 0:
        raise InputError(f"seed={seed} is refused, expected 0 or more")
    for policy in policies:
        _check(policy, shape)
    todo = [policy for policy in policies if policy.name not in _NOT_ENUMERATED]
    total = instances * len(todo)
    tallies = [_Tally() for _ in todo]
    chunks = [range(first, min(first + CHUNK, instances)) for first in range(0, instances, CHUNK)]
    on_counts = None if progress is None else lambda done: progress(done, total)
    with Workers(jobs, _enumerator, todo, shape, seed, engine or Engine(), ranks) as workers:
        for found in workers.run(chunks, on_counts):
            for which, index, distance, seconds in found:
                tallies[which].add(index, distance, seconds)
    by_policy = iter(tallies)
    return [_verdict(policy, None if policy.name in _NOT_ENUMERATED else next(by_policy)) for policy in policies]


def _check(policy: Policy, shape: Shape) -> None:
    policy.check(shape.gamma)
    if shape.steps < policy.max_lag + 2:
        raise InputError(
            f"steps={shape.steps} is refused: policy '{policy_to_string(policy)}' looks {policy.max_lag} publishes "
            f"back, expected at least {policy.max_lag + 2}"
        )


def _enumerator(policies: Sequence[Policy], shape: Shape, seed: int, engine: Engine, ranks: int) -> Work:
    def work(indices: Sequence[int], report: Report) -> list[Found]:
        found = enumerate_chunk(policies, shape, indices, seed, engine, ranks)
        report(len(found))
        return found

    return work


def enumerate_chunk(
    policies: Sequence[Policy], shape: Shape, indices: Sequence[int], seed: int, engine: Engine, ranks: int = 1
) -> list[Found]:
    """All policies in some worlds; the worlds' tables are shared by the policies."""
    asked: list[set[int]] = [set() for _ in policies]
    found: list[Found] = []
    for index in indices:
        make = make_world if ranks == 1 else make_ranks
        world: Any = make(shape, seed, index, post_token=engine.post_token)
        for which, policy in enumerate(policies):
            begin = time.perf_counter()
            if ranks == 1:
                distance = total_variation(policy, world, engine, asked[which])
            else:
                distance = between_ranks(policy, world, engine, asked[which]).joint
            found.append((which, index, distance, time.perf_counter() - begin))
    return found


def _verdict(policy: Policy, tally: _Tally | None) -> Verdict:
    text = policy_to_string(policy)
    if tally is None:
        return Verdict(text, policy.lossless, 0.0, 0, 0, 0, 0.0, _NOT_ENUMERATED[policy.name])
    return Verdict(
        text, policy.lossless, tally.worst_tv, tally.biased, tally.instances, tally.worst_instance, tally.seconds
    )
