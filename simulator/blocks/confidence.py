"""What a drafter says of its tokens: how far confidences spread, and how far they are off."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sglang_dspark.errors import InputError

_RANGES = {
    "spread_request": (0.0, 5.0),
    "spread_block": (0.0, 5.0),
    "spread_position": (0.0, 5.0),
    "temperature": (0.05, 20.0),
    "bias": (-10.0, 10.0),
    "noise": (0.0, 10.0),
    "drift": (-10.0, 10.0),
}
SPREADS = ("spread_request", "spread_block", "spread_position")
ERRORS = ("temperature", "bias", "noise", "drift")


@dataclass(frozen=True)
class Confidence:
    """How reported confidences relate to the true conditionals: c = sigmoid(logit(c_true) / temperature + bias).

    spread_request, spread_block, spread_position: standard deviations of the logit between requests, between blocks of
    one request and between positions of one block. The paper's Figure 5 gives 1.2 for requests and blocks together and
    0.6 for positions (`benchmarks/fit_confidence_spread.py`); how the 1.2 divides is not published: 0.6 and 1.04 is an
    assumption. noise: standard deviation of a further error on the reported logit. drift: what the bias has become more
    by in the second half of the trace's tokens.

    The default errs as the paper's head does after STS (Figure 6, `benchmarks/fit_confidence_error.py`): survivals have
    an expected calibration error (ECE) of about 1 %. See `CALIBRATIONS` for others.

    online: reports are not a head's but the running acceptance by position (`OnlineEstimate`).
    """

    spread_request: float = 0.6
    spread_block: float = 1.04
    spread_position: float = 0.6
    temperature: float = 1.1
    bias: float = 0.15
    noise: float = 0.0
    drift: float = 0.0
    online: bool = False

    def __post_init__(self) -> None:
        for name, (low, high) in _RANGES.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise InputError(f"confidence {name}={value} is refused, expected {low}..{high}")

    @classmethod
    def of(cls, calibration: str, **changes: float) -> Confidence:
        """One of `CALIBRATIONS`, with further values changed."""
        if calibration not in CALIBRATIONS:
            raise InputError(f"confidence '{calibration}' is unknown, expected one of {', '.join(CALIBRATIONS)}")
        if calibration == "online" and set(changes) & set(ERRORS):
            raise InputError("confidence online has no temperature, bias, noise or drift: it is learned from outcomes")
        values: dict[str, Any] = {**CALIBRATIONS[calibration], **changes}
        return cls(**values)

    @property
    def exact(self) -> bool:
        """Whether reported confidences are the true conditionals."""
        return self.temperature == 1.0 and self.bias == self.noise == self.drift == 0.0

    @property
    def calibration(self) -> str:
        """The name among `CALIBRATIONS` of how far it is off, or "set by the user"."""
        for name in CALIBRATIONS:
            if all(getattr(self, key) == getattr(Confidence.of(name), key) for key in (*ERRORS, "online")):
                return name
        return "set by the user"


CALIBRATIONS: dict[str, dict[str, float | bool]] = {
    "sts": {},
    "raw": {"temperature": 0.9, "bias": 0.13},
    "calibrated": {"temperature": 1.0, "bias": 0.0},
    "online": {"temperature": 1.0, "bias": 0.0, "online": True},
}
"""How far confidences are off: after sequential temperature scaling, as the head gives them (ECE about 5 %), not at
all, or estimated from outcomes where there is no head."""
