"""Step costs out of the throughput of arms that verify a fixed number of tokens, or draft none.

A closed loop of R requests gives accept length * R tokens a step, so its throughput is a step time:

    T(R, k) = verify(R (k + 1)) + request * R + (draft + draft_request * R if k)
    verify(B) = base + experts (1 - exp(-B / reach)) + token * B + eager * max(0, B - graphs)

base is what a step reads whatever it verifies, experts what a mixture of experts reads more as tokens reach more of
them, `graphs` where CUDA graphs end. Least squares on the logarithm, all parameters positive.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares

from sglang_dspark.cost import StepCost

from .worlds import OUTPUT, step_cost

_START = {"base": 9e-3, "experts": 8e-3, "reach": 60.0, "token": 2e-5, "request": 1e-5, "draft": 1e-3}
_START |= {"draft_request": 1e-5, "eager": 2e-5}


@dataclass(frozen=True)
class Arms:
    """A fit. graphs: tokens at which CUDA graphs end, inf where no arm goes beyond."""

    values: dict[str, float]
    graphs: float
    rms: float

    def verify_s(self, tokens: np.ndarray) -> np.ndarray:
        v = self.values
        outside = v["eager"] * np.maximum(0.0, tokens - self.graphs) if np.isfinite(self.graphs) else 0.0
        return v["base"] + v["experts"] * (1 - np.exp(-tokens / v["reach"])) + v["token"] * tokens + outside

    def draft_s(self, requests: np.ndarray) -> np.ndarray:
        return self.values["draft"] + self.values["draft_request"] * requests

    def step_s(self, requests: int, k: int) -> float:
        drafted = float(self.draft_s(np.array(requests))) if k else 0.0
        verify = float(self.verify_s(np.array(float(requests * (k + 1)))))
        return verify + self.values["request"] * requests + drafted

    def cost(self, name: str, most_tokens: int, most_requests: int, output: int = OUTPUT) -> StepCost:
        """As the simulator takes it, for outputs of up to so many tokens."""
        return step_cost(name, self.verify_s, self.draft_s, most_tokens, most_requests, self.values["request"], output)


def fit(throughput: Mapping[tuple[int, int], float], accept: Mapping[int, float], graphs: float = float("inf")) -> Arms:
    """throughput: tokens/s by (requests in flight, k), k = 0 without a draft; accept: accept length by k."""
    names = list(_START) if np.isfinite(graphs) else list(_START)[:-1]

    def off(logs: np.ndarray) -> np.ndarray:
        arms = Arms(dict(zip(names, np.exp(logs), strict=True)), graphs, 0.0)
        return np.array(
            [np.log(accept[k] * count / arms.step_s(count, k) / rate) for (count, k), rate in throughput.items()]
        )

    found = least_squares(off, np.log([_START[name] for name in names]), max_nfev=5000)
    values = {name: float(value) for name, value in zip(names, np.exp(found.x), strict=True)}
    return Arms(values, graphs, float(np.sqrt(np.mean(found.fun**2))))
