"""Fit the spread of confidences to the DSpark paper's Figure 5 (accepted and rejected tokens by confidence threshold).

Run: python benchmarks/fit_confidence_spread.py FIG5.csv [--domain chat]. Prints the two spreads that reproduce the
figure best, and the figure beside the model. The CSV has the columns domain, confidence_threshold,
accepted_tokens_per_step_incl_bonus, rejected_tokens_per_step.
"""

from __future__ import annotations

import argparse
import csv
from collections import defaultdict
from itertools import product

import numpy as np

from simulator.blocks.acceptance import centres
from simulator.blocks.drafters import DRAFTERS

SAMPLES = 40_000


def curve(acceptance: tuple[float, ...], request: float, position: float, thresholds: list[float]) -> np.ndarray:
    """(accepted incl. bonus, rejected) per step at each threshold, [T, 2]."""
    rng = np.random.default_rng(0)
    gamma = len(acceptance)
    ease = request * rng.standard_normal((SAMPLES, 1))
    logit = np.array(centres(acceptance, request, position)) + ease + position * rng.standard_normal((SAMPLES, gamma))
    true = 1 / (1 + np.exp(-logit))
    depth = np.logical_and.accumulate(rng.random((SAMPLES, gamma)) < true, axis=1).sum(axis=1)
    rows = []
    for threshold in thresholds:
        verified = np.logical_and.accumulate(true >= threshold, axis=1).sum(axis=1)
        accepted = np.minimum(verified, depth)
        rows.append((1 + accepted.mean(), (verified - accepted).mean()))
    return np.array(rows)


def scaled(acceptance: tuple[float, ...], length: float) -> tuple[float, ...]:
    """The figure's data set is easier than the average one: shift the logits until the accepted length agrees."""
    logits = np.log(np.array(acceptance) / (1 - np.array(acceptance)))
    low, high = -4.0, 4.0
    for _ in range(60):
        shift = (low + high) / 2
        p = 1 / (1 + np.exp(-(logits + shift)))
        low, high = (shift, high) if 1 + np.cumprod(p).sum() < length else (low, shift)
    return tuple(float(x) for x in p)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("figure")
    parser.add_argument("--domain", default=None)
    args = parser.parse_args()
    figure = defaultdict(list)
    for row in csv.DictReader(open(args.figure)):
        values = (
            row["confidence_threshold"],
            row["accepted_tokens_per_step_incl_bonus"],
            row["rejected_tokens_per_step"],
        )
        figure[row["domain"]].append(tuple(map(float, values)))
    domains = [args.domain] if args.domain else list(figure)
    targets = {name: np.array(figure[name]) for name in domains}
    base = {name: scaled(DRAFTERS["dspark"].acceptance[name], targets[name][0, 1]) for name in domains}
    grid = product(np.arange(0.0, 1.6, 0.2), np.arange(0.4, 3.01, 0.2))

    def error(spread: tuple[float, float]) -> float:
        gaps = [curve(base[n], *spread, list(targets[n][:, 0])) - targets[n][:, 1:] for n in domains]
        return float(np.sqrt(np.mean([np.mean(gap**2) for gap in gaps])))

    best = min(grid, key=error)
    print(f"spread_request={best[0]:.1f} spread_position={best[1]:.1f}: RMS gap {error(best):.3f} tokens per step")
    for name in domains:
        model = curve(base[name], *best, list(targets[name][:, 0]))
        for (threshold, accepted, rejected), (a, r) in zip(targets[name], model, strict=True):
            print(
                f"{name:5s} t={threshold:.1f}  accepted {accepted:.2f} model {a:.2f}"
                f"   rejected {rejected:.2f} model {r:.2f}"
            )


if __name__ == "__main__":
    main()
