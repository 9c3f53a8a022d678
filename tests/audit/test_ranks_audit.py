"""Two ranks that share a tier: exact for every class that is served, and a leak through the tier is found."""

from __future__ import annotations

import numpy as np
import pytest
from planted_sharing import BestTogether, Yields

from sglang_dspark.audit.engine import Engine
from sglang_dspark.audit.exact import TOLERANCE, audit_exactly
from sglang_dspark.audit.ranks import Distance, SharedTier, Sharing, distance
from sglang_dspark.audit.variants import default_policies
from sglang_dspark.audit.world import Shape, make_ranks
from sglang_dspark.policies import make_policy

SHAPE = Shape(2, 2, 2, 3)
ONE = Shape(1, 2, 2, 4)


def worst(policy: str, sharing: Sharing, shape: Shape, instances: int) -> Distance:
    rule, asked = make_policy(policy), set[int]()
    found = [distance(rule, make_ranks(shape, 0, index), Engine(), asked, sharing) for index in range(instances)]
    return Distance(max(one.joint for one in found), (max(f.each[0] for f in found), max(f.each[1] for f in found)))


def test_every_policy_that_is_served_is_exact_on_two_ranks() -> None:
    """Every registered policy and its variants, among them all that fill the other rank's tier."""
    policies = default_policies(ONE.requests, ONE.gamma)
    verdicts = audit_exactly(policies, ONE, instances=3, seed=1, ranks=2)
    assert not [verdict for verdict in verdicts if verdict.fails]
    assert all(verdict.worst_tv < 1e-12 for verdict in verdicts if verdict.claims_lossless)


def test_a_biased_policy_is_biased_on_two_ranks_as_well() -> None:
    assert audit_exactly([make_policy("argmax-live")], ONE, instances=30, ranks=2)[0].worst_tv > TOLERANCE


@pytest.mark.parametrize("policy", ["hull", "argmax:lag=1", "foresight:lag=1", "lookahead", "hull:floor=1"])
def test_a_filled_tier_is_exact_and_is_filled(policy: str) -> None:
    filled = 0

    class Counts(SharedTier):
        def lengths(self, policy, ranks, captured):
            nonlocal filled
            found = super().lengths(policy, ranks, captured)
            filled += sum(
                int((own > rank.decision.lengths).any()) for own, rank in zip(found, ranks, strict=True) if rank
            )
            return found

    assert max(worst(policy, Counts(), SHAPE, 6)[0], *worst(policy, Counts(), ONE, 6).each) < 1e-12
    assert filled > 10


@pytest.mark.parametrize("policy", ["fixed:k=1", "threshold", "early-stop"])
def test_rules_that_say_exactly_what_they_verify_are_not_filled(policy: str) -> None:
    class Same(SharedTier):
        def lengths(self, policy, ranks, captured):
            found = super().lengths(policy, ranks, captured)
            assert all(
                np.array_equal(own, rank.decision.lengths) for own, rank in zip(found, ranks, strict=True) if rank
            )
            return found

    assert worst(policy, Same(), ONE, 4).joint < 1e-12


def test_a_rank_that_yields_to_the_other_leaks_between_ranks_only() -> None:
    """What a rank takes back, the other has decided on: each law holds by itself, the joint one does not."""
    found = worst("hull", Yields(), SHAPE, 12)
    assert max(found.each) < 1e-12 and found.joint > 1e-3


def test_a_tier_that_pays_best_for_both_leaks() -> None:
    assert worst("early-stop", BestTogether(), ONE, 20).joint > 0.05


def test_a_budget_of_the_past_may_even_be_taken_back() -> None:
    """Nothing live has been looked at."""
    assert worst("argmax:lag=1", Yields(), ONE, 12).joint < 1e-12
