"""What a request lets the server verify of its drafts: it says so when it comes, so it is past information.

`sampling_params: {"custom_params": {"dspark_cap": 2}}` verifies at most the first two draft tokens of a block, whatever
the policy says; 0 exempts the request from speculation. The target's output law is the same either way.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sglang_dspark.policies.arithmetic import Ints

CAP_KEY = "dspark_cap"
_MOST = 64


def cap_of(custom_params: Any) -> int | None:
    """The cap that a request asks for, None without one.

    Errors: ValueError, one sentence, for anything but an integer in 0..64.
    """
    if not isinstance(custom_params, dict) or CAP_KEY not in custom_params:
        return None
    cap = custom_params[CAP_KEY]
    if isinstance(cap, bool) or not isinstance(cap, int) or not 0 <= cap <= _MOST:
        raise ValueError(f"custom_params {CAP_KEY}={cap!r} is refused, expected an integer in 0..{_MOST}.")
    return cap


def caps_of(reqs: list[Any], gamma: int) -> Ints | None:
    """[R] caps of a batch, gamma where a request has none; None where none has one.

    A value that the HTTP process has not refused (an engine without it) counts as none.
    """
    found = [_lenient(getattr(req.sampling_params, "custom_params", None)) for req in reqs]
    if all(cap is None or cap >= gamma for cap in found):
        return None
    return np.array([gamma if cap is None else min(cap, gamma) for cap in found], dtype=np.int64)


def _lenient(custom_params: Any) -> int | None:
    try:
        return cap_of(custom_params)
    except ValueError:
        return None
