"""The shipped B300 profile: its source, SGLang's loader, and what is known of policies on it."""

from __future__ import annotations

import csv
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from sglang_dspark.cost import load_profile
from sglang_dspark.policies import SCALE, EarlyStop, Hull, LiveBlock, Past, Policy

NAME = "vllm-b300-dsv4-flash"
SHARED = Path(__file__).parents[3] / "shared" / "data"
GAMMA = 7


def rows(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        pytest.skip(f"the source data {path.name} is not on this machine")
    with path.open() as file:
        return list(csv.DictReader(file))


def test_it_holds_the_published_curves() -> None:
    model = load_profile(NAME)
    verify = [tuple(map(float, row.values())) for row in rows(SHARED / "vllm_b300_cost" / "verify_cost_median.csv")]
    draft = [tuple(map(float, row.values())) for row in rows(SHARED / "vllm_b300_cost" / "draft_cost_median.csv")]
    for requests, milliseconds in draft:
        assert model.draft_s(int(requests)) * 1e3 == pytest.approx(milliseconds, abs=1e-3)
    for tokens, milliseconds in verify:
        if tokens <= model.last_captured:
            assert float(model.verify_s(1, int(tokens))) * 1e3 == pytest.approx(milliseconds, abs=1e-3)
    cliff = [milliseconds for tokens, milliseconds in verify if tokens > 1030][0]
    assert float(model.verify_s(1, 1537)) * 1e3 == pytest.approx(cliff, rel=0.1)
    assert 1000 <= model.last_captured <= 1030
    assert float(model.verify_s(1, 1500)) > 3 * float(model.verify_s(1, 1000))


def test_sglangs_own_loader_accepts_the_file() -> None:
    upstream = pytest.importorskip(
        "sglang.srt.speculative.dspark_components.dspark_sps", reason="needs the sglang package (extra `serve`)"
    )
    table = upstream.load_sps_table_from_path(str(files("dspark_profiles").joinpath(f"{NAME}.json")))
    assert isinstance(table, upstream.SpsAdditiveCostTable)
    assert not upstream.is_uninitialized_sps_table(table)
    model = load_profile(NAME)
    captured = set(model.captured.tolist())
    for requests in (1, 8, 64, 256):
        for tokens in captured & set(table.m_probes):
            if tokens >= requests:
                ours = model.draft_s(requests) + float(model.verify_s(requests, tokens))
                assert table.step_time(num_reqs=requests, budget=tokens - requests) == pytest.approx(ours, rel=1e-4)


def design_confidences() -> dict[str, np.ndarray]:
    """Mean conditional acceptance by position of the paper's Figure 2, by domain."""
    found: dict[str, list[float]] = {}
    for row in rows(SHARED / "paper" / "fig2_conditional_acceptance.csv"):
        if row["drafter"] == "DSpark":
            found.setdefault(row["domain"], []).append(float(row["cond_acceptance"]))
    return {domain: np.array(means) for domain, means in found.items()}


def share_of_best(policy: Policy, requests: int, means: dict[str, np.ndarray], draws: int = 60) -> float:
    """Mean Theta of the policy over that of the best count, on i.i.d. beta confidences of three mixed domains."""
    rng = np.random.default_rng(requests)
    prices = load_profile(NAME).prices(requests, GAMMA)
    shares = []
    for _ in range(draws):
        mean = np.array([means[domain] for domain in rng.choice(sorted(means), size=requests)])[:, :GAMMA]
        live = LiveBlock.of(rng.beta(mean * 2.5, (1 - mean) * 2.5).astype(np.float32))
        tau = requests * SCALE + np.concatenate([[0], np.cumsum(np.sort(live.units, axis=None)[::-1])])
        theta = tau * prices.inverse
        shares.append(theta[policy.decide(Past(requests, GAMMA, prices), live).total] / theta.max())
    return float(np.mean(shares))


@pytest.mark.parametrize("requests", [16, 32, 48, 96, 128, 192, 256])
def test_early_stop_halts_at_the_first_tier_and_hull_does_not(requests: int) -> None:
    """The prototype's figures (hull_range.py, policy_check.py): 0.32-0.44 and 0.94-1.00 of the best count."""
    means = design_confidences()
    assert 0.3 <= share_of_best(EarlyStop(), requests, means) <= 0.5
    assert 0.94 <= share_of_best(Hull(), requests, means) <= 1.0
