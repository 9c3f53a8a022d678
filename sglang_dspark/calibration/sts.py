"""Sequential temperature scaling (STS, paper 3.2.1): one temperature a position, fitted left to right.

c_k = sigmoid(raw_k / T_k); position k's T minimises the calibration error of the survival up to k, with the positions
before it already fitted. The file is SGLang's own (`--speculative-dspark-confidence-sts-path`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from sglang_dspark.calibration.metrics import Floats, expected_calibration_error
from sglang_dspark.cost import write_atomically
from sglang_dspark.errors import InputError

LOW, HIGH = 0.1, 10.0
"""Range of temperatures that is searched, as in SGLang's fitting tool."""

_COARSE, _FINE = 41, 21
_NEAREST = 1e-7  # float32 confidences closer to 0 or 1 say no more than that


class StsFile(msgspec.Struct, frozen=True, omit_defaults=True):
    """SGLang's STS file; it reads `temperatures` (all > 0, one a position) and ignores what it does not know."""

    temperatures: list[float]
    dataset: str = ""
    num_samples: int = 0
    ece_before: list[float] = []
    ece_after: list[float] = []
    meta: dict[str, str | float | int | bool] = {}


def raw_logits(confidence: NDArray[np.float32], in_use: Floats) -> Floats:
    """Logits of the confidence head from confidences [N, gamma] that were scaled by temperatures `in_use` [gamma]."""
    clipped = np.clip(confidence.astype(np.float64), _NEAREST, 1.0 - _NEAREST)
    return np.log(clipped / (1.0 - clipped)) * in_use


def survival(logits: Floats, temperatures: Floats) -> Floats:
    """Predicted survivals [N, gamma] of raw logits [N, gamma] under temperatures [gamma]."""
    return np.multiply.accumulate(_sigmoid(logits / temperatures), axis=1)


def fit_temperatures(logits: Floats, depth: NDArray[np.int64], weight: Floats | None = None) -> Floats:
    """The temperatures [gamma] that minimise each position's survival ECE, left to right.

    logits: [N, gamma] raw. depth: [N] accepted draft tokens of the full block. weight: [N].
    """
    count, gamma = logits.shape
    if count == 0:
        raise InputError("no blocks to fit temperatures on, expected at least one")
    before = np.ones(count)
    fitted = np.empty(gamma)
    for position in range(gamma):
        survived = (depth > position).astype(np.float64)

        fitted[position] = _least(partial(_error, before, logits[:, position], survived, weight))
        before = before * _sigmoid(logits[:, position] / fitted[position])
    return fitted


def write_sts(path: Path, sts: StsFile) -> None:
    """Write the file whole or not at all (InputError)."""
    write_atomically(path, msgspec.json.format(msgspec.json.encode(sts), indent=1))


def read_sts(path: Path) -> StsFile:
    """An STS file, ours or SGLang's (InputError names the file and what does not fit)."""
    try:
        sts = msgspec.json.decode(path.read_bytes(), type=StsFile)
    except OSError as error:
        raise InputError(f"STS file {path}: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InputError(f"STS file {path}: {error}") from error
    if not sts.temperatures or not all(0 < value < float("inf") for value in sts.temperatures):
        raise InputError(f"STS file {path}: temperatures {sts.temperatures}, expected positive numbers")
    return sts


def _error(before: Floats, column: Floats, survived: Floats, weight: Floats | None, temperature: float) -> float:
    return expected_calibration_error(before * _sigmoid(column / temperature), survived, weight)


def _least(error: Callable[[float], float]) -> float:
    """A coarse search over the whole range, then a fine one around the best; 1 wins ties."""
    coarse = np.geomspace(LOW, HIGH, _COARSE)
    best = min([1.0, *coarse.tolist()], key=error)
    step = coarse[1] / coarse[0]
    fine = np.clip(np.geomspace(best / step, best * step, _FINE), LOW, HIGH)
    return float(min([best, *fine.tolist()], key=error))


def _sigmoid(logit: Floats) -> Floats:
    return 1.0 / (1.0 + np.exp(-logit))
