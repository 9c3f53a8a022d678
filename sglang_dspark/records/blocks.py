"""Uncensored blocks of records: what the full block would have accepted, without any selection by the outcome.

Cap-accept and static steps show every depth, and so do steps of `fixed:k=gamma`. Of other compact steps the exploration
steps do (a coin drawn before the step verifies all; weight 1 / its probability); without exploration, those whose
policy verified every block in full. Beside trimmed steps such a choice follows the confidences: good enough to
calibrate them, but the blocks are the better ones, so that a simulation must leave them out (`chosen=False`).

Asked to complete, every step is used, and what a trimmed block hides is drawn from its confidences: position j beyond
the verified ones is accepted with chance c_j. That is as good as the confidences are calibrated, and always stated.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from sglang_dspark.errors import InputError
from sglang_dspark.policies import Fixed, make_policy
from sglang_dspark.records.reader import RecordSet
from sglang_dspark.records.schema import Header, StepRecord


@dataclass(frozen=True)
class Blocks:
    """N uncensored blocks.

    gamma: positions of a block that are looked at. confidence: [N, gamma] float32 as the engine had them (None when
    none were recorded). depth: [N] int64 accepted draft tokens of the full block. request: [N] int64 index into `rids`.
    anchor: [N] int64 output position of the anchor, -1 if unknown. temperature: [N] float32 sampling temperature, NaN
    if unknown. weight: [N] float64.
    temperatures: STS temperatures that are in the confidences already ([gamma], ones if none).
    steps: of the records; censored: those that show no full block; by_policy: used steps that a policy, not a coin,
    verified in full. seen: blocks before thinning to the limit. completed: kept blocks whose tail was drawn.
    """

    gamma: int
    confidence: np.ndarray | None
    depth: np.ndarray
    request: np.ndarray
    rids: list[str]
    anchor: np.ndarray
    temperature: np.ndarray
    weight: np.ndarray
    temperatures: np.ndarray
    steps: int
    censored: int
    by_policy: int
    seen: int
    completed: int = 0

    def __len__(self) -> int:
        return len(self.depth)


def weight_of(step: StepRecord, gamma: int) -> float:
    """1 / the chance that this step is used, 0 if it is not: see the module's text."""
    if step.mode != "compact" or verifies_all(step.policy, gamma):
        return 1.0 if step.uncensored(gamma) else 0.0
    if step.explore_probability > 0:
        return 1.0 / step.explore_probability if step.explore and step.uncensored(gamma) else 0.0
    return 1.0 if step.uncensored(gamma) else 0.0


@lru_cache(maxsize=256)
def verifies_all(policy: str, gamma: int) -> bool:
    """Whether a policy verifies every block in full, whatever it is shown."""
    try:
        rule = make_policy(policy)
    except InputError:
        return False
    return isinstance(rule, Fixed) and rule.k >= gamma


def uncensored_blocks(
    records: RecordSet,
    limit: int = 1_000_000,
    seed: int = 0,
    *,
    complete: bool = False,
    window: int | None = None,
    chosen: bool = True,
) -> Blocks:
    """Collect the uncensored blocks of records, thinned at random to at most about `limit`.

    complete: use every step and draw what trimmed blocks hide (see the module's text). window: look at the first so
    many positions of every block (default: all), so that steps which verified those show a full block. chosen: use the
    full blocks that a policy chose beside trimmed ones (see the module's text).

    Errors: InputError for records of block verification (survival means something else there), of several gammas or
    STS vectors, for a window outside 1..gamma, and for records without any uncensored block.
    """
    collector = _Collector(limit, np.random.default_rng(seed), complete, window, chosen)
    for header, step in records.steps():
        collector.add(header, step)
    return collector.finish(records)


