"""Budget rules: K from past information, then the first K of the live admission order."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from sglang_dspark.errors import InputError
from sglang_dspark.policies.arithmetic import SCALE, Ints
from sglang_dspark.policies.classes import BudgetRule, best_budget
from sglang_dspark.policies.parameters import parameter
from sglang_dspark.policies.state import Outcome, Past

SGLANG_LEAST = 17  # SGLang leaves out survivals below 1e-6; 17 units of 2^-24 is the first that it keeps
PRIOR_WEIGHT = 16  # an outcome moves the running prior by 1/16


@dataclass(frozen=True)
class Argmax(BudgetRule):
    """K maximising tau / T on survivals published `lag` decode steps ago (paper 5.2, SGLang, vLLM).

    pricing=tier prices the padded graph that is executed; pricing=floor is SGLang's own look-up of its table.
    A request without lagged survivals counts as survival 1 at every position, as in SGLang (cold=one), or as the
    running mean of what was published (cold=prior).
    """

    name: ClassVar[str] = "argmax"
    lag: int = parameter(2, 1, 8, "decode publishes between a survival and its use", shown=True)
    pricing: str = parameter("tier", ("tier", "floor"), doc="what a token count is priced as")
    cold: str = parameter("one", ("one", "prior"), doc="what a request without lagged survivals counts as")

    @property
    def learns(self) -> bool:  # type: ignore[override]
        return self.cold == "prior"

    @property
    def max_lag(self) -> int:
        return self.lag

    @property
    def fills(self) -> bool:
        return self.pricing == "tier"

    def start(self, gamma: int) -> Ints:
        """Mean survival by position over published blocks, [gamma] units."""
        return np.full(gamma, SCALE, dtype=np.int64)

    def learn(self, carry: Ints, outcome: Outcome) -> Ints:
        if not self.learns or len(outcome.survival) == 0:
            return carry
        mean = outcome.survival.sum(axis=0) // len(outcome.survival)
        return carry + (mean - carry) // PRIOR_WEIGHT

    def budget(self, past: Past) -> int:
        units, published = past.survival(self.lag)
        if self.cold == "prior" and not published.all():
            units = np.where(published[:, None], units, past.carry)
        bounds = self.bounds(past.gamma)
        if self.pricing == "floor":
            return best_budget(past, units, past.prices.floor_inverse, *bounds, SGLANG_LEAST)
        return best_budget(past, units, past.prices.inverse, *bounds)


@dataclass(frozen=True)
class Schedule(BudgetRule):
    """The same k for every request, by batch size: k[i] up to upto[i] requests, the last k beyond.

    The rule of vLLM's `num_speculative_tokens_per_batch_size` and TensorRT-LLM's `draft_len_schedule`, except that the
    R * k tokens are the likeliest of the batch instead of k a request.
    """

    name: ClassVar[str] = "schedule"
    upto: tuple[int, ...] = parameter((8, 32, 128), 1, 65536, "batch sizes, increasing")
    k: tuple[int, ...] = parameter((7, 5, 3, 1), 0, 64, "draft tokens a request; one more than batch sizes")

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.k) != len(self.upto) + 1 or list(self.upto) != sorted(set(self.upto)):
            raise InputError(
                f"policy 'schedule': upto={'/'.join(map(str, self.upto))} with k={'/'.join(map(str, self.k))}, "
                "expected increasing batch sizes and one k more than batch sizes"
            )

    def positions(self) -> dict[str, int | None]:
        return {**super().positions(), "k": max(self.k)}

    def budget(self, past: Past) -> int:
        return past.num_requests * self.k[bisect_left(self.upto, past.num_requests)]


@dataclass(frozen=True)
class Goodput(BudgetRule):
    """The common k that maximises expected tokens a second at the running acceptance rate (SmartSpec, TurboSpec).

    One acceptance rate `a` for all positions and requests, from the outcomes of about the last `window` steps: k draft
    tokens yield (1 - a^(k+1)) / (1 - a) tokens.
    """

    name: ClassVar[str] = "goodput"
    learns: ClassVar[bool] = True
    window: int = parameter(64, 1, 65536, "steps over which the acceptance rate is averaged")
    prior: float = parameter(0.8, 0.0, 0.999, "acceptance rate before the first outcome")

    def start(self, gamma: int) -> tuple[float, float]:
        """Weighted (accepted, tried) draft tokens; the prior weighs as much as ten tried ones."""
        return 10.0 * self.prior, 10.0

    def learn(self, carry: tuple[float, float], outcome: Outcome) -> tuple[float, float]:
        accepted, tried = carry
        keep = 1.0 - 1.0 / self.window
        tried_now = np.minimum(outcome.accepted + 1, outcome.lengths).sum()
        return accepted * keep + float(outcome.accepted.sum()), tried * keep + float(tried_now)

    def budget(self, past: Past) -> int:
        accepted, tried = past.carry
        rate = min(accepted / tried, 0.999) if tried > 0 else self.prior
        powers = np.full(past.gamma + 1, rate)
        powers[0] = 1.0
        tokens = np.add.accumulate(np.multiply.accumulate(powers))
        theta = tokens * past.prices.inverse[:: past.num_requests] if past.num_requests else tokens
        return past.num_requests * int(theta.argmax())


@dataclass(frozen=True)
class Tetris(BudgetRule):
    """A fixed number of verified tokens a step, given to the likeliest draft tokens (TETRIS, arXiv 2502.15197)."""

    name: ClassVar[str] = "tetris"
    capacity: int = parameter(256, 1, 1048576, "verified tokens a step, anchors included")

    def budget(self, past: Past) -> int:
        return self.capacity - past.num_requests
