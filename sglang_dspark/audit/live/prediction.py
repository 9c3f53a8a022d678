"""Predicts what an audit of a policy would find on given prompts, and with how many samples; no server is asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sglang_dspark.audit.live.classes import class_laws, frequent_tokens
from sglang_dspark.audit.live.prompts import Prompt
from sglang_dspark.audit.live.settings import AuditSettings
from sglang_dspark.audit.live.simulation import BATCHES, Leak, SimulatedBatch
from sglang_dspark.audit.live.statistics import family_size, samples_needed
from sglang_dspark.cost import StepCost
from sglang_dspark.demo.pair import Pair
from sglang_dspark.errors import InputError
from sglang_dspark.policies import Policy

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Prediction:
    """What an audit of one prompt would meet.

    tv: total variation between the served and the target's joint law of the audited tokens, as a lower bound: that of
    the token classes at the worst position (looking at less never makes two laws more different). tv_error: its
    standard error. by_position: the same at every audited position. samples_needed: samples of which the token test
    sees this bias with 80 % power. cut_share: blocks verified in part. simulated: requests behind this.
    """

    prompt: str
    tv: float
    tv_error: float
    by_position: list[float]
    samples_needed: float
    cut_share: float
    simulated: int


def predict(
    pair: Pair,
    policy: Policy,
    cost: StepCost | None,
    prompts: Sequence[Prompt],
    beside: Sequence[Prompt],
    settings: AuditSettings,
    simulated: int,
    progress: Callable[[int, int], None],
) -> list[Prediction]:
    """One prediction a prompt, from `simulated` requests on each; beside: prompts of the background."""
    if policy.name == "oracle" or not policy.drafts:
        raise InputError(f"policy '{policy.name}' has no bias to predict, expected one that decides on a draft")
    batch = SimulatedBatch(pair, policy, cost, prompts, beside, settings)
    done, total = 0, simulated * len(prompts)
    while done < total:
        done += batch.step()
        progress(min(done, total), total)
    alpha = settings.alpha / family_size(len(prompts))
    return [
        _prediction(prompt, leak, settings.samples, alpha) for prompt, leak in zip(prompts, batch.leaks, strict=True)
    ]


def _prediction(prompt: Prompt, leak: Leak, samples: int, alpha: float) -> Prediction:
    """All groups of requests but one propose which classes are favoured and where; that one says how much.

    Neither the signs nor the choice of the position then inflate the estimate.
    """
    bias, count = leak.bias(), float(leak.requests.sum())
    own, crossed, information, degrees = [], [], 0.0, 0
    for t, law in enumerate(leak.laws / count):
        frequent = frequent_tokens(law, samples)
        alone = bias[:, t, frequent]
        groups = np.concatenate([alone, -alone.sum(1, keepdims=True)], axis=1)  # [BATCHES, classes]
        others = (groups.sum(0) - groups) / (BATCHES - 1)
        own.append(0.5 * np.abs(others).sum(1))
        crossed.append(0.5 * (np.sign(others) * groups).sum(1))
        # Products of different groups estimate the square without its noise.
        shares = np.clip(class_laws(law[None], frequent)[0], 1e-9, None)
        information += float(np.sum((others * groups).mean(0) / shares))
        degrees += frequent.size
    worst = np.argmax(np.array(own), axis=0)  # [BATCHES]
    estimates = np.array(crossed)[worst, np.arange(BATCHES)]
    return Prediction(
        prompt.name,
        float(estimates.mean()),
        float(estimates.std(ddof=1) / BATCHES**0.5),
        [float(values.mean()) for values in crossed],
        samples_needed(degrees, information, alpha),
        leak.cut / max(1, leak.blocks),
        int(count),
    )
