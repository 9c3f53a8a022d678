"""Student's t interval: against worked values, its coverage, and what it costs to import."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sglang_dspark.statistics import t_interval


@pytest.mark.parametrize(
    ("count", "level", "quantile"),
    [
        (2, 0.95, 12.706),
        (5, 0.95, 2.776),
        (31, 0.95, 2.042),
        (121, 0.95, 1.980),
        (2, 0.995, 127.321),
        (6, 0.995, 4.773),
    ],
)
def test_the_quantiles_of_the_printed_tables(count: int, level: float, quantile: float) -> None:
    """Values that alternate around 10, of sample standard deviation s: half = quantile * s / sqrt(n)."""
    values = 10 + np.resize([1.0, -1.0], count)
    mean, half = t_interval(values, level)
    assert mean == pytest.approx(values.mean())
    assert half == pytest.approx(quantile * np.std(values, ddof=1) / math.sqrt(count), rel=1e-3)


def test_one_value_has_no_width() -> None:
    mean, half = t_interval([3.0])
    assert mean == 3.0 and math.isnan(half)


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=20), st.floats(-1e3, 1e3), st.floats(0.1, 100))
def test_it_moves_and_stretches_with_the_values(values: list[float], shift: float, scale: float) -> None:
    mean, half = t_interval(values)
    moved, stretched = t_interval([scale * value + shift for value in values])
    assert moved == pytest.approx(scale * mean + shift, rel=1e-6, abs=1e-3)
    assert stretched == pytest.approx(scale * half, rel=1e-6, abs=1e-3)
    assert t_interval(values, 0.995)[1] >= half


def test_it_covers_the_expectation_as_often_as_it_says() -> None:
    """4,000 samples of four: 95 % within three standard errors."""
    samples = np.random.default_rng(0).normal(5.0, 2.0, size=(4000, 4))
    covered = np.mean([abs(mean - 5.0) <= half for mean, half in map(t_interval, samples)])
    assert abs(covered - 0.95) < 3 * math.sqrt(0.95 * 0.05 / 4000)


def test_scipy_is_imported_when_it_is_needed_and_not_before() -> None:
    code = "import sys, simulator.cli, sglang_dspark.cli.app, sglang_dspark.live.ab; print('scipy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
