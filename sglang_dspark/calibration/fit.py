"""Fits STS temperatures on part of the requests and judges them on the others."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sglang_dspark.calibration.metrics import (
    Floats,
    Reliability,
    area_under_curve,
    bin_sums,
    ece_of_sums,
    reliability,
)
from sglang_dspark.calibration.shards import Shards
from sglang_dspark.calibration.sts import fit_temperatures, raw_logits, survival
from sglang_dspark.errors import InputError
from sglang_dspark.records.blocks import Blocks

MIN_BLOCKS = 1000
MIN_REQUESTS = 20
MIN_GROUP = 500
"""Fewer blocks than that in a temperature group are reported, but not judged."""

BADLY = 0.02
"""A group is fitted badly when its mean ECE is that much above what a vector of its own would reach."""

_HELD_OUT = 0.4
_RESAMPLES = 400
_CLUSTERS = 1000


@dataclass(frozen=True)
class Samples:
    """N blocks to calibrate on. logits: [N, gamma] raw. depth, cluster: [N] int64; temperature, weight: [N].

    cluster: what is drawn together, a request. in_use: [gamma] temperatures that the engine applied.
    """

    logits: Floats
    depth: NDArray[np.int64]
    cluster: NDArray[np.int64]
    temperature: Floats
    weight: Floats
    in_use: Floats

    def where(self, chosen: NDArray[np.bool_]) -> Samples:
        """Some of the blocks."""
        return Samples(
            self.logits[chosen],
            self.depth[chosen],
            self.cluster[chosen],
            self.temperature[chosen],
            self.weight[chosen],
            self.in_use,
        )


@dataclass(frozen=True)
class PositionFit:
    """One position on held-out blocks: its temperature, survival ECE before and after, AUC, mean survival."""

    temperature: float
    ece_before: float
    ece_after: float
    auc: float
    predicted: float
    observed: float


@dataclass(frozen=True)
class GroupFit:
    """A sampling temperature's held-out blocks: mean ECE before, after, and with a vector of its own (or NaN)."""

    name: str
    blocks: int
    ece_before: float
    ece_after: float
    ece_own: float

    @property
    def fits_badly(self) -> bool:
        """Whether the one vector serves this group much worse than its own would."""
        return bool(self.ece_after > self.ece_own + BADLY)


@dataclass(frozen=True)
class Calibration:
    """The outcome. temperatures: [gamma] to be written; what is in use already where `improved` is False.

    gain: mean over positions of held-out ECE before minus after, with its 95 % interval `gain_low`..`gain_high`
    (requests resampled). reliability_before, reliability_after: per position, held out.
    """

    temperatures: list[float]
    fitted: list[float]
    improved: bool
    gain: float
    gain_low: float
    gain_high: float
    blocks: int
    held_out: int
    positions: list[PositionFit]
    groups: list[GroupFit]
    reliability_before: list[Reliability]
    reliability_after: list[Reliability]


def samples_of_blocks(blocks: Blocks) -> Samples:
    """From records (InputError without confidences)."""
    if blocks.confidence is None:
        raise InputError("the records hold no confidences (static mode builds no confidence head), expected some")
    in_use = blocks.temperatures
    logits = raw_logits(blocks.confidence, in_use)
    return Samples(logits, blocks.depth, blocks.request, blocks.temperature.astype(np.float64), blocks.weight, in_use)


def samples_of_shards(shards: Shards) -> Samples:
    """From SGLang's shards: they name no requests, so runs of 64 rows are kept together, and no temperatures."""
    count, gamma = shards.logits.shape
    unknown = np.full(count, np.nan)
    return Samples(
        shards.logits.astype(np.float64), shards.depth, np.arange(count) // 64, unknown, np.ones(count), np.ones(gamma)
    )


def calibrate(samples: Samples, seed: int = 0) -> Calibration:
    """Fit on 60 % of the requests, judge on the rest.

    Errors: InputError if there are fewer than `MIN_BLOCKS` blocks or `MIN_REQUESTS` requests.
    """
    held_out = _split(samples, seed)
    train, test = samples.where(~held_out), samples.where(held_out)
    names = np.array(group_names(samples.temperature))
    fitted = fit_temperatures(train.logits, train.depth, train.weight)
    before, after = survival(test.logits, test.in_use), survival(test.logits, fitted)
    low, high = _interval(test, before, after, seed)
    gain = float(np.mean(_eces(test, before) - _eces(test, after)))
    improved = low > 0
    chosen = fitted if improved else samples.in_use
    shown = after if improved else before
    return Calibration(
        temperatures=chosen.tolist(),
        fitted=fitted.tolist(),
        improved=improved,
        gain=gain,
        gain_low=low,
        gain_high=high,
        blocks=len(samples.depth),
        held_out=len(test.depth),
        positions=_positions(test, chosen, before, shown),
        groups=_groups(train, test, chosen, (names[~held_out], names[held_out])),
        reliability_before=_reliabilities(test, before),
        reliability_after=_reliabilities(test, shown),
    )


