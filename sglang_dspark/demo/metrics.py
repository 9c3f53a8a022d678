"""What a pair is good for, by the reference loop: accept length, acceptance, and how informative confidence is."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from sglang_dspark.demo.pair import Pair
from sglang_dspark.demo.reference import Round, generate

_BINS = 10


@dataclass(frozen=True)
class Sample:
    """How much to measure: `prompts` of each domain, continued by at most `new_tokens` tokens at each temperature."""

    prompts: int
    new_tokens: int


def auc(score: np.ndarray, label: np.ndarray) -> float | None:
    """Probability that a positive scores above a negative (ties count half); None where one class is absent."""
    positives, negatives = int(label.sum()), int((~label).sum())
    if not positives or not negatives:
        return None
    _, inverse, counts = np.unique(score, return_inverse=True, return_counts=True)
    rank = (np.cumsum(counts) - (counts - 1) / 2)[inverse]  # mean rank of tied scores, from 1
    return float((rank[label].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def expected_calibration_error(predicted: np.ndarray, happened: np.ndarray) -> float:
    """Mean |predicted - observed| over ten equal-width bins, weighted by their counts."""
    index = np.minimum((predicted * _BINS).astype(int), _BINS - 1)
    gap = np.bincount(index, predicted - happened, _BINS)
    return float(np.abs(gap).sum() / len(predicted))


def _rounded(values: Sequence[float | None]) -> list[float | None]:
    return [None if value is None else round(float(value), 4) for value in values]


def summarize(rounds: Sequence[Round]) -> dict[str, object]:
    """Statistics of full-block rounds, lists by draft position.

    `acceptance` is conditional on reaching the position, `survival` is not. `survival_auc` tells how well predicted
    survival (the product of confidences) ranks which blocks reach each position's end, `survival_auc_mean` is its mean.
    """
    accepted = np.array([r.accepted for r in rounds])
    confidence = np.array([r.confidence for r in rounds])
    position = np.arange(confidence.shape[1])
    survived, reached = accepted[:, None] > position, accepted[:, None] >= position
    predicted = confidence.cumprod(1)
    aucs = [auc(predicted[:, k], survived[:, k]) for k in position]
    known = [value for value in aucs if value is not None]
    return {
        "rounds": len(rounds),
        "accept_length": round(1 + float(accepted.mean()), 4),
        "acceptance": _rounded(survived.sum(0) / np.maximum(reached.sum(0), 1)),
        "confidence": _rounded((confidence * reached).sum(0) / np.maximum(reached.sum(0), 1)),
        "survival": _rounded(survived.mean(0)),
        "predicted_survival": _rounded(predicted.mean(0)),
        "survival_auc": _rounded(aucs),
        "survival_auc_mean": round(float(np.mean(known)), 4) if known else None,
        "survival_ece": _rounded([expected_calibration_error(predicted[:, k], survived[:, k]) for k in position]),
    }


def run_prompts(
    pair: Pair, prompts: Sequence[str], new_tokens: int, temperature: float, seed: int
) -> Iterator[list[Round]]:
    """Rounds of each prompt in turn; EOS does not end a generation, so that every prompt counts alike."""
    generator = torch.Generator().manual_seed(seed)
    for prompt in prompts:
        ids = pair.tokenizer(prompt)["input_ids"]
        yield generate(pair, ids, new_tokens, temperature, generator).rounds
