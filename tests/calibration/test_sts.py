"""STS: brings a mis-tempered head's error down on held-out blocks, leaves a calibrated one alone."""

import json

import numpy as np
import pytest

from sglang_dspark.calibration import (
    Samples,
    StsFile,
    area_under_curve,
    calibrate,
    expected_calibration_error,
    fit_temperatures,
    raw_logits,
    read_sts,
    reliability,
    survival,
    write_sts,
)
from sglang_dspark.errors import InputError

GAMMA = 5


def drawn(blocks=20_000, sharpness=1.0, seed=0, temperature=1.0, requests=400, gamma=GAMMA):
    """Blocks whose true conditionals are sigmoid(raw / sharpness): a head that is `sharpness` times too sure."""
    rng = np.random.default_rng(seed)
    ease = rng.normal(1.2, 0.8, size=requests)
    request = rng.integers(requests, size=blocks)
    true_logit = ease[request][:, None] + rng.normal(0, 1.0, size=(blocks, gamma))
    true = 1 / (1 + np.exp(-true_logit))
    depth = np.cumprod(rng.random((blocks, gamma)) < true, axis=1).sum(axis=1)
    temperatures = np.full(blocks, float(temperature))
    return Samples(true_logit * sharpness, depth, request, temperatures, np.ones(blocks), np.ones(gamma))


def joined(first, second):
    return Samples(
        np.concatenate([first.logits, second.logits]),
        np.concatenate([first.depth, second.depth]),
        np.concatenate([first.cluster, second.cluster + 10_000]),
        np.concatenate([first.temperature, second.temperature]),
        np.concatenate([first.weight, second.weight]),
        first.in_use,
    )


@pytest.mark.parametrize("sharpness", [0.5, 1.6, 2.5])
def test_a_mis_tempered_head_is_brought_down_on_held_out_blocks(sharpness):
    result = calibrate(drawn(sharpness=sharpness))
    before, after = (np.mean([getattr(p, name) for p in result.positions]) for name in ("ece_before", "ece_after"))
    assert result.improved and before > 0.04 and after < 0.015 and result.gain_low > 0.03
    np.testing.assert_allclose(result.temperatures, sharpness, rtol=0.25)


@pytest.mark.parametrize("seed", range(8))
def test_a_calibrated_head_is_left_alone(seed):
    result = calibrate(drawn(blocks=6000, sharpness=1.0, seed=seed))
    assert not result.improved and result.temperatures == [1.0] * GAMMA


def test_positions_are_fitted_left_to_right_each_with_its_own_temperature():
    samples = drawn(blocks=60_000)
    factors = np.array([0.6, 1.0, 2.0, 1.5, 0.8])
    np.testing.assert_allclose(fit_temperatures(samples.logits * factors, samples.depth), factors, rtol=0.12)


def test_temperatures_in_use_are_taken_out_before_fitting():
    """Confidences that a wrong STS vector went through are brought back to the same place."""
    samples, wrong = drawn(blocks=80_000), np.array([2.0, 0.5, 1.5, 1.0, 3.0])
    confidence = (1 / (1 + np.exp(-samples.logits / wrong))).astype(np.float32)
    raw = raw_logits(confidence, wrong)
    np.testing.assert_allclose(raw, samples.logits, atol=2e-3, rtol=2e-3)
    result = calibrate(Samples(raw, samples.depth, samples.cluster, samples.temperature, samples.weight, wrong))
    assert result.improved
    np.testing.assert_allclose(result.temperatures, 1.0, rtol=0.2)


def test_a_group_that_one_vector_serves_badly_is_named():
    samples = joined(drawn(sharpness=3.0, temperature=0.0, seed=1), drawn(sharpness=1.0, temperature=1.0, seed=2))
    groups = {group.name: group for group in calibrate(samples).groups}
    assert set(groups) == {"0", "1"}
    assert groups["0"].fits_badly or groups["1"].fits_badly
    alike = joined(drawn(sharpness=2.0, temperature=0.0, seed=1), drawn(sharpness=2.0, temperature=1.0, seed=2))
    assert not any(group.fits_badly for group in calibrate(alike).groups)


