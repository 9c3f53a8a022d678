"""A load without a trace file: prompts and answers of given lengths, as bench_serving's random data set has them."""

from __future__ import annotations

import numpy as np

from sglang_dspark.errors import InputError
from simulator.blocks.random import stream
from simulator.traces.select import check_limit
from simulator.traces.trace import MAX_LENGTH, Trace


def random_trace(count: int, input_length: int, output_length: int, ratio: float = 1.0, seed: int = 0) -> Trace:
    """`count` requests without stamps, lengths uniform from `ratio` of the given ones up to them, 1 token at least.

    Errors: InputError for values out of range.
    """
    check_limit(count)
    for name, value in (("random-input-len", input_length), ("random-output-len", output_length)):
        if not 1 <= value <= MAX_LENGTH:
            raise InputError(f"{name}={value} is refused, expected 1..{MAX_LENGTH}")
    if not 0 <= ratio <= 1:
        raise InputError(f"random-range-ratio={ratio} is refused, expected 0..1")
    draws = stream(seed, "lengths").random((2, count))
    prompts, answers = (
        low + np.floor(row * (high - low + 1)).astype(np.int64)
        for row, high in zip(draws, (input_length, output_length), strict=True)
        for low in [max(1, int(high * ratio))]
    )
    drawn = "" if ratio == 1 else f", lengths from {ratio:g} of them up"
    source = f"random prompts of {input_length} and answers of {output_length} tokens{drawn}"
    return Trace(np.zeros(count), prompts, answers, source=source, stamped=False)
