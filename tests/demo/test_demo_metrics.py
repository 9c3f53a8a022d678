"""AUC and calibration error against their definitions."""

import pytest

pytest.importorskip("torch", reason="the demo pair needs torch (extra `serve`)")
pytest.importorskip("transformers", reason="the demo pair needs transformers (extra `serve`)")

import numpy as np  # noqa: E402
from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from sglang_dspark.demo.metrics import auc, expected_calibration_error, summarize  # noqa: E402
from sglang_dspark.demo.reference import Round  # noqa: E402


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=30))
def test_auc_is_the_share_of_ordered_pairs(pairs: list[tuple[int, bool]]) -> None:
    positives, negatives = [s for s, y in pairs if y], [s for s, y in pairs if not y]
    got = auc(np.array([s for s, _ in pairs]), np.array([y for _, y in pairs]))
    if not positives or not negatives:
        assert got is None
    else:
        wins = sum((p > n) + 0.5 * (p == n) for p in positives for n in negatives)
        assert got == pytest.approx(wins / (len(positives) * len(negatives)))


def test_calibration_error_of_known_cases() -> None:
    assert expected_calibration_error(np.full(10, 0.7), np.arange(10) < 7) == pytest.approx(0)
    assert expected_calibration_error(np.full(10, 0.9), np.arange(10) < 4) == pytest.approx(0.5)
    assert expected_calibration_error(np.array([1.0, 0.0]), np.array([False, True])) == pytest.approx(1)


def test_summary_counts_by_position() -> None:
    confidences = [(0.9, 0.8), (0.9, 0.2), (0.3, 0.5)]
    rounds = [Round(accepted, 2, c, (0.5, 0.5)) for accepted, c in zip((2, 1, 0), confidences, strict=True)]
    summary = summarize(rounds)
    assert summary["accept_length"] == 2.0
    assert summary["acceptance"] == [0.6667, 0.5] and summary["survival"] == [0.6667, 0.3333]
    assert summary["survival_auc"] == [1.0, 1.0]
