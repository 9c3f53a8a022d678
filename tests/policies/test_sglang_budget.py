"""`argmax:pricing=floor` is SGLang's rule: the same K as its `compute_verify_token_budget`.

SGLang sums float32 survivals in float64, we sum multiples of 2^-24 exactly, and its additive table divides where we
multiply by the inverse. Where two counts are worth the same within 1e-6 the two may pick either; such a difference
counts as equal only if SGLang's own Theta of our K is within 1e-6 of its maximum, and it must be rare. On survivals
that both represent exactly and tables whose look-ups are exact, there is no such allowance.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from sglang_dspark.cost import SpsAdditiveCostTable, SpsCostTable, model_from_table
from sglang_dspark.policies import SCALE, Argmax, Past, survival_units
from sglang_dspark.policies.drawing import random_confidence

LEAST_OURS = 16.5 / SCALE
"""SGLang leaves out survivals below 1e-6 (16.78 units); rounded to units that is below 16.5."""

Rule = Callable[[np.ndarray, Any], int]


def reference_budget(
    survival: np.ndarray, table: SpsCostTable | SpsAdditiveCostTable, least: float = 1e-6
) -> tuple[int, np.ndarray]:
    """SGLang's rule written from its source (dspark_planner.py:867-904): K, and Theta by K."""
    requests = len(survival)
    candidates = survival[survival >= np.float32(least)].astype(np.float64)
    tau = requests + np.concatenate([[0.0], np.cumsum(np.sort(candidates)[::-1])])
    tokens = requests + np.arange(tau.size)
    if isinstance(table, SpsCostTable):
        probe = np.searchsorted(table.sample_batch_tokens, tokens, side="right") - 1
        theta = tau * np.array(table.sample_steps_per_sec)[np.clip(probe, 0, len(table.sample_batch_tokens) - 1)]
    else:
        alpha = np.interp(requests, table.bs_probes, table.alpha_seconds)
        theta = tau / (table.bias_seconds + alpha + np.interp(tokens, table.m_probes, table.theta_seconds))
    return int(np.argmax(theta)), theta


def random_table(rng: np.random.Generator, most: int) -> SpsCostTable | SpsAdditiveCostTable:
    probes = np.unique(rng.integers(1, most + 2, size=int(rng.integers(2, 12)))).tolist()
    probes = probes if len(probes) > 1 else [probes[0], probes[0] + 1]
    seconds = 0.005 + np.cumsum(rng.choice([0.0, 0.0001, 0.002], size=len(probes)))
    if rng.random() < 0.5:
        return SpsCostTable(probes, (1.0 / seconds).tolist(), probes[-1])
    requests = np.unique(rng.integers(1, 65, size=4))
    alpha = (np.arange(requests.size) * rng.uniform(0, 1e-3)).tolist()
    return SpsAdditiveCostTable(0.004, requests.tolist(), alpha, probes, (seconds - 0.005).tolist())


def our_budget(confidence: np.ndarray, table: SpsCostTable | SpsAdditiveCostTable) -> int:
    requests, gamma = confidence.shape
    units = survival_units(confidence)
    prices = model_from_table(table, "random").prices(requests, gamma)
    past = Past(requests, gamma, prices, lambda lag: (units, np.ones(requests, dtype=bool)))
    return Argmax(pricing="floor").budget(past)


def upstream_budget() -> Rule:
    torch = pytest.importorskip("torch", reason="SGLang's rule needs torch")
    reason = "compares with the sglang package (extra `serve`)"
    planner = pytest.importorskip("sglang.srt.speculative.dspark_components.dspark_planner", reason=reason)
    tables = pytest.importorskip("sglang.srt.speculative.dspark_components.dspark_sps", reason=reason)

    def rule(survival: np.ndarray, table: SpsCostTable | SpsAdditiveCostTable) -> int:
        theirs = getattr(tables, type(table).__name__)(
            **{key: getattr(table, key) for key in table.__struct_fields__ if key not in ("meta", "tiered")}
        )
        config = planner.DSparkScheduleConfig(gamma=survival.shape[1])
        decision = planner.compute_verify_token_budget(
            history_survival_probs=torch.from_numpy(survival.copy()), sps_table=theirs, cfg=config
        )
        return decision.budget

    return rule


@pytest.fixture(params=["reference", "upstream"])
def rule(request: pytest.FixtureRequest) -> Rule:
    if request.param == "reference":
        return lambda survival, table: reference_budget(survival, table)[0]
    return upstream_budget()


def test_the_same_budget_on_random_blocks(rule: Rule) -> None:
    rng = np.random.default_rng(0)
    count, near_ties = 400, 0
    for _ in range(count):
        requests, gamma = int(rng.integers(1, 65)), int(rng.integers(1, 9))
        confidence = random_confidence(rng, requests, gamma)
        table = random_table(rng, requests * (1 + gamma))
        survival = np.multiply.accumulate(confidence, axis=1, dtype=np.float32)
        ours, theirs = our_budget(confidence, table), rule(survival, table)
        if ours != theirs:
            theta = reference_budget(survival, table, LEAST_OURS)[1]
            assert ours < theta.size and theta[ours] >= theta.max() * (1 - 1e-6), (ours, theirs)
            near_ties += 1
    assert near_ties <= count // 50


def test_the_same_budget_exactly_where_both_are_exact(rule: Rule) -> None:
    """Survivals are powers of 1/2 and rates powers of 2, so that every Theta is exact, ties included."""
    rng = np.random.default_rng(1)
    for _ in range(200):
        requests, gamma = int(rng.integers(1, 33)), int(rng.integers(1, 8))
        confidence = rng.choice([1.0, 0.5, 0.25], size=(requests, gamma)).astype(np.float32)
        probes = np.unique(rng.integers(1, requests * (1 + gamma) + 2, size=6)).tolist()
        if len(probes) < 2:
            continue
        rates = 2.0 ** -np.cumsum(rng.integers(0, 2, size=len(probes)))
        table = SpsCostTable(probes, rates.tolist(), probes[-1])
        survival = np.multiply.accumulate(confidence, axis=1, dtype=np.float32)
        assert our_budget(confidence, table) == rule(survival, table)


def test_the_reference_is_upstreams() -> None:
    """The reimplementation above, which runs everywhere, gives what SGLang gives."""
    rule = upstream_budget()
    rng = np.random.default_rng(2)
    for _ in range(100):
        requests, gamma = int(rng.integers(1, 65)), int(rng.integers(1, 9))
        survival = np.multiply.accumulate(random_confidence(rng, requests, gamma), axis=1, dtype=np.float32)
        table = random_table(rng, requests * (1 + gamma))
        budget, theta = reference_budget(survival, table)
        theirs = rule(survival, table)
        assert theirs == budget or abs(theta[theirs] - theta.max()) < 1e-9 * theta.max()
