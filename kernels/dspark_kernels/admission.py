"""Admission on the device: which draft tokens the target verifies.

The admission order sorts all (request, position) by survival, descending, ties by position, then request. A budget
takes the first K; a stopping rule walks the order on integer survivals and float64 Theta (design.md 3), so that
NumPy, the interpreter and a GPU decide alike, bit for bit. Nothing is read back by the host, and every launch can be
captured in a CUDA graph.
"""

from __future__ import annotations

from typing import NamedTuple, get_args

import torch
import triton
import triton.language as tl

from dspark_kernels.admission_reference import Admission, Rule, admit_reference
from dspark_kernels.checks import expect_range, expect_tensor
from dspark_kernels.interpreter import runs_kernel
from dspark_kernels.survival import MAX_GAMMA

MAX_REQUESTS = 1024
RANKED, COMPARED, CHUNK, ROWS = 32, 128, 1024, 128
"""Entries a program takes at a time: candidates that it ranks, requests that they are compared with, ranks of the walk,
requests whose lengths it writes."""


class _Batch(NamedTuple):
    """units: [num_requests, gamma] survivals, dense. floor..cap: the positions that are decided on."""

    units: torch.Tensor
    num_requests: int
    gamma: int
    floor: int
    cap: int


class _Order(NamedTuple):
    """rank: [R, gamma] int32, a candidate's place in the admission order. units: [R * (cap - floor)] int32, in that
    order."""

    rank: torch.Tensor
    units: torch.Tensor


class _Prices(NamedTuple):
    """What a stopping rule walks along: inverse [size] float64, fill_to [R * gamma + 1] int64 or None, tops [num_tops]
    int64 for lookahead or None."""

    inverse: torch.Tensor
    size: int
    fill_to: torch.Tensor | None
    tops: torch.Tensor | None
    num_tops: int


@triton.jit
def _rank_kernel(batch, order, BLOCK: tl.constexpr, BLOCK_OTHER: tl.constexpr):
    # Candidates are numbered position first, then request: the number is the tie-break.
    count = batch.num_requests * (batch.cap - batch.floor)
    mine = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = mine < count
    address = (mine % batch.num_requests) * batch.gamma + batch.floor + mine // batch.num_requests
    units = tl.load(batch.units + address, inside, 0).to(tl.int64)
    key = units * count - mine
    rank = tl.zeros([BLOCK], tl.int32)
    for position in range(batch.floor, batch.cap):
        for first in range(0, batch.num_requests, BLOCK_OTHER):
            request = first + tl.arange(0, BLOCK_OTHER)
            there = request < batch.num_requests
            found = tl.load(batch.units + request * batch.gamma + position, there, 0).to(tl.int64)
            other = found * count - ((position - batch.floor) * batch.num_requests + request)
            rank += tl.sum((there[None, :] & (other[None, :] > key[:, None])).to(tl.int32), 1)
    tl.store(order.rank + address, rank, inside)
    tl.store(order.units + rank, units.to(tl.int32), inside)


@triton.jit
def _first_stop(order, prices, count, start, tau, CHUNK: tl.constexpr):
    # How many candidates the walk admits beyond the floor.
    stop = count
    begin = count - count
    while (begin < count) & (stop == count):
        rank = begin + tl.arange(0, CHUNK)
        inside = rank < count
        at = start + rank
        units = tl.load(order.units + rank, inside, 0).to(tl.int64)
        after = tau + tl.cumsum(units, 0)
        before = after - units
        value = before.to(tl.float64) * tl.load(prices.inverse + at, inside & (at < prices.size), 0.0)
        if prices.tops is not None:
            best = tl.zeros([CHUNK], tl.float64)
            for index in range(0, prices.num_tops):
                top = tl.load(prices.tops + index)
                ahead = top - at
                reach = (before + ahead * units).to(tl.float64) * tl.load(prices.inverse + top)
                best = tl.maximum(best, tl.where(ahead > 0, reach, 0.0))
            declines = ~(best > value)
        else:
            known = inside & (at + 1 < prices.size)
            declines = ~(known & (after.to(tl.float64) * tl.load(prices.inverse + at + 1, known, 0.0) > value))
        stop = tl.minimum(stop, tl.min(tl.where(inside & declines, rank, count), 0))
        tau += tl.sum(units, 0)
        begin += CHUNK
    return stop


