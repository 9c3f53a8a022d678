"""The acceptance model gives what was published, and its confidences are as good or bad as they say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from simulated_worlds import setting_of

from sglang_dspark.errors import InputError
from sglang_dspark.policies import SCALE, make_policy, survival_units
from simulator import Confidence, Trace
from simulator.blocks.acceptance import BlockTable, StatisticalAcceptance, normal_quantiles
from simulator.blocks.drafters import DOMAINS, DRAFTERS, Drafter, find_drafter
from simulator.results.run import run_once

# DeepSeek's DSpark paper, Table 1, Qwen3-4B: mean accepted length (bonus included) of three data sets a domain.
TABLE_1 = {
    "dspark": (5.567, 5.123, 3.490),
    "dflash": (4.800, 4.440, 2.953),
    "eagle3": (4.560, 3.873, 2.400),
}
REQUESTS = 900


def one_domain(drafter: Drafter, domain: int, requests: int = REQUESTS, output: int = 400) -> Trace:
    return Trace(
        np.zeros(requests),
        np.full(requests, 5),
        np.full(requests, output),
        np.full(requests, domain),
        DOMAINS,
        source="test",
    )


@pytest.mark.parametrize("name", TABLE_1)
@pytest.mark.parametrize("domain", range(3))
def test_whole_blocks_give_the_published_lengths_and_conditionals(name: str, domain: int) -> None:
    """Per decode step, as published: Figure 2 by position, Table 1 as the mean accepted length."""
    drafter = DRAFTERS[name]
    setting = replace(setting_of(one_domain(drafter, domain), max_running_requests=256), drafter=drafter)
    depth: list[np.ndarray] = []

    class Watcher(type(make_policy("fixed:k=7"))):  # type: ignore[misc]
        learns = True

        def learn(self, carry: object, outcome: object) -> object:
            depth.append(outcome.accepted)  # type: ignore[attr-defined]
            return carry

    figures, _ = run_once(setting, Watcher(k=7))
    steps = np.concatenate(depth)
    survivors = np.array([(steps >= position).sum() for position in range(8)])
    assert survivors[1:] / survivors[:-1] == pytest.approx(drafter.acceptance[DOMAINS[domain]], abs=0.015)
    published = TABLE_1[name][domain]
    # The last block of 400 tokens is cut: a token or two less over some 100 steps.
    assert figures["accept_length"] == pytest.approx(published, rel=0.025)
    assert 1 + steps.mean() == pytest.approx(published, rel=0.025)


def blocks_of(confidence: Confidence, *, seed: int = 0, drafter: str = "dspark", requests: int = 400) -> BlockTable:
    """All blocks of `requests` requests of 200 tokens, domains in turn."""
    outputs = np.full(requests, 200)
    domain = np.arange(requests) % 3
    source = StatisticalAcceptance(find_drafter(drafter), confidence, domain, outputs, seed)
    out = BlockTable.empty(requests * 200, source.gamma, confidence=True)
    for request in range(requests):
        source.fill(request, 1, out.rows(request * 200, (request + 1) * 200))
    return out


def calibration_error(blocks: BlockTable) -> float:
    """ECE of the survivals: does token j survive as often as its survival says? 20 bins over all positions."""
    said = blocks.units.ravel() / SCALE
    happened = (np.arange(blocks.units.shape[1]) < blocks.depth[:, None]).ravel()
    bins = np.minimum((said * 20).astype(int), 19)
    count = np.bincount(bins, minlength=20)
    gap = np.abs(np.bincount(bins, said, 20) - np.bincount(bins, happened, 20))
    return float(gap.sum() / count.sum())


def test_confidences_are_calibrated_by_construction() -> None:
    assert calibration_error(blocks_of(Confidence.of("calibrated"))) < 0.004
    by_position = {"spread_request": 0.0, "spread_block": 0.0, "spread_position": 2.0}
    assert calibration_error(blocks_of(Confidence.of("calibrated", **by_position))) < 0.004


def test_a_drift_is_of_the_second_half_of_the_tokens() -> None:
    honest, bent = (blocks_of(Confidence.of("calibrated", **each)) for each in ({}, {"bias": 1.0, "drift": -2.0}))
    assert honest.confidence is not None and bent.confidence is not None and (honest.depth == bent.depth).all()
    inside = (honest.confidence > 0.01) & (honest.confidence < 0.99)
    moved = np.where(inside, _logit(bent.confidence) - _logit(honest.confidence), np.nan)
    half = len(moved) // 2
    assert np.nanmax(np.abs(moved[: half - 200] - 1.0)) < 0.01 and np.nanmax(np.abs(moved[half + 200 :] + 1.0)) < 0.01


def _logit(p: np.ndarray) -> np.ndarray:
    return np.log(p / (1.0 - p))


@pytest.mark.parametrize(
    "change", [{"temperature": 0.5}, {"temperature": 2.0}, {"bias": 0.7}, {"bias": -0.7}, {"noise": 1.5}]
)
def test_miscalibration_does_what_it_says(change: dict[str, float]) -> None:
    """Depths stay, reports change by the stated function of the truth, and the ECE shows it."""
    honest, bent = (blocks_of(Confidence.of("calibrated", **each)) for each in ({}, change))
    assert (honest.depth == bent.depth).all()
    assert honest.confidence is not None and bent.confidence is not None
    assert calibration_error(bent) > 0.03
    inside = (honest.confidence > 1e-3) & (honest.confidence < 1 - 1e-3)
    inside &= (bent.confidence > 1e-3) & (bent.confidence < 1 - 1e-3)
    true, said = (np.log(c[inside] / (1 - c[inside].astype(float))) for c in (honest.confidence, bent.confidence))
    error = said - (true / change.get("temperature", 1.0) + change.get("bias", 0.0))
    assert error.mean() == pytest.approx(0, abs=0.04)
    assert error.std() == pytest.approx(change.get("noise", 0.0), abs=0.06)


def test_spreads_spread() -> None:
    """Between requests, blocks and positions, each by its own parameter alone."""
    still = {"spread_request": 0.0, "spread_block": 0.0, "spread_position": 0.0}
    logits = {}
    for name in still:
        confidence = blocks_of(Confidence(**{**still, name: 0.9})).confidence
        assert confidence is not None
        values = np.clip(confidence.astype(float), 1e-6, 1 - 1e-6).reshape(400, 200, 7)
        logits[name] = np.log(values / (1 - values))
    by_request = logits["spread_request"][::3, :, 0]
    assert by_request.std(axis=1).max() < 0.01 and by_request[:, 0].std() == pytest.approx(0.9, rel=0.2)
    by_block = logits["spread_block"][0]
    assert by_block[:, 0].std() == pytest.approx(0.9, rel=0.2)
    assert np.corrcoef(by_block[:, 0], by_block[:, 6])[0, 1] > 0.99
    by_position = logits["spread_position"][0]
    assert abs(np.corrcoef(by_position[:, 0], by_position[:, 6])[0, 1]) < 0.2


def test_no_confidence_head_reports_the_published_mean() -> None:
    blocks = blocks_of(Confidence(), drafter="eagle3", requests=30)
    for domain, name in enumerate(DOMAINS):
        rows = slice(domain * 200, (domain + 1) * 200)
        published = np.array([DRAFTERS["eagle3"].acceptance[name]], dtype=np.float32)
        assert blocks.confidence is not None
        assert (blocks.confidence[rows] == published).all() and (blocks.units[rows] == survival_units(published)).all()


def test_units_are_those_of_the_policies() -> None:
    blocks = blocks_of(Confidence(noise=0.5), requests=30)
    assert blocks.confidence is not None
    assert (blocks.units == survival_units(blocks.confidence)).all()


def test_blocks_depend_on_their_anchor_not_on_how_they_are_asked_for() -> None:
    outputs = np.array([9000, 1, 300])  # the first spans several runs of draws
    source = StatisticalAcceptance(find_drafter("dspark"), Confidence(), np.zeros(3, dtype=int), outputs, 7)
    whole = BlockTable.empty(9000, 7, confidence=True)
    source.fill(0, 0, whole)
    rng = np.random.default_rng(0)
    for first in rng.integers(0, 8900, 40).tolist():
        part = BlockTable.empty(int(rng.integers(1, 100)), 7, confidence=True)
        source.fill(0, first, part)
        rows = slice(first, first + len(part.depth))
        assert (part.units == whole.units[rows]).all() and (part.depth == whole.depth[rows]).all()
    assert len(np.unique(whole.units[:, 3])) > 8900, "fresh blocks, not repeated ones"


def test_normal_quantiles_are_normal() -> None:
    table = normal_quantiles().astype(float)
    assert abs(table.mean()) < 1e-7 and table.std() == pytest.approx(1, abs=1e-4)
    assert (table**4).mean() == pytest.approx(3, abs=0.01)


@pytest.mark.parametrize("name", ["spread_request", "spread_block", "spread_position", "temperature", "bias", "noise"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -11.0, 21.0])
def test_confidence_parameters_out_of_range_are_refused(name: str, value: float) -> None:
    with pytest.raises(InputError, match=f"confidence {name}="):
        Confidence(**{name: value})
