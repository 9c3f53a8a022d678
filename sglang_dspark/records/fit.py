"""Step costs from records: what a step costs by requests, executed tokens and context, and a prefill by its tokens.

The model is T = draft(R) + verify(B) + slope * context with both curves non-decreasing, fitted by least squares on mean
step times (throughput follows from means); verify is read at the executed graph tier, or at B itself without graphs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from sglang_dspark.cost import TERMS, Assumption, StepCost
from sglang_dspark.cost.curves import Curve
from sglang_dspark.errors import InputError
from sglang_dspark.policies import make_policy
from sglang_dspark.records import StepRecord

Floats = NDArray[np.float64]

MIN_STEPS = 200
"""Fewer timed steps than that inform no cost model."""

_OUTLIER = 20.0  # a step beyond so many medians of its batch size is a hiccup of the machine, and is left out
_KNOTS = 8
_STAIR_STEPS = 20
"""Fewer steps of a graph tier than that are read off its neighbours."""
_UNTOLD = {
    "host_s": "inside the measured step times",
    "copy_s": "inside the measured step times, where the recorded policy waited for its copy",
    "prefill_pair_s": "inside the time per prompt token",
    "draft_context_token_s": "inside context_token_s",
    "draft_head_s": "inside the measured step times",
    "width_context_s": "inside the measured step times",
    "kv_tokens": "KV capacity is not part of step times",
    "draft_kv_share": "KV capacity is not part of step times",
}


@dataclass
class StepTimes:
    """Timed decode steps, as columns that grow. requests, tokens (executed), context, adaptive (whether the policy
    needs survivals): regressors; seconds: [n].

    prefill_tokens, prefill_s: [p] prefills that ran until a decode step. levels: [n] steps of different ones stay apart
    in the fit even where batch and tokens are equal. stairs: whether every size is one that was asked for, on a tier.
    """

    requests: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    context: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    adaptive: list[bool] = field(default_factory=list)
    prefill_tokens: list[int] = field(default_factory=list)
    prefill_s: list[float] = field(default_factory=list)
    tiers: NDArray[np.int64] | None = None
    levels: list[int] = field(default_factory=list)
    stairs: bool = False

    def add(self, step: StepRecord) -> None:
        """Take in one step."""
        if step.tiers is not None:
            self.tiers = step.tiers.astype(np.int64)
        if step.prefill_tokens is not None and step.prefill_ago_s is not None and len(step.prefill_tokens):
            self.prefill_tokens.append(int(step.prefill_tokens[-1]))
            self.prefill_s.append(float(step.prefill_ago_s[-1]))
        if step.step_s is None or step.num_requests == 0:
            return
        tokens, adaptive = step.graph_tokens or step.num_tokens, _is_adaptive(step.policy)
        # Ranks of a DP-attention group take the time of the largest of them; its tier is in graph_tokens.
        requests = step.num_requests if step.asked_requests is None else int(step.asked_requests.max())
        self.note(requests, tokens, step.context_tokens, step.step_s, adaptive=adaptive)

    def note(
        self, requests: int, tokens: int, context: float, seconds: float, *, adaptive: bool = False, level: int = 0
    ) -> None:
        """One timed step."""
        self.requests.append(requests)
        self.tokens.append(tokens)
        self.context.append(context)
        self.seconds.append(seconds)
        self.adaptive.append(adaptive)
        self.levels.append(level)


@dataclass(frozen=True)
class FittedCost:
    """A fitted model. steps: timed steps used; left_out: hiccups; error: mean |fitted - mean| over cells, relative;
    worst: the largest.

    prefills: prefill steps used.
    """

    cost: StepCost
    steps: int
    left_out: int
    error: float
    worst: float
    prefills: int

    def as_json(self) -> dict[str, object]:
        """Plain values for reports."""
        return {
            "steps": self.steps,
            "left_out": self.left_out,
            "error": self.error,
            "prefills": self.prefills,
            "assumptions": [assumption.as_json() for assumption in self.cost.assumptions],
        }


def fit_step_cost(steps: Iterable[StepRecord], name: str = "fitted from records") -> FittedCost:
    """The step-cost model of recorded steps.

    Errors: InputError if fewer than `MIN_STEPS` steps carry a measured time or all have the same batch and tokens.
    """
    times = StepTimes()
    for step in steps:
        times.add(step)
    return fit_times(times, name)


def fit_times(times: StepTimes, name: str = "fitted from records") -> FittedCost:
    """See `fit_step_cost`."""
    if len(times.seconds) < MIN_STEPS:
        raise InputError(f"{len(times.seconds)} timed decode steps cannot inform a cost model, expected {MIN_STEPS}")
    requests, tokens = np.array(times.requests, dtype=np.float64), np.array(times.tokens, dtype=np.float64)
    context, seconds = np.array(times.context), np.array(times.seconds)
    kept = _plausible(requests, seconds)
    apart = np.array([times.adaptive, times.levels], dtype=np.float64)[:, kept]
    cells = _cells(requests[kept], tokens[kept], apart, context[kept], seconds[kept])
    if len(np.unique(cells.tokens)) < 2:
        raise InputError(
            f"all timed steps verify {int(cells.tokens[0])} tokens: a cost model needs several, expected other loads "
            "or a policy that varies the verify length"
        )
    stairs = times.stairs or (times.tiers is not None and bool(np.isin(cells.tokens, times.tiers).all()))
    draft, verify, slope, adaptive = _solve(cells, stairs)
    base, per_token, prefills = _prefill(times)
    terms = {
        "host_s": 0.0,
        "copy_s": 0.0,
        "prefill_base_s": base,
        "prefill_token_s": per_token,
        "prefill_pair_s": 0.0,
        "context_token_s": slope,
        "draft_context_token_s": 0.0,
        "draft_head_s": 0.0,
        "width_context_s": 0.0,
        "adaptive_s": adaptive or 0.0,
        "kv_tokens": 1_000_000.0,
        "draft_kv_share": 0.0,
    }
    assert set(terms) == set(TERMS)
    cost = StepCost(
        name,
        "additive",
        draft,
        verify,
        captured=times.tiers,
        splits_draft=False,
        terms=terms,
        assumptions=_assumed(cells, terms, prefills, told=adaptive is not None),
        meta={"how": "fitted from step records", "steps": int(kept.sum())},
    )
    fitted = draft.at(cells.requests) + verify.at(cells.tokens) + slope * cells.context
    fitted = fitted + terms["adaptive_s"] * cells.adaptive
    off = np.abs(fitted - cells.seconds) / cells.seconds
    error, worst = float(np.average(off, weights=cells.count)), float(off.max())
    return FittedCost(cost, int(kept.sum()), int((~kept).sum()), error, worst, prefills)


def _assumed(cells: _Cells, terms: dict[str, float], prefills: int, *, told: bool) -> tuple[Assumption, ...]:
    """What step times alone do not tell. told: whether they tell what adaptivity costs."""
    why = dict(_UNTOLD)
    if not told:
        why["adaptive_s"] = "the records hold no steps of both kinds of policies at the same sizes"
    if prefills == 0:
        why |= dict.fromkeys(("prefill_base_s", "prefill_token_s"), "as the smallest step: no prefill is recorded")
    stated = [Assumption(key, terms[key], TERMS[key].unit, source) for key, source in why.items()]
    low, high = (f"{int(part(cells.requests))} requests, {int(part(cells.tokens))} tokens" for part in (np.min, np.max))
    lines = "beyond what was measured the curves go on as straight lines"
    beyond = Assumption("beyond_probes", None, "", f"measured from {low} to {high} a step", lines)
    return (*stated, beyond)


@dataclass(frozen=True)
class _Cells:
    """Means over steps of the same batch, tokens and kind of policy, [n] each; adaptive: 0 or 1."""

    requests: Floats
    tokens: Floats
    adaptive: Floats
    context: Floats
    seconds: Floats
    count: Floats


def _plausible(requests: Floats, seconds: Floats) -> NDArray[np.bool_]:
    kept = np.ones(len(seconds), dtype=bool)
    for value in np.unique(requests):
        inside = requests == value
        kept[inside] = seconds[inside] < _OUTLIER * np.median(seconds[inside])
    return kept & (seconds > 0)


def _cells(requests: Floats, tokens: Floats, apart: Floats, context: Floats, seconds: Floats) -> _Cells:
    """apart: [2, n] kind of policy and level."""
    keys, index = np.unique(np.stack([requests, tokens, *apart]), axis=1, return_inverse=True)
    index = index.ravel()
    count = np.bincount(index).astype(np.float64)
    means = [np.bincount(index, weights=values) / count for values in (context, seconds)]
    return _Cells(keys[0], keys[1], keys[2], means[0], means[1], count)


@lru_cache(maxsize=64)
def _is_adaptive(policy: str) -> bool:
    """Whether a recorded policy needs survivals; one that this version does not know is taken to."""
    try:
        return bool(make_policy(policy).adaptive) if policy else False
    except InputError:
        return True


def _adaptive_is_told(cells: _Cells) -> bool:
    """Whether steps of both kinds are there, in numbers, at common batch sizes and within the same range of tokens."""
    kinds = [cells.adaptive == kind for kind in (0.0, 1.0)]
    common = np.isin(cells.requests, np.intersect1d(*(cells.requests[kind] for kind in kinds)))
    if any(cells.count[kind & common].sum() < MIN_STEPS for kind in kinds):
        return False
    spans = [(cells.tokens[kind & common].min(), cells.tokens[kind & common].max()) for kind in kinds]
    return bool(max(low for low, _ in spans) <= min(high for _, high in spans))


def _knots(values: Floats, weight: Floats, stairs: bool = False) -> Floats:
    """Integer probes where the data are, ends included: up to `_KNOTS`, or on stairs one for every size that has data.

    Between two stairs a line would price neither.
    """
    sizes, index = np.unique(values, return_inverse=True)
    if stairs:
        met = np.bincount(index.ravel(), weights=weight) >= min(_STAIR_STEPS, weight.max())
        met[[0, -1]] = True
        return sizes[met]
    order = np.argsort(values)
    share = np.cumsum(weight[order]) / weight.sum()
    inner = np.interp(np.linspace(0, 1, _KNOTS), share, values[order])
    return np.unique(np.round(np.concatenate([[values.min()], inner, [values.max()]])))


def _solve(cells: _Cells, stairs: bool) -> tuple[Curve, Curve, float, float | None]:
    """Draft curve over requests, verify curve over tokens, the context slope, and what adaptivity costs (None: untold).

    All non-negative, the curves non-decreasing.
    """
    by_requests = _knots(cells.requests, cells.count, stairs)
    by_tokens = _knots(cells.tokens, cells.count, stairs)
    columns = [np.ones((len(cells.seconds), 1)), _ramps(cells.requests, by_requests), _ramps(cells.tokens, by_tokens)]
    scale = max(float(cells.context.max()), 1.0)
    columns.append((cells.context / scale)[:, None])
    told = _adaptive_is_told(cells)
    if told:
        columns.append(cells.adaptive[:, None])
    design = np.concatenate(columns, axis=1)
    weight = np.sqrt(cells.count)
    solution = _non_negative(design * weight[:, None], cells.seconds * weight)
    grows, more = len(by_requests) - 1, len(by_tokens) - 1
    draft_steps, verify_steps = solution[1 : 1 + grows], solution[1 + grows : 1 + grows + more]
    draft = np.concatenate([[0.0], np.cumsum(draft_steps)])
    verify = solution[0] + np.concatenate([[0.0], np.cumsum(verify_steps)])
    slope, adaptive = float(solution[grows + more + 1] / scale), float(solution[-1]) if told else None
    return _extended(by_requests, draft), _extended(by_tokens, np.maximum(verify, 1e-9)), slope, adaptive


def _extended(knots: Floats, seconds: Floats) -> Curve:
    """The curve, going on with its overall slope for a good while beyond the last knot."""
    if len(knots) == 1:
        return Curve(knots, seconds)
    slope = (seconds[-1] - seconds[0]) / (knots[-1] - knots[0])
    far = 8.0 * knots[-1]
    longer = np.append(seconds, seconds[-1] + slope * (far - knots[-1]))
    return Curve(np.append(knots, far), longer, measured_to=int(knots[-1]))


def _ramps(values: Floats, knots: Floats) -> Floats:
    """[n, knots - 1]: how far each value has come through each stretch between knots, 0..1."""
    return np.clip((values[:, None] - knots[:-1]) / np.diff(knots), 0, 1)


def _non_negative(design: Floats, target: Floats) -> Floats:
    """argmin |design x - target| over x >= 0."""
    from scipy.optimize import nnls  # takes a third of a second to import

    solution, _ = nnls(design, target)
    return np.asarray(solution)


def _prefill(times: StepTimes) -> tuple[float, float, int]:
    """Base and per-token seconds of a prefill, and how many were used."""
    tokens, seconds = np.array(times.prefill_tokens, dtype=np.float64), np.array(times.prefill_s)
    if not len(seconds):
        return float(np.min(times.seconds)), 1e-7, 0
    kept = _plausible(np.zeros(len(seconds)), seconds)
    tokens, seconds = tokens[kept], seconds[kept]
    scale = max(tokens.max(), 1.0)
    base, slope = _non_negative(np.stack([np.ones(len(tokens)), tokens / scale], axis=1), seconds)
    return float(base), float(slope / scale), len(tokens)
