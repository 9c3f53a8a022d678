"""A step-cost model on other CUDA graphs than those it was measured with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from sglang_dspark.cost.curves import Curve, Floats
from sglang_dspark.cost.model import StepCost


def captured_as(cost: StepCost, batches: Sequence[int], width: int) -> StepCost:
    """The model of an engine that captured these batch sizes (increasing), with `width` verified tokens a request.

    A verify step executes the first graph of batch * width tokens that holds it, a draft the first batch size. Graphs
    beyond what the profile measured in graphs cost what `beyond_graphs` says, and count as beyond its probes; its eager
    steps price what is really eager.
    """
    sizes = np.asarray(batches, dtype=np.int64)
    tokens = sizes * width
    verify, eager = cost.verify, cost.eager
    measured = verify.span[1]
    if cost.captured is not None and cost.captured[-1] < measured:
        measured = max(int(cost.captured[-1]), verify.span[0])
        eager = eager or verify  # the last probes of this table ran outside its own graphs
    return replace(
        cost,
        draft=_padded(cost.draft, sizes),
        verify=beyond_graphs(verify, measured, tokens),
        eager=eager,
        captured=tokens,
        captured_requests=int(sizes[-1]),
        assumptions=tuple(one for one in cost.assumptions if one.key != "captured_tokens"),
    )


def beyond_graphs(curve: Curve, measured: int, tokens: np.ndarray) -> Curve:
    """The curve up to `measured` tokens, and from there on the straight line of its upper half at `tokens`.

    The line has the least-squares slope of the probes in the upper half of what was measured, but is never falling. The
    curve keeps saying where measurement ends.
    """
    if tokens[-1] <= measured:
        return curve
    inside = curve.probes < measured
    probes, further = curve.probes[inside], tokens[tokens > measured]
    rows = []
    for row, context in zip(np.atleast_2d(curve.seconds)[:, inside], _contexts(curve), strict=True):
        last = float(curve.at(measured, context))
        slope = _upper_slope(np.append(probes, measured), np.append(row, last))
        # A table that is read at the probe below needs one where every graph ends.
        rows.append([*row, last, *(last + slope * (further - measured))])
    return replace(
        curve,
        probes=np.array([*probes, measured, *further], dtype=np.float64),
        seconds=np.array(rows) if curve.seconds.ndim == 2 else np.array(rows[0]),
        measured_to=measured,
    )


def _upper_slope(probes: Floats, seconds: Floats) -> float:
    """Seconds per token through the probes in the upper half of the tokens, 0 where they fall."""
    upper = probes >= probes[-1] / 2
    if np.count_nonzero(upper) < 2:
        upper = np.arange(probes.size) >= probes.size - 2
    if np.count_nonzero(upper) < 2:
        return 0.0
    return max(float(np.polyfit(probes[upper], seconds[upper], 1)[0]), 0.0)


def _padded(draft: Curve, sizes: np.ndarray) -> Curve:
    """Draft seconds by requests, each executed as the first captured batch size that holds them.

    More requests than were captured are drafted without a graph, at what the curve says for as many.
    """
    if draft.probes.size == 1:
        return draft
    low, high = draft.span
    requests = np.arange(1, int(sizes[-1]) + 1)
    executed = sizes[np.searchsorted(sizes, requests)]
    told = executed >= low  # below, the curve clamps and nothing was measured
    requests, executed = requests[told], executed[told]
    outside = draft.probes > sizes[-1]
    points = np.concatenate([requests, draft.probes[outside]]).astype(np.float64)
    rows = [draft.at(executed.astype(np.float64), context) for context in _contexts(draft)]
    tails = np.atleast_2d(draft.seconds)[:, outside]
    seconds = np.concatenate([np.array(rows), tails], axis=1)
    measured = max(int(requests[executed <= high].max(initial=0)), high if outside.any() else 0)
    return replace(
        draft,
        probes=points,
        seconds=seconds if draft.seconds.ndim == 2 else seconds[0],
        measured_to=measured if measured < points[-1] else None,
    )


def _contexts(curve: Curve) -> Sequence[float]:
    return [0.0] if curve.contexts is None else curve.contexts.tolist()
