"""The step-cost model: seconds of a decode step from requests, verified tokens and context, and of a prefill chunk."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from sglang_dspark.cost.assumptions import Assumption
from sglang_dspark.cost.curves import Curve, Floats
from sglang_dspark.cost.prices import StepPrices
from sglang_dspark.cost.probed import Probed, probed
from sglang_dspark.cost.terms import TERMS, check_terms
from sglang_dspark.errors import InputError

CONTEXT_STEP = 256
"""Policies price the mean context per request in steps of this many tokens, so that prices can be cached."""


@dataclass(frozen=True)
class StepCost:
    """Seconds of a step. `draft` is by requests, `verify` by verified tokens (B = R + K).

    captured: [G] token counts with a CUDA graph (None: tokens execute unpadded); captured_requests: largest batch with
    a graph. bias_s: constant part. terms: see `TERMS`. splits_draft: whether draft and verify were measured apart.
    diagonal: measured only at B = R (1 + gamma), so that other B are guesses. diagonal_gamma: of such a table, also
    a forced one; None where it cannot be told. assumptions: what the source does not give, printed with every result.
    """

    name: str
    form: str
    draft: Curve
    verify: Curve
    bias_s: float = 0.0
    captured: np.ndarray[Any, np.dtype[np.int64]] | None = None
    captured_requests: int | None = None
    eager: Curve | None = None
    splits_draft: bool = True
    diagonal: bool = False
    diagonal_gamma: int | None = None
    terms: dict[str, float] = field(default_factory=dict)
    assumptions: tuple[Assumption, ...] = ()
    meta: dict[str, Any] = field(default_factory=dict)
    spans: Probed = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Prices are shared by every step with the same batch; the cache belongs to the model.
        object.__setattr__(self, "_prices", lru_cache(maxsize=1024)(self._make_prices))
        spans = probed(
            self.form, self.draft, self.verify, self.eager, self.captured, self.captured_requests, self.diagonal_gamma
        )
        object.__setattr__(self, "spans", spans)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_prices"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.__post_init__()

    @property
    def is_estimate(self) -> bool:
        """Whether nobody has measured these steps (`sglang_dspark.cost.estimate`)."""
        return bool(self.meta.get("estimate"))

    @property
    def last_captured(self) -> float:
        """The largest verified-token count with a graph (inf without padding)."""
        return float("inf") if self.captured is None else float(self.captured[-1])

    @property
    def measured_requests(self) -> tuple[int, int]:
        """(least, most) requests of a measured step; a table by tokens alone holds every batch that its tokens hold."""
        return self.spans.requests

    @property
    def measured_tokens(self) -> tuple[int, int]:
        """(least, most) verified tokens B whose executed size was measured, in graphs or eager."""
        graph, eager = self.spans.tokens, self.spans.eager
        return (min(graph[0], eager[0]), max(graph[1], eager[1]))

    @property
    def measured_contexts(self) -> tuple[int, int] | None:
        """(least, most) mean context tokens per request that every curve was measured at; None: at one or unknown."""
        grids = [c.contexts for c in (self.draft, self.verify, self.eager) if c is not None and c.knows_context]
        ends = [(int(grid[0]), int(grid[-1])) for grid in grids if grid is not None]
        return (max(low for low, _ in ends), min(high for _, high in ends)) if ends else None

    def holds_diagonal(self, verified: int | None, gamma: int) -> bool:
        """Whether the table holds steps in which every request drafts `gamma` tokens and verifies `verified` (None: it
        varies); always true where it was not measured on a diagonal.
        """
        return not self.diagonal or (verified == gamma and self.diagonal_gamma in (None, gamma))

    def off_diagonal(self, what: str, instead: str) -> InputError:
        """The refusal of what `holds_diagonal` denies; `instead`: what to give."""
        gamma = "an unknown gamma" if self.diagonal_gamma is None else f"gamma {self.diagonal_gamma}"
        table = f"profile '{self.name}' was measured only at B = R (1 + gamma) with {gamma}"
        return InputError(f"{table} and cannot price {what}: {instead}")

    def beyond_probes(self, num_requests: int, num_tokens: int) -> bool:
        """Whether the price of a step with `num_tokens` verified tokens (anchors included) is a guess.

        True below the first and above the last probe by requests or by executed tokens, where curves clamp. Cheap.
        """
        last_captured, slots, (fewest, most), (low, high), eager = self.spans
        if num_tokens > last_captured or num_requests > slots:
            low, high = eager
        return num_tokens < low or num_tokens > high or num_requests < fewest or num_requests > most

    def executed_tokens(self, num_tokens: Floats) -> Floats:
        """What is executed for B verified tokens: the graph tier above, or B itself when eager."""
        if self.captured is None:
            return num_tokens
        index = np.searchsorted(self.captured, num_tokens)
        padded = self.captured[np.minimum(index, self.captured.size - 1)]
        return np.where(index < self.captured.size, padded, num_tokens)

    def draft_s(self, num_requests: int, context_tokens: float = 0.0) -> float:
        """Seconds to draft one block for every request."""
        context = context_tokens / max(num_requests, 1)
        return float(self.draft.at(num_requests, context)) + self.terms["draft_context_token_s"] * context_tokens

    def verify_s(
        self, num_requests: int, num_tokens: Floats | int, context_tokens: float = 0.0, *, eager: bool = False
    ) -> Floats:
        """Seconds to verify `num_tokens` (anchors included) as executed; `eager` forces it outside the graphs."""
        tokens = np.asarray(num_tokens, dtype=np.float64)
        context = context_tokens / max(num_requests, 1)
        seconds = self.verify.at(self.executed_tokens(tokens), context)
        if self.eager is not None:
            outside = np.full(tokens.shape, True) if eager else tokens > self.last_captured
            seconds = np.where(outside, self.eager.at(tokens, context), seconds)
        wider = self.terms["width_context_s"] * (tokens - num_requests) * context
        return self.bias_s + seconds + self.terms["context_token_s"] * context_tokens + wider

    def prefill_s(self, new_tokens: int, context_tokens: float = 0.0) -> float:
        """Seconds of a prefill chunk of `new_tokens` whose requests already hold `context_tokens`."""
        terms = self.terms
        pairs = new_tokens * (context_tokens + new_tokens / 2)
        return terms["prefill_base_s"] + terms["prefill_token_s"] * new_tokens + terms["prefill_pair_s"] * pairs

    def prices(self, num_requests: int, gamma: int, context_tokens: float = 0.0) -> StepPrices:
        """Prices of k = 0..R * gamma admitted draft tokens, cached; context in steps of `CONTEXT_STEP` per request."""
        bucket = 0
        if self.knows_context and num_requests:
            bucket = round(context_tokens / num_requests / CONTEXT_STEP)
        return self._prices(num_requests, gamma, bucket)  # type: ignore[attr-defined]

    def decode_s(
        self, num_requests: int, gamma: int, admitted: int, context_tokens: float = 0.0
    ) -> tuple[float, float]:
        """(draft, verify) seconds of a decode step with `admitted` draft tokens, linear between cached contexts."""
        if not self.knows_context:
            prices = self._prices(num_requests, gamma, 0)  # type: ignore[attr-defined]
            return prices.draft_s, prices.step_s(admitted) - prices.draft_s
        bucket, weight = divmod(context_tokens / num_requests / CONTEXT_STEP, 1.0)
        low = self._prices(num_requests, gamma, int(bucket))  # type: ignore[attr-defined]
        high = self._prices(num_requests, gamma, int(bucket) + 1)  # type: ignore[attr-defined]
        draft = (1.0 - weight) * low.draft_s + weight * high.draft_s
        return draft, (1.0 - weight) * low.step_s(admitted) + weight * high.step_s(admitted) - draft

    @cached_property
    def knows_context(self) -> bool:
        """Whether the step time depends on the context at all."""
        slopes = (self.terms[key] for key in ("context_token_s", "draft_context_token_s", "width_context_s"))
        return any(slopes) or self.draft.knows_context or self.verify.knows_context

    def with_terms(self, source: str = "set by the user", /, **terms: float) -> StepCost:
        """The same model with terms overridden, which the assumptions then state with their source."""
        check_terms(terms, "cost term")
        kept = tuple(assumption for assumption in self.assumptions if assumption.key not in terms)
        stated = tuple(Assumption(key, value, TERMS[key].unit, source) for key, value in terms.items())
        return replace(self, terms={**self.terms, **terms}, assumptions=kept + stated)

    def _make_prices(self, num_requests: int, gamma: int, bucket: int) -> StepPrices:
        context_tokens = float(bucket * CONTEXT_STEP * num_requests)
        tokens = num_requests + np.arange(num_requests * gamma + 1, dtype=np.float64)
        draft = self.draft_s(num_requests, context_tokens)
        seconds = draft + self.verify_s(num_requests, tokens, context_tokens)
        inside = tokens <= self.last_captured
        last = int(inside.sum()) - 1
        top = np.where(
            inside, np.minimum(self.executed_tokens(tokens) - num_requests, max(last, 0)), tokens - num_requests
        )
        floor_seconds = draft + self._floor_seconds(tokens, context_tokens)
        return StepPrices(seconds, floor_seconds, top.astype(np.int64), last, draft)

    def _floor_seconds(self, tokens: Floats, context_tokens: float) -> Floats:
        """SGLang's price: the probe below for a 1-D or tiered table, its own interpolation for the additive one."""
        context = context_tokens / max(float(tokens[0]), 1.0)
        curve = self.verify if self.form == "additive" else replace(self.verify, floor=True)
        return self.bias_s + curve.at(tokens, context) + self.terms["context_token_s"] * context_tokens
