"""Goodput as bench_serving has it (sglang 0.5.23, benchmark/goodput.py): requests that met every given limit."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sglang_dspark.errors import InputError
from sglang_dspark.policies.arithmetic import Ints
from simulator.engine.recorder import Recorder
from simulator.results.spread import Floats
from simulator.traces import Trace

SLO_KEYS = ("ttft", "tpot", "e2el")
_EXPECTED = f"KEY:MILLISECONDS with KEY in {', '.join(SLO_KEYS)} and milliseconds above 0"


def parse_slos(texts: Sequence[str]) -> dict[str, float]:
    """{key: milliseconds} of words such as "ttft:500", several in one text or one each.

    Errors: InputError for an unknown key, a key given twice, a value that is not above 0.
    """
    found: dict[str, float] = {}
    for word in " ".join(texts).split():
        key, _, value = word.partition(":")
        if key in found:
            raise InputError(f"--goodput names {key} twice, expected each key once")
        try:
            found[key] = float(value)
        except ValueError:
            found[key] = math.nan
        check_slos({key: found[key]})
    if not found:
        raise InputError(f"--goodput is empty, expected {_EXPECTED}")
    return found


def check_slos(slos_ms: dict[str, float]) -> None:
    """Refuse (InputError) a key that bench_serving does not have and a limit that is not above 0."""
    for key, value in slos_ms.items():
        if key not in SLO_KEYS or not 0 < value < math.inf:
            raise InputError(f"goodput limit {key}:{value:g} is refused, expected {_EXPECTED}")


def kept(
    sent_s: Floats, first_token_s: Floats, finish_s: Floats, output: Ints, slos_ms: dict[str, float]
) -> dict[str, NDArray[np.bool_]]:
    """[N] whether each request keeps each limit; one that was not served (NaN) keeps none."""
    seen_ms = {
        "ttft": 1e3 * (first_token_s - sent_s),
        "tpot": np.where(output > 1, 1e3 * (finish_s - first_token_s) / np.maximum(output - 1, 1), 0.0),
        "e2el": 1e3 * (finish_s - sent_s),
    }
    return {key: ~np.isnan(finish_s) & (seen_ms[key] <= limit) for key, limit in slos_ms.items()}


def goodput(recorder: Recorder, trace: Trace, duration: float, slos_ms: dict[str, float]) -> dict[str, float]:
    """request_goodput (good requests per second), slo_attainment (of those sent), and `slo_attainment.KEY` of each."""
    met = kept(recorder.sent_s, recorder.first_token_s, recorder.finish_s, trace.output_length, slos_ms)
    good = np.logical_and.reduce(list(met.values()))
    return {
        "request_goodput": float(good.sum()) / duration if duration else 0.0,
        "slo_attainment": float(good.mean()),
        **{f"slo_attainment.{key}": float(values.mean()) for key, values in met.items()},
    }
