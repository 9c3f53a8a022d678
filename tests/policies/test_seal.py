"""What a user's class may not define, and that the contract and the exact audit find what gets past the seal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import planted_leaks as planted
import pytest

from sglang_dspark.audit.exact import audit_exactly
from sglang_dspark.audit.world import Shape
from sglang_dspark.errors import InputError
from sglang_dspark.policies import (
    BudgetRule,
    Decision,
    Guard,
    LiveBlock,
    Outcome,
    Past,
    Threshold,
    Unrestricted,
)
from sglang_dspark.policies.contract import check_policy
from sglang_dspark.policies.drawing import ContractViolation

OWN = "sglang_dspark.policies.classes.stopping"
SENTENCES = {
    planted.true_depth: "'lengths' is the package's own in a LengthRule",
    planted.large_batches_only: "'walk' is the package's own in a StoppingRule",
    planted.direct: "it subclasses none of them",
    planted.claimed: "'lossless' is the package's own in a Unrestricted",
    planted.live_saturation: "it subclasses none of them",
    planted.live_uncertainty: "'decide' is the package's own in a BudgetRule",
    planted.batch_mean: "'lengths' is the package's own in a LengthRule",
    planted.fallback_on_later: "'decide' is the package's own in a StoppingRule",
}
LEAST_TV = {
    planted.direct: 0.05,
    planted.claimed: 0.05,
    planted.live_saturation: 0.1,
    planted.live_uncertainty: 0.05,
    planted.batch_mean: 0.005,
    planted.fallback_on_later: 0.05,
}
"""What the exact audit finds at least; it cannot run the depth, and its worlds are too small for large batches."""


@pytest.mark.parametrize("leak", SENTENCES, ids=lambda leak: leak.__name__)
def test_a_users_class_that_could_leak_is_refused(leak: planted.Leak) -> None:
    with pytest.raises(InputError, match="policy class .* is refused") as refused:
        leak(__name__)
    assert SENTENCES[leak] in str(refused.value)


@pytest.mark.parametrize("leak", SENTENCES, ids=lambda leak: leak.__name__)
def test_past_the_seal_the_contract_finds_it(leak: planted.Leak) -> None:
    policy = leak(OWN)()
    with pytest.raises(ContractViolation, match=policy.name):
        check_policy(policy, cases=100)


@pytest.mark.parametrize("leak", LEAST_TV, ids=lambda leak: leak.__name__)
def test_past_the_seal_the_audit_finds_it(leak: planted.Leak) -> None:
    verdict = audit_exactly([leak(OWN)()], Shape(2, 2, 2, 4), instances=40)[0]
    assert verdict.fails and verdict.worst_tv > LEAST_TV[leak]


def test_a_mixin_cannot_carry_a_sealed_name_in() -> None:
    class Mixin:
        def decide(self, past: Past, live: LiveBlock) -> Decision:
            raise NotImplementedError

    with pytest.raises(InputError, match="'decide' is the package's own in a BudgetRule"):

        class Smuggled(Mixin, BudgetRule):
            def budget(self, past: Past) -> int:
                return 0


def test_two_classes_at_once_and_a_users_combination_are_refused() -> None:
    with pytest.raises(InputError, match="subclasses BudgetRule and Unrestricted"):

        class Both(BudgetRule, Unrestricted):
            pass

    with pytest.raises(InputError, match="subclasses none of them"):

        class Mine(Guard):
            pass


def test_a_shipped_rule_can_be_refined_where_its_class_allows() -> None:
    @dataclass(frozen=True)
    class Sharper(Threshold):
        name: ClassVar[str] = "sharper"

    assert Sharper(t=0.9).lossless


def test_no_rule_sees_a_depth() -> None:
    assert not hasattr(LiveBlock.of(np.ones((1, 1), dtype=np.float32)), "depth")
    assert set(Outcome.__slots__) == {"survival", "lengths", "accepted", "timing"}