def _split(samples: Samples, seed: int) -> NDArray[np.bool_]:
    """[N] bool, whether a block is held out; whole requests."""
    names, number = np.unique(samples.cluster, return_inverse=True)
    if len(samples.depth) < MIN_BLOCKS or len(names) < MIN_REQUESTS:
        raise InputError(
            f"{len(samples.depth)} uncensored blocks of {len(names)} requests are too few to fit on, expected at least "
            f"{MIN_BLOCKS} of {MIN_REQUESTS}"
        )
    chosen = np.zeros(len(names), dtype=bool)
    chosen[np.random.default_rng(seed).permutation(len(names))[: round(_HELD_OUT * len(names))]] = True
    return chosen[number]


def _survived(samples: Samples, position: int) -> Floats:
    return (samples.depth > position).astype(np.float64)


def _eces(samples: Samples, predicted: Floats) -> Floats:
    """Survival ECE of every position, [gamma]."""
    columns = range(predicted.shape[1])
    sums = [bin_sums(predicted[:, column], _survived(samples, column), samples.weight) for column in columns]
    return ece_of_sums(np.stack(sums))


def _interval(samples: Samples, before: Floats, after: Floats, seed: int) -> tuple[float, float]:
    """95 % interval of the mean ECE gain, requests resampled with replacement."""
    _, number = np.unique(samples.cluster, return_inverse=True)
    number = number % _CLUSTERS  # beyond that, requests are drawn several at a time
    tables = [_cluster_sums(samples, predicted, number) for predicted in (before, after)]
    rng = np.random.default_rng(seed + 1)
    count = int(number.max()) + 1
    drawn = rng.multinomial(count, np.full(count, 1.0 / count), size=_RESAMPLES).astype(np.float64)
    gains = []
    for weights in drawn:
        eces = [ece_of_sums(np.tensordot(weights, table, axes=1)) for table in tables]
        gains.append(float(np.mean(eces[0] - eces[1])))
    low, high = np.quantile(gains, [0.025, 0.975])
    return float(low), float(high)


def _cluster_sums(samples: Samples, predicted: Floats, number: NDArray[np.int64]) -> Floats:
    """[clusters, gamma, 3, bins] sums that any resampling of clusters adds up."""
    order = np.argsort(number, kind="stable")
    ends = np.searchsorted(number[order], np.arange(int(number.max()) + 2))
    columns = range(predicted.shape[1])
    out = []
    for begin, end in zip(ends[:-1], ends[1:], strict=True):
        rows = order[begin:end]
        part = [
            bin_sums(predicted[rows, c], (samples.depth[rows] > c).astype(np.float64), samples.weight[rows])
            for c in columns
        ]
        out.append(np.stack(part))
    return np.stack(out)


def _positions(test: Samples, temperatures: Floats, before: Floats, after: Floats) -> list[PositionFit]:
    ece_before, ece_after = _eces(test, before), _eces(test, after)
    out = []
    for position in range(before.shape[1]):
        survived = _survived(test, position)
        predicted = after[:, position]
        out.append(
            PositionFit(
                float(temperatures[position]),
                float(ece_before[position]),
                float(ece_after[position]),
                area_under_curve(predicted, survived),
                float(np.average(predicted, weights=test.weight)),
                float(np.average(survived, weights=test.weight)),
            )
        )
    return out


def group_names(temperature: Floats) -> list[str]:
    """A name for each block's sampling temperature: itself where there are few, else a range."""
    known = np.unique(np.round(temperature[np.isfinite(temperature)], 3))
    if known.size <= 8:
        return ["unknown" if np.isnan(value) else f"{value:.3g}" for value in np.round(temperature, 3).tolist()]
    edges, names = [1e-9, 0.5, 1.0, np.inf], ["0", "0-0.5", "0.5-1", "> 1"]
    where = np.searchsorted(edges, temperature)
    return ["unknown" if np.isnan(value) else names[index] for value, index in zip(temperature, where, strict=True)]


def _groups(
    train: Samples, test: Samples, temperatures: Floats, names: tuple[np.ndarray, np.ndarray]
) -> list[GroupFit]:
    train_names, test_names = names
    out = []
    for name in sorted(set(test_names.tolist())):
        inside, own = test.where(test_names == name), train.where(train_names == name)
        enough = min(len(inside.depth), len(own.depth)) >= MIN_GROUP
        best = fit_temperatures(own.logits, own.depth, own.weight) if enough else None
        before, after = survival(inside.logits, inside.in_use), survival(inside.logits, temperatures)
        ece_own = float("nan") if best is None else float(np.mean(_eces(inside, survival(inside.logits, best))))
        count = len(inside.depth)
        out.append(
            GroupFit(name, count, float(np.mean(_eces(inside, before))), float(np.mean(_eces(inside, after))), ece_own)
        )
    return out


def _reliabilities(test: Samples, predicted: Floats) -> list[Reliability]:
    columns = range(predicted.shape[1])
    return [reliability(predicted[:, column], _survived(test, column), test.weight) for column in columns]
