"""Fit how far confidences are off to the DSpark paper's Figure 6 (reliability of survivals before and after STS).

Run: python benchmarks/fit_confidence_error.py FIG6.csv. For each stage it prints the temperature and bias of the
reported logit whose reliability comes closest to the figure, and the ECE that follows, on the drafter of the figure
(Qwen3-4B, chat). The CSV has the columns position, calibration (before, after), predicted, observed.
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from itertools import product

import numpy as np

from sglang_dspark.calibration import expected_calibration_error
from simulator import Confidence
from simulator.blocks.acceptance import centres
from simulator.blocks.drafters import DRAFTERS

SAMPLES, BINS = 200_000, 20


def drawn() -> tuple[np.ndarray, np.ndarray]:
    """(true logits [SAMPLES, gamma], accepted depth [SAMPLES]) with the default spreads."""
    rng, spread = np.random.default_rng(0), Confidence()
    acceptance = DRAFTERS["dspark"].acceptance["chat"]
    common = float(np.hypot(spread.spread_request, spread.spread_block))
    middle = centres(acceptance, common, spread.spread_position, spread.spread_request)
    logit = np.array(middle) + common * rng.standard_normal((SAMPLES, 1))
    logit = logit + spread.spread_position * rng.standard_normal(logit.shape)
    alive = np.logical_and.accumulate(rng.random(logit.shape) < 1 / (1 + np.exp(-logit)), axis=1)
    return logit, alive.sum(axis=1)


def survivals(logit: np.ndarray, temperature: float, bias: float) -> np.ndarray:
    """Reported survivals [SAMPLES, gamma]."""
    return np.cumprod(1 / (1 + np.exp(-(logit / temperature + bias))), axis=1)


def gap(figure: dict[int, np.ndarray], said: np.ndarray, depth: np.ndarray) -> float:
    """RMS difference to the figure's observed rates, weighted by how often a survival is reported."""
    found, weights = [], []
    for position, points in figure.items():
        bins = np.minimum((said[:, position - 1] * BINS).astype(int), BINS - 1)
        count = np.bincount(bins, minlength=BINS)
        observed = np.bincount(bins, depth >= position, BINS) / np.maximum(count, 1)
        at = np.minimum((points[:, 0] * BINS).astype(int), BINS - 1)
        found.append(observed[at] - points[:, 1])
        weights.append(count[at])
    return float(np.sqrt(np.average(np.concatenate(found) ** 2, weights=np.concatenate(weights))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("figure")
    rows: dict[str, dict[int, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
    for row in csv.DictReader(open(parser.parse_args().figure)):
        rows[row["calibration"]][int(row["position"])].append((float(row["predicted"]), float(row["observed"])))
    logit, depth = drawn()
    for stage, positions in rows.items():
        figure = {position: np.array(points) for position, points in positions.items()}
        grid = product(np.arange(0.6, 1.61, 0.05), np.arange(-0.4, 1.01, 0.05))
        temperature, bias = min(grid, key=lambda each: gap(figure, survivals(logit, *each), depth))
        said = survivals(logit, temperature, bias)
        errors = [expected_calibration_error(said[:, j], (depth > j).astype(float)) for j in range(said.shape[1])]
        print(
            f"{stage} STS: temperature {temperature:.2f}, bias {bias:+.2f}: RMS gap {gap(figure, said, depth):.3f}, "
            f"ECE by position {', '.join(f'{each:.1%}' for each in errors)}, mean {np.mean(errors):.1%}"
        )


if __name__ == "__main__":
    main()
