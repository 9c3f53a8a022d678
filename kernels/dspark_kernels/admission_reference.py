"""Admission in torch: its values, and the one-rank-at-a-time walk that the kernel must equal."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch

from dspark_kernels.survival import SURVIVAL_SCALE

Rule = Literal["budget", "early-stop", "lookahead", "foresight"]


class Admission(NamedTuple):
    """lengths: [R] int32 admitted draft tokens per request (anchor excluded). total: [1] int32, their sum K."""

    lengths: torch.Tensor
    total: torch.Tensor


def admit_reference(
    units: torch.Tensor,
    rule: Rule,
    *,
    budget: torch.Tensor | int | None = None,
    inverse: torch.Tensor | None = None,
    fill_to: torch.Tensor | None = None,
    tops: torch.Tensor | None = None,
    beyond: tuple[torch.Tensor, torch.Tensor] | None = None,
    floor: int = 0,
    cap: int | None = None,
) -> Admission:
    """`admit` in torch, one rank at a time for the stopping rules."""
    num_requests, gamma = units.shape
    cap = gamma if cap is None else cap
    start, most = num_requests * floor, num_requests * cap
    candidates = units[:, floor:cap].T.reshape(-1).to(torch.int64)
    order = torch.argsort(candidates, descending=True, stable=True)
    if rule == "budget":
        total = min(max(int(budget), start), most)
    else:
        tau = num_requests * SURVIVAL_SCALE + int(units[:, :floor].to(torch.int64).sum())
        survivals = candidates[order].tolist()
        if rule == "foresight":
            total = start + _foresee(survivals, tau, start, inverse, tops, beyond)
        else:
            total = start + _walk(survivals, tau, start, rule, inverse, tops)
        if fill_to is not None:
            total = min(max(int(fill_to[total]), total), most)
    chosen = torch.bincount(order[: total - start] % max(num_requests, 1), minlength=num_requests)
    return Admission((chosen + floor).to(torch.int32), torch.tensor([total], dtype=torch.int32, device=units.device))


def _walk(
    survivals: list[int], tau: int, start: int, rule: Rule, inverse: torch.Tensor, tops: torch.Tensor | None
) -> int:
    prices = inverse.tolist()
    for rank, survival in enumerate(survivals):
        at = start + rank
        here = float(tau) * prices[at] if at < len(prices) else 0.0
        if rule == "early-stop":
            goes_on = at + 1 < len(prices) and float(tau + survival) * prices[at + 1] > here
        else:
            reach = [float(tau + (top - at) * survival) * prices[top] for top in tops.tolist() if top > at]
            goes_on = max(reach, default=0.0) > here
        if not goes_on:
            return rank
        tau += survival
    return len(survivals)


def _foresee(
    survivals: list[int],
    tau: int,
    start: int,
    inverse: torch.Tensor,
    tops: torch.Tensor,
    beyond: tuple[torch.Tensor, torch.Tensor],
) -> int:
    prices, ends = inverse.tolist(), tops.tolist()
    summed, following = (table.tolist() for table in beyond)
    if not ends or start > ends[-1]:
        return 0
    for rank, survival in enumerate(survivals):
        at = start + rank
        if at == ends[-1]:
            return rank
        if at in ends:
            mine, best = ends.index(at), 0.0
            for top, up_to in zip(ends[mine + 1 :], summed[mine + 1 :], strict=True):
                more = up_to - summed[mine]
                gain = min(more * survival // max(following[mine], 1), 4 * more, (top - at) * survival)
                best = max(best, float(tau + gain) * prices[top])
            if not best > float(tau) * prices[at]:
                return rank
        tau += survival
    return len(survivals)