def test_too_little_is_refused():
    with pytest.raises(InputError, match="300 uncensored blocks of .* too few"):
        calibrate(drawn(blocks=300))
    with pytest.raises(InputError, match="5 requests are too few"):
        calibrate(drawn(blocks=5000, requests=5))


def test_weights_count_like_copies():
    samples = drawn(blocks=3000, sharpness=2.0)
    weight = np.random.default_rng(5).integers(1, 4, size=3000)
    copies = fit_temperatures(np.repeat(samples.logits, weight, axis=0), np.repeat(samples.depth, weight))
    np.testing.assert_allclose(fit_temperatures(samples.logits, samples.depth, weight.astype(float)), copies)


def test_metrics_on_worked_cases():
    predicted = np.array([0.1, 0.1, 0.9, 0.9])
    assert expected_calibration_error(predicted, np.array([0, 0, 1, 1])) == pytest.approx(0.1)
    assert expected_calibration_error(predicted, np.array([0, 0, 1, 1]), np.array([1.0, 1, 0, 0])) == pytest.approx(0.1)
    assert expected_calibration_error(np.array([1.0, 0.0]), np.array([0, 1])) == pytest.approx(1.0)
    assert area_under_curve(predicted, np.array([0, 0, 1, 1])) == 1.0
    assert area_under_curve(predicted, np.array([0, 1, 0, 1])) == 0.5
    assert area_under_curve(np.array([0.5, 0.5, 0.6]), np.array([0, 1, 1])) == 0.75
    assert np.isnan(area_under_curve(predicted, np.ones(4)))
    bins = reliability(predicted, np.array([0, 1, 1, 1]))
    assert bins.observed[1] == 0.5 and bins.weight.sum() == 4 and np.isnan(bins.predicted[0])


def test_survival_is_a_product():
    logits = np.array([[0.0, 2.0, -1.0]])
    expected = np.cumprod(1 / (1 + np.exp(-logits / np.array([1.0, 2.0, 0.5]))))
    np.testing.assert_allclose(survival(logits, np.array([1.0, 2.0, 0.5]))[0], expected)


def test_files_round_trip_and_bad_ones_are_refused(tmp_path):
    path = tmp_path / "sts.json"
    write_sts(path, StsFile([1.1, 0.9], num_samples=7, ece_before=[0.1, 0.2], meta={"improved": True}))
    assert read_sts(path).temperatures == [1.1, 0.9]
    assert json.loads(path.read_text())["num_samples"] == 7
    for text, words in [
        ('{"temperatures": []}', "expected positive"),
        ('{"temperatures": [0.0]}', "expected positive"),
        ("{}", "missing required"),
        ("nonsense", "malformed"),
    ]:
        path.write_text(text)
        with pytest.raises(InputError, match=words):
            read_sts(path)
    with pytest.raises(InputError, match="No such file"):
        read_sts(tmp_path / "nowhere.json")


def test_plain_sglang_loads_the_file_and_agrees_on_the_error(tmp_path):
    torch = pytest.importorskip("torch", reason="SGLang's loader needs torch")
    pytest.importorskip("sglang", reason="the extra `serve` is not installed")
    from sglang.benchmark.dspark_sts_fit import expected_calibration_error as theirs
    from sglang.srt.speculative.dspark_components.dspark_sts import load_sts_calibration_from_path

    path = tmp_path / "sts.json"
    write_sts(path, StsFile([1.25] * 7, dataset="x", num_samples=7, meta={"improved": True, "blocks": 3}))
    assert load_sts_calibration_from_path(str(path)).temperatures == [1.25] * 7
    samples = drawn(blocks=5000)
    predicted = survival(samples.logits, np.full(GAMMA, 1.3))
    for position in range(GAMMA):
        survived = samples.depth > position
        expected = theirs(probs=torch.tensor(predicted[:, position]), targets=torch.tensor(survived), num_bins=15)
        assert expected_calibration_error(predicted[:, position], survived) == pytest.approx(expected, abs=1e-6)
