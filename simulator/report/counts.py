"""What one run verified, request by request: by domain and position, by batch size, and how far confidences held.

Counted while a run is watched (`run_once(on_decode=...)`): runs that make no report count nothing of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sglang_dspark.calibration.metrics import NUM_BINS, bin_sums
from sglang_dspark.policies import SCALE, Policy
from simulator.engine.recorder import DecodeView
from simulator.engine.run import Setting
from simulator.results.metrics import Figures
from simulator.results.run import run_once

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_KEPT_ROWS = 1 << 16  # rows that are counted at once


@dataclass(frozen=True)
class Counts:
    """Of one run of one policy, D domains.

    blocks: [D] drafted blocks. verified, accepted: [D, gamma] draft tokens verified, and those of them that a client
    got; the rest of the verified ones were wasted (rejected, behind a rejected one, or beyond the request's end).
    reliability: [D, 3, NUM_BINS] sums of weight, reported and observed survival over all drafted tokens. requests,
    tokens: [steps] requests in the batch, and tokens verified for it, anchors included. figures: of the run.
    """

    domains: tuple[str, ...]
    blocks: Ints
    verified: Ints
    accepted: Ints
    reliability: Floats
    requests: Ints
    tokens: Ints
    figures: Figures


class Counter:
    """Collects `DecodeView`s of one run. domain: [N] index into `names` of every request."""

    def __init__(self, domain: Ints, names: tuple[str, ...], gamma: int) -> None:
        self._domain, self._names, self._gamma = domain, names, gamma
        self._blocks = np.zeros(len(names), dtype=np.int64)
        self._verified, self._accepted = np.zeros((2, len(names), gamma), dtype=np.int64)
        self._reliability = np.zeros((len(names), 3, NUM_BINS))
        self._requests: list[int] = []
        self._tokens: list[int] = []
        self._kept: list[DecodeView] = []
        self._rows = 0

    def see(self, view: DecodeView) -> None:
        """A decode step that ended."""
        size = len(view.request)
        self._requests.append(size)
        self._tokens.append(size + int(view.lengths.sum()))
        self._kept.append(view)
        self._rows += size
        if self._rows >= _KEPT_ROWS:
            self._count()

    def counts(self, figures: Figures) -> Counts:
        """What was seen so far."""
        self._count()
        steps = np.array(self._requests, dtype=np.int64), np.array(self._tokens, dtype=np.int64)
        found = self._blocks, self._verified, self._accepted, self._reliability
        return Counts(self._names, *found, *steps, figures)

    def _count(self) -> None:
        if not self._kept or not self._gamma:
            self._kept, self._rows = [], 0
            return
        joined = {
            name: np.concatenate([getattr(view, name) for view in self._kept])
            for name in ("request", "wanted", "lengths", "accepted", "units", "depth")
        }
        domain = self._domain[joined["request"]]
        position = np.arange(self._gamma)
        delivered = np.minimum(joined["accepted"], joined["wanted"])
        survived = (joined["depth"][:, None] > position).astype(np.float64)
        said = joined["units"] / SCALE
        for number in range(len(self._names)):
            rows = domain == number
            self._blocks[number] += rows.sum()
            self._verified[number] += (joined["lengths"][rows, None] > position).sum(axis=0)
            self._accepted[number] += (delivered[rows, None] > position).sum(axis=0)
            predicted = said[rows].ravel()
            self._reliability[number] += bin_sums(predicted, survived[rows].ravel(), np.ones(predicted.size))
        self._kept, self._rows = [], 0


def counted_run(setting: Setting, policy: Policy, replication: int = 0) -> Counts:
    """One run of a policy, watched; its figures are those of the same run unwatched. Errors: InputError."""
    seed = setting.seed + (replication << 32)
    domain = setting.domains(setting.part(replication), seed)
    counter = Counter(domain, setting.drafter.domains, setting.drafter.gamma)
    figures, _ = run_once(setting, policy, replication, on_decode=counter.see)
    return counter.counts(figures)