class _Collector:
    def __init__(self, limit: int, rng: np.random.Generator, complete: bool, window: int | None, chosen: bool) -> None:
        self.limit, self.rng, self.complete, self.window, self.chosen = limit, rng, complete, window, chosen
        self.gamma = 0
        self.keep = 1.0
        self.kept = self.seen = self.steps = self.censored = self.by_policy = self.seen_chosen = 0
        self.header: Header | None = None
        self.parts: list[tuple[np.ndarray | None, ...]] = []
        self.numbers: dict[str, int] = {}

    def add(self, header: Header, step: StepRecord) -> None:
        self._check(header)
        self.steps += 1
        weight = weight_of(step, self.gamma)
        self.censored += weight == 0
        if self.complete and step.confidence is not None:
            weight = 1.0
        if weight == 0:
            return
        chosen_by_policy = step.mode == "compact" and not step.explore and not verifies_all(step.policy, self.gamma)
        self.by_policy += chosen_by_policy and step.uncensored(self.gamma)
        alive = np.ones(step.num_requests, dtype=bool) if step.ended is None else ~step.ended
        self.seen += int(alive.sum())
        self.seen_chosen += int(alive.sum()) if chosen_by_policy else 0
        chosen = np.flatnonzero(alive & (self.rng.random(step.num_requests) < self.keep))
        if chosen.size:
            columns = (*self._columns(step, weight), np.full(step.num_requests, chosen_by_policy))
            self.parts.append(tuple(None if column is None else column[chosen] for column in columns))
            self.kept += chosen.size
            if self.kept > self.limit:
                self._thin()

    def _columns(self, step: StepRecord, weight: float) -> Iterator[np.ndarray | None]:
        rows = step.num_requests
        names = step.rids or [f"slot{slot}" for slot in step.slots.tolist()]
        yield None if step.confidence is None else step.confidence[:, : self.gamma]
        yield self._depth(step, self.gamma)
        yield np.array([self.numbers.setdefault(name, len(self.numbers)) for name in names], dtype=np.int64)
        yield np.full(rows, -1) if step.anchor is None else step.anchor.astype(np.int64)
        unknown = np.full(rows, np.nan, dtype=np.float32)
        yield unknown if step.temperature is None else step.temperature.astype(np.float32)
        yield np.full(rows, weight)
        yield (step.uncapped_depth(self.gamma) < 0).astype(np.float64)

    def _depth(self, step: StepRecord, gamma: int) -> np.ndarray:
        """[R] depth of the full block; drawn beyond the verified tokens where those were all accepted."""
        depth = np.minimum(step.uncapped_depth(gamma), gamma)
        hidden = np.flatnonzero(depth < 0)
        if hidden.size:
            assert step.confidence is not None
            fails = self.rng.random((hidden.size, gamma)) >= step.confidence[hidden, :gamma]
            fails &= np.arange(gamma) >= step.lengths[hidden, None]
            depth[hidden] = np.where(fails.any(axis=1), fails.argmax(axis=1), gamma)
        return depth

    def _thin(self) -> None:
        """Keep each block collected so far with one half's chance, and later ones with half the chance as well."""
        thinned, self.kept = [], 0
        for part in self.parts:
            chosen = np.flatnonzero(self.rng.random(len(part[1])) < 0.5)  # type: ignore[arg-type]
            if chosen.size:
                thinned.append(tuple(None if column is None else column[chosen] for column in part))
                self.kept += chosen.size
        self.parts, self.keep = thinned, self.keep / 2

    def _check(self, header: Header) -> None:
        if header is self.header:
            return
        if header.block_verification:
            raise InputError(f"run {header.run} used block verification: its depths are no survivals, it is refused")
        first = self.header
        if first is not None and (first.gamma, first.temperatures) != (header.gamma, header.temperatures):
            raise InputError(
                f"the records mix gamma {first.gamma} and {header.gamma} or different STS vectors, expected one of each"
            )
        if self.window is not None and not 1 <= self.window <= header.gamma:
            raise InputError(f"a window of {self.window} positions is refused, the records have 1..{header.gamma}")
        self.header, self.gamma = header, self.window or header.gamma

    def finish(self, records: RecordSet) -> Blocks:
        if not (self.chosen or self.complete) and self.censored:
            self.parts = [part for part in self.parts if not part[-1][0]]  # type: ignore[index]
            self.censored, self.by_policy = self.censored + self.by_policy, 0
            self.seen -= self.seen_chosen
        if self.steps == 0:
            damage = "".join(f"; {problem}" for problem in records.summary.problems[:1])
            raise InputError(f"the records hold no decode step{damage}")
        if self.header is None or not self.parts:
            whole = self.gamma if self.header is None else self.header.gamma
            raise InputError(
                f"none of {self.steps} decode steps shows all {self.gamma} positions of its blocks, the policy trimmed "
                "them: trimmed compact steps are censored; use them with `simulate --complete`, which draws what is "
                f"hidden from the confidences, or record on after `dspark policy fixed:k={whole}` (or "
                "with --speculative-dspark-explore)"
            )
        gamma, columns = self.gamma, list(zip(*self.parts, strict=True))
        used = np.array(self.header.temperatures or [1.0] * self.header.gamma, dtype=np.float64)[:gamma]
        confidence = None if any(part is None for part in columns[0]) else np.concatenate(columns[0])
        depth, request, anchor, temperature, weight, drawn, _ = (np.concatenate(column) for column in columns[1:])
        return Blocks(
            gamma,
            confidence,
            depth,
            request,
            list(self.numbers),
            anchor,
            temperature,
            weight,
            used,
            self.steps,
            self.censored,
            self.by_policy,
            self.seen,
            int(drawn.sum()),
        )