@triton.jit
def _floored(batch, position, BLOCK_R: tl.constexpr):
    # tau before the walk: a whole unit for every anchor, and the survivals below the floor.
    tau = tl.full([], 16777216, tl.int64) * batch.num_requests
    for first in range(0, batch.num_requests, BLOCK_R):
        request = first + tl.arange(0, BLOCK_R)
        mask = (request < batch.num_requests)[:, None] & (position < batch.floor)[None, :]
        units = tl.load(batch.units + request[:, None] * batch.gamma + position[None, :], mask, 0)
        tau += tl.sum(tl.sum(units.to(tl.int64), 1), 0)
    return tau


@triton.jit
def _admit_kernel(batch, order, budget, prices, out, CHUNK: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_G: tl.constexpr):
    position = tl.arange(0, BLOCK_G)
    start = batch.num_requests * batch.floor
    most = batch.num_requests * batch.cap
    if budget is not None:
        total = tl.minimum(tl.maximum(tl.load(budget), start), most).to(tl.int32)
    else:
        total = start + _first_stop(order, prices, most - start, start, _floored(batch, position, BLOCK_R), CHUNK)
        if prices.fill_to is not None:
            total = tl.minimum(tl.maximum(tl.load(prices.fill_to + total).to(tl.int32), total), most)
    decided = (position >= batch.floor) & (position < batch.cap)
    for first in range(0, batch.num_requests, BLOCK_R):
        request = first + tl.arange(0, BLOCK_R)
        walked = (request < batch.num_requests)[:, None] & decided[None, :]
        rank = tl.load(order.rank + request[:, None] * batch.gamma + position[None, :], walked, 0)
        lengths = batch.floor + tl.sum((walked & (rank < total - start)).to(tl.int32), 1)
        tl.store(out.lengths + request, lengths, request < batch.num_requests)
    tl.store(out.total, total)


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
    units: torch.Tensor,
    rule: Rule,
    *,
    budget: torch.Tensor | int | None = None,
    inverse: torch.Tensor | None = None,
    fill_to: torch.Tensor | None = None,
    tops: torch.Tensor | None = None,
    floor: int = 0,
    cap: int | None = None,
) -> Admission:
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
    if cap == floor:
        # Nothing is left to decide, and a kernel would loop over it: Triton compiles sizes of 1 as constants, sees that
        # such a loop is dead, and 3.6 fails on dead loops (an assertion in TritonGPUCoalesce).
        decided = ((num_requests, floor), (1, num_requests * floor))
        return Admission(*(torch.full((size,), value, dtype=torch.int32, device=device) for size, value in decided))
    count = num_requests * (cap - floor)
    batch = _Batch(units.contiguous(), num_requests, gamma, floor, cap)
    order = _Order(*(torch.empty(size, dtype=torch.int32, device=device) for size in ((num_requests, gamma), count)))
    out = Admission(*(torch.empty(size, dtype=torch.int32, device=device) for size in (num_requests, 1)))
    _rank_kernel[(triton.cdiv(count, RANKED),)](batch, order, BLOCK=RANKED, BLOCK_OTHER=COMPARED)
    if isinstance(budget, int):
        budget = torch.full((1,), budget, dtype=torch.int64, device=device)
    prices = None
    if inverse is not None:
        prices = _Prices(inverse, inverse.shape[0], fill_to, tops, 0 if tops is None else tops.shape[0])
    _admit_kernel[(1,)](
        batch,
        order,
        budget,
        prices,
        out,
        CHUNK=CHUNK,
        BLOCK_R=ROWS,
        BLOCK_G=triton.next_power_of_2(gamma),
        num_warps=8,
    )
    return out
