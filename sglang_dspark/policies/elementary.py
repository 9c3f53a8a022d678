"""Exponential and logarithm made of products and sums alone: the same bits in NumPy and in compiled code.

Libraries differ in the last bit of `exp` and `log`, by processor even, and what a policy learns must not (design.md 3).
Both are good to about 1e-15, which is all that learning needs.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from sglang_dspark.policies.arithmetic import Floats, Ints

LOG2_E = 1.4426950408889634
LN2_HIGH, LN2_LOW = 0.6931471803691238, 1.9082149292705877e-10
"""ln 2 in two parts, the first of which has few enough bits that whole multiples of it are exact."""
SQRT_HALF = 0.7071067811865476
LARGEST = 9.2
"""What a logit is cut at, that of 1e-4 or of 1 - 1e-4."""
_EXP = tuple(1.0 / math.factorial(n) for n in range(13, 1, -1))
_LOG = tuple(1.0 / odd for odd in range(21, 1, -2))


def exp_of_rest(rest: Any) -> Any:
    """exp of |x| <= ln 2 / 2, a number or an array, by its series."""
    total = _EXP[0] * rest + _EXP[1]
    total = (total * rest + _EXP[2]) * rest + _EXP[3]
    total = (total * rest + _EXP[4]) * rest + _EXP[5]
    total = (total * rest + _EXP[6]) * rest + _EXP[7]
    total = (total * rest + _EXP[8]) * rest + _EXP[9]
    total = (total * rest + _EXP[10]) * rest + _EXP[11]
    return (total * rest + 1.0) * rest + 1.0


def log_of_mantissa(mantissa: Any) -> Any:
    """log of a number in sqrt(1/2)..sqrt(2), or of an array of them: 2 artanh((m - 1) / (m + 1)) by its series."""
    s = (mantissa - 1.0) / (mantissa + 1.0)
    square = s * s
    total = _LOG[0] * square + _LOG[1]
    total = (total * square + _LOG[2]) * square + _LOG[3]
    total = (total * square + _LOG[4]) * square + _LOG[5]
    total = (total * square + _LOG[6]) * square + _LOG[7]
    total = (total * square + _LOG[8]) * square + _LOG[9]
    return 2.0 * s * (total * square + 1.0)


def exp(x: Floats) -> Floats:
    """exp of an array, for |x| up to 700."""
    times = np.rint(x * LOG2_E)
    return np.ldexp(exp_of_rest((x - times * LN2_HIGH) - times * LN2_LOW), times.astype(np.int64))


def log(x: Floats) -> Floats:
    """log of an array of positive numbers."""
    mantissa, times = np.frexp(x)
    small = mantissa < SQRT_HALF
    times = times - small
    return np.asarray(times * LN2_HIGH + (log_of_mantissa(np.where(small, 2.0 * mantissa, mantissa)) + times * LN2_LOW))


def sigmoid(x: Floats) -> Floats:
    """1 / (1 + exp(-x)) of an array."""
    return np.asarray(1.0 / (1.0 + exp(-x)))


def logit(part: Ints, whole: Ints | int) -> Floats:
    """Of part / whole, arrays of integers, part within 0..whole; cut at `LARGEST`."""
    inside = (part > 0) & (part < whole)
    odds = np.where(inside, part, 1) / np.where(inside, whole - part, 1)
    found = np.clip(log(odds), -LARGEST, LARGEST)
    return np.asarray(np.where(inside, found, np.where(part > 0, LARGEST, -LARGEST)))


def log_of(x: float) -> float:
    """log of one positive number."""
    mantissa, times = math.frexp(x)
    if mantissa < SQRT_HALF:
        mantissa, times = 2.0 * mantissa, times - 1
    return times * LN2_HIGH + (log_of_mantissa(mantissa) + times * LN2_LOW)
