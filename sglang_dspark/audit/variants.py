"""Which parameter variants of the registered policies the audit enumerates by default."""

from __future__ import annotations

from sglang_dspark.errors import InputError
from sglang_dspark.policies import POLICIES, Policy, make_policy


def default_policies(requests: int, gamma: int) -> list[Policy]:
    """Every registered policy, with floors, caps, lags and branches that matter for `requests` x `gamma` blocks.

    Errors: InputError if a registered policy has no variant here and its defaults do not fit the block size.
    """
    texts = _variants(requests, gamma)
    found = [make_policy(text) for name in POLICIES for text in texts.get(name, [name])]
    for policy in found:
        try:
            policy.check(gamma)
        except InputError as error:
            raise InputError(f"{error}; name the policies to audit with --policy") from error
    return found


def _variants(requests: int, gamma: int) -> dict[str, list[str]]:
    part = max(1, gamma - 1)
    tokens = requests * (1 + gamma)
    return {
        "fixed": [f"fixed:k={k}" for k in range(gamma + 1)],
        "threshold": [
            "threshold",
            "threshold:on=survival,t=0.3",
            "threshold:t=1.0,floor=1",
            f"threshold:t=0.2,cap={part}",
        ],
        "early-stop": ["early-stop", "early-stop:floor=1", f"early-stop:cap={part}"],
        "hull": ["hull", "hull:fill=false", "hull:dips=false", "hull:floor=1", f"hull:cap={part}"],
        "lookahead": ["lookahead", "lookahead:floor=1", f"lookahead:cap={part}"],
        "argmax": [
            "argmax",
            "argmax:lag=1",
            "argmax:lag=1,pricing=floor",
            "argmax:cold=prior",
            "argmax:lag=1,floor=1",
            f"argmax:lag=1,cap={part}",
        ],
        "foresight": ["foresight", "foresight:lag=1", "foresight:lag=1,floor=1", f"foresight:lag=1,cap={part}"],
        "calibrated": ["hull:calibrate=online", "argmax:lag=1,calibrate=online", "threshold:calibrate=online"],
        "repriced": ["hull:costs=online", "argmax:lag=1,costs=online", "foresight:lag=1,calibrate=online,costs=online"],
        "self-tuning": ["self-tuning:lag=1", "self-tuning:lag=1,rule=foresight"],
        "schedule": [f"schedule:upto=1,k={gamma}/{part}", f"schedule:upto=1,k=0/{gamma},cap={part}"],
        "goodput": ["goodput", "goodput:window=2,prior=0.3"],
        "tetris": [f"tetris:capacity={requests + 1}", f"tetris:capacity={tokens - 1},floor=1"],
        "guard": [
            "guard:inner=(argmax),baseline=(fixed:k=1),min_gain=0.0",
            f"guard:inner=(hull),baseline=(fixed:k={gamma}),lag=1,min_gain=0.0",
            "guard:inner=(threshold),baseline=(early-stop),lag=1,min_gain=-0.05",
            "guard:inner=(argmax:lag=1),baseline=(goodput),min_gain=0.0",
        ],
    }
