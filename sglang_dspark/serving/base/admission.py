"""Turns a decision into verify lengths on the device that drafted (torch)."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch

from sglang_dspark.policies import SCALE, Plan, allocate, survival_units
from sglang_dspark.policies.arithmetic import Ints
from sglang_dspark.policies.calibration import BINS, table


def survival_units_on_device(confidence: torch.Tensor) -> torch.Tensor:
    """Survivals [R, gamma] int64 units of confidences [R, gamma] float32: the left-to-right product, bit for bit.

    torch.cumprod may associate differently on a device, so the product is written out.
    """
    confidence = torch.where((confidence >= 0) & (confidence <= 1), confidence, 0.0)  # as `policies.probabilities`
    columns = [confidence[:, 0].to(torch.float32)]
    for position in range(1, confidence.shape[1]):
        columns.append(columns[-1] * confidence[:, position])
    return torch.round(torch.stack(columns, dim=1) * float(SCALE)).to(torch.int64)


def corrected_on_device(confidence: torch.Tensor, numbers: tuple[float, float] | None) -> torch.Tensor:
    """`calibration.corrected_block`'s confidences [R, gamma] float32, on their device and bit for bit: a look-up."""
    if numbers is None:
        return confidence
    confidence = confidence.to(torch.float32)
    valid = (confidence > 0) & (confidence <= 1)
    bins = torch.where(valid, confidence * BINS, 0.0).to(torch.int64).add_(1).clamp_(max=BINS)
    return _table_on(confidence.device, numbers)[torch.where(valid, bins, 0)]


@lru_cache(maxsize=8)
def _table_on(device: torch.device, numbers: tuple[float, float]) -> torch.Tensor:
    return torch.from_numpy(table(*numbers).copy()).to(device)


def planned_lengths(confidence: torch.Tensor, plan: Plan) -> torch.Tensor:
    """Admitted draft tokens [R] int64 of a plan: `policies.allocate`, on the device of confidence [R, gamma]."""
    confidence = corrected_on_device(confidence, plan.correction)
    if confidence.device.type != "cpu":
        return allocate_on_device(confidence, plan)
    units = survival_units(np.ascontiguousarray(confidence.to(torch.float32).numpy()))
    return torch.from_numpy(allocate(units, plan.budget, plan.floor, plan.cap, plan.caps))


def bounds_of(plan: Plan, num_requests: int) -> tuple[Ints, Ints]:
    """([R] verified before the walk, [R] at the most) of a plan."""
    low, high = (np.full(num_requests, bound, dtype=np.int64) for bound in (plan.floor, plan.cap))
    return (low, high) if plan.caps is None else (np.minimum(low, plan.caps), np.minimum(high, plan.caps))


def known_lengths(plan: Plan, num_requests: int) -> Ints | None:
    """Admitted draft tokens [R] where the plan alone fixes them: its floors, or its caps; None where survivals say."""
    low, high = bounds_of(plan, num_requests)
    walked = plan.budget - int(low.sum())
    if walked <= 0:
        return low
    return high if walked >= int((high - low).sum()) else None


def allocate_on_device(confidence: torch.Tensor, plan: Plan) -> torch.Tensor:
    """The first `budget` of the live admission order, floor first, none beyond cap; no host synchronisation."""
    num_requests, gamma = confidence.shape
    known = known_lengths(plan, num_requests)
    if known is not None:
        return torch.from_numpy(known).to(confidence.device, non_blocking=True)
    low, high = bounds_of(plan, num_requests)
    walked = plan.budget - int(low.sum())
    units = survival_units_on_device(confidence)[:, plan.floor : plan.cap]
    position = torch.arange(plan.floor, plan.cap, device=units.device)[None, :]
    request = torch.arange(num_requests, device=units.device)[:, None]
    keys = (SCALE - units) * (num_requests * gamma) + position * num_requests + request
    least = torch.from_numpy(low).to(units.device, non_blocking=True)
    if plan.caps is not None:
        last = torch.from_numpy(high).to(units.device, non_blocking=True)
        keys = torch.where(position < last[:, None], keys, torch.iinfo(torch.int64).max - num_requests + request)
    first = torch.topk(keys.flatten(), walked, largest=False).values % num_requests
    counts = torch.zeros(num_requests, dtype=torch.int64, device=units.device)
    return counts.scatter_add_(0, first, torch.ones_like(first)) + least
