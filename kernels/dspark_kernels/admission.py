"""Admission on the device: which draft tokens the target verifies.

The admission order sorts all (request, position) by survival, descending, ties by position, then request. A budget
takes the first K; a stopping rule walks the order on integer survivals and float64 Theta (design.md 3), so that
NumPy, the interpreter and a GPU decide alike, bit for bit. Nothing is read back by the host, and every launch can be
captured in a CUDA graph.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
import triton
import triton.language as tl

from dspark_kernels.checks import expect_range, expect_tensor
from dspark_kernels.interpreter import runs_kernel
from dspark_kernels.survival import MAX_GAMMA, SURVIVAL_SCALE

MAX_REQUESTS = 1024
Rule = Literal["budget", "early-stop", "lookahead"]


class Admission(NamedTuple):
    """lengths: [R] int32 admitted draft tokens per request (anchor excluded). total: [1] int32, their sum K."""

    lengths: torch.Tensor
    total: torch.Tensor


@triton.jit
def _rank_kernel(UNITS, RANK, SORTED, num_requests, gamma, floor, cap, BLOCK: tl.constexpr, BLOCK_OTHER: tl.constexpr):
    # Candidates are numbered position first, then request: the number is the tie-break.
    count = num_requests * (cap - floor)
    mine = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = mine < count
    address = (mine % num_requests) * gamma + floor + mine // num_requests
    units = tl.load(UNITS + address, inside, 0).to(tl.int64)
    key = units * count - mine
    rank = tl.zeros([BLOCK], tl.int32)
    lane = tl.arange(0, BLOCK_OTHER)
    for position in range(floor, cap):
        for first in range(0, num_requests, BLOCK_OTHER):
            there = first + lane < num_requests
            found = tl.load(UNITS + (first + lane) * gamma + position, there, 0).to(tl.int64)
            other = found * count - ((position - floor) * num_requests + first + lane)
            rank += tl.sum((there[None, :] & (other[None, :] > key[:, None])).to(tl.int32), 1)
    tl.store(RANK + address, rank, inside)
    tl.store(SORTED + rank, units.to(tl.int32), inside)


@triton.jit
def _first_stop(
    SORTED, INVERSE, TOPS, count, start, tau, table, num_tops, LOOKAHEAD: tl.constexpr, CHUNK: tl.constexpr
):
    stop = count
    begin = count - count
    while (begin < count) & (stop == count):
        rank = begin + tl.arange(0, CHUNK)
        inside = rank < count
        units = tl.load(SORTED + rank, inside, 0).to(tl.int64)
        after = tau + tl.cumsum(units, 0)
        before = after - units
        value = before.to(tl.float64) * tl.load(INVERSE + start + rank, inside & (start + rank < table), 0.0)
        if LOOKAHEAD:
            best = tl.zeros([CHUNK], tl.float64)
            for index in range(0, num_tops):
                top = tl.load(TOPS + index)
                ahead = top - (start + rank)
                reach = (before + ahead * units).to(tl.float64) * tl.load(INVERSE + top)
                best = tl.maximum(best, tl.where(ahead > 0, reach, 0.0))
            declines = ~(best > value)
        else:
            known = inside & (start + rank + 1 < table)
            declines = ~(known & (after.to(tl.float64) * tl.load(INVERSE + start + rank + 1, known, 0.0) > value))
        stop = tl.minimum(stop, tl.min(tl.where(inside & declines, rank, count), 0))
        tau += tl.sum(units, 0)
        begin += CHUNK
    return stop


@triton.jit
def _admit_kernel(
    UNITS, RANK, SORTED, BUDGET, INVERSE, FILL, TOPS, LENGTHS, TOTAL,
    num_requests, gamma, floor, cap, table, num_tops,
    WALK: tl.constexpr, LOOKAHEAD: tl.constexpr, FILLED: tl.constexpr,
    CHUNK: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_G: tl.constexpr,
):  # fmt: skip
    position = tl.arange(0, BLOCK_G)
    start = num_requests * floor
    most = num_requests * cap
    if WALK:
        tau = tl.full([], 16777216, tl.int64) * num_requests
        for first in range(0, num_requests, BLOCK_R):
            request = first + tl.arange(0, BLOCK_R)
            mask = (request < num_requests)[:, None] & (position < floor)[None, :]
            floored = tl.load(UNITS + request[:, None] * gamma + position[None, :], mask, 0)
            tau += tl.sum(tl.sum(floored.to(tl.int64), 1), 0)
        total = start + _first_stop(SORTED, INVERSE, TOPS, most - start, start, tau, table, num_tops, LOOKAHEAD, CHUNK)
        if FILLED:
            total = tl.minimum(tl.maximum(tl.load(FILL + total).to(tl.int32), total), most)
    else:
        total = tl.minimum(tl.maximum(tl.load(BUDGET), start), most).to(tl.int32)
    for first in range(0, num_requests, BLOCK_R):
        request = first + tl.arange(0, BLOCK_R)
        walked = (request < num_requests)[:, None] & ((position >= floor) & (position < cap))[None, :]
        rank = tl.load(RANK + request[:, None] * gamma + position[None, :], walked, 0)
        lengths = floor + tl.sum((walked & (rank < total - start)).to(tl.int32), 1)
        tl.store(LENGTHS + request, lengths, request < num_requests)
    tl.store(TOTAL, total)


def admit_reference(
    units: torch.Tensor, rule: Rule, *, budget: torch.Tensor | int | None = None, inverse: torch.Tensor | None = None,
    fill_to: torch.Tensor | None = None, tops: torch.Tensor | None = None, floor: int = 0, cap: int | None = None,
) -> Admission:  # fmt: skip
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
        total = start + _walk_reference(candidates[order].tolist(), tau, start, rule, inverse, tops)
        if fill_to is not None:
            total = min(max(int(fill_to[total]), total), most)
    chosen = torch.bincount(order[: total - start] % max(num_requests, 1), minlength=num_requests)
    return Admission((chosen + floor).to(torch.int32), torch.tensor([total], dtype=torch.int32, device=units.device))


def _walk_reference(
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


def _check(units, rule, budget, inverse, fill_to, tops, floor, cap) -> None:
    device = units.device
    expect_tensor("units", units, [None, None], (torch.int32, torch.int64), device)
    num_requests, gamma = units.shape
    expect_range("number of requests", num_requests, 1, MAX_REQUESTS)
    expect_range("gamma", gamma, 1, MAX_GAMMA)
    expect_range("cap", cap, 0, gamma)
    expect_range("floor", floor, 0, cap)
    if rule not in get_args(Rule):
        raise ValueError(f"rule={rule!r} is refused, expected one of {', '.join(get_args(Rule))}")
    wanted = {"budget": budget, "inverse": inverse, "tops": tops}
    for name, rules in (("budget", ("budget",)), ("inverse", ("early-stop", "lookahead")), ("tops", ("lookahead",))):
        if (wanted[name] is not None) != (rule in rules):
            raise ValueError(f"rule {rule!r} {'needs' if rule in rules else 'does not take'} {name}")
    if fill_to is not None:
        if rule == "budget":
            raise ValueError("rule 'budget' does not take fill_to")
        expect_tensor("fill_to", fill_to, [num_requests * gamma + 1], torch.int64, device)
    if inverse is not None:
        expect_tensor("inverse", inverse, [None], torch.float64, device)
        least = num_requests * gamma + 1
        if rule == "lookahead" and inverse.shape[0] < least:
            raise ValueError(f"inverse has {inverse.shape[0]} entries, expected at least {least}")
    if tops is not None:
        expect_tensor("tops", tops, [None], torch.int64, device)
    if isinstance(budget, torch.Tensor):
        expect_tensor("budget", budget, [1], torch.int64, device)


def admit(
    units: torch.Tensor, rule: Rule, *, budget: torch.Tensor | int | None = None, inverse: torch.Tensor | None = None,
    fill_to: torch.Tensor | None = None, tops: torch.Tensor | None = None, floor: int = 0, cap: int | None = None,
) -> Admission:  # fmt: skip
    """Verify lengths of a batch.

    units: [R, gamma] int32 or int64 survivals (`survival_units`), R 1..1024, gamma 1..16, non-increasing along gamma.
    rule: "budget" takes the first `budget` of the order (int or [1] int64 on the device; clamped to what floor and
    cap allow).
      "early-stop" admits rank m iff tau_m * inverse[m] > tau_{m-1} * inverse[m-1] (Algorithm 1; with a hull's table:
      `hull`); a table that ends early, or holds 0, stops the walk there. "lookahead" admits iff tau + (top - m) * a
      times inverse[top] beats the present value for some of `tops` beyond m.
    inverse: [n] float64, 1 / step seconds by admitted draft tokens k = 0, 1, ...; `lookahead` needs R * gamma + 1
    entries.
    fill_to: [R * gamma + 1] int64, the count to raise a stopped walk to (at least the count), for a stopping rule.
    tops: [m] int64, the counts at which graph tiers end, each below len(inverse).
    floor, cap: every request verifies its first `floor` positions and none beyond `cap`; both count in k.
    Returns `Admission`. Errors: ValueError or TypeError for shapes, dtypes or tables that do not fit the rule.
    Source: design.md 3; bit-equal to `sglang_dspark.policies` (the tests compare them).
    """
    cap = units.shape[-1] if cap is None else cap
    _check(units, rule, budget, inverse, fill_to, tops, floor, cap)
    if not runs_kernel(units):
        return admit_reference(
            units, rule, budget=budget, inverse=inverse, fill_to=fill_to, tops=tops, floor=floor, cap=cap
        )
    device, (num_requests, gamma) = units.device, units.shape
    units = units.contiguous()
    count = num_requests * (cap - floor)
    rank = torch.empty(num_requests, gamma, dtype=torch.int32, device=device)
    ordered = torch.empty(max(count, 1), dtype=torch.int32, device=device)
    admission = Admission(
        torch.empty(num_requests, dtype=torch.int32, device=device), torch.empty(1, dtype=torch.int32, device=device)
    )
    if count:
        _rank_kernel[(triton.cdiv(count, 32),)](
            units, rank, ordered, num_requests, gamma, floor, cap, BLOCK=32, BLOCK_OTHER=128
        )
    if isinstance(budget, int):
        budget = torch.full((1,), budget, dtype=torch.int64, device=device)
    none = ordered
    _admit_kernel[(1,)](
        units, rank, ordered, none if budget is None else budget, none if inverse is None else inverse,
        none if fill_to is None else fill_to, none if tops is None else tops, *admission,
        num_requests, gamma, floor, cap,
        0 if inverse is None else inverse.shape[0], 0 if tops is None else tops.shape[0],
        WALK=rule != "budget", LOOKAHEAD=rule == "lookahead", FILLED=fill_to is not None,
        CHUNK=1024, BLOCK_R=128, BLOCK_G=triton.next_power_of_2(gamma), num_warps=8,
    )  # fmt: skip
    return admission
