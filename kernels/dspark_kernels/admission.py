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
RANKED, COMPARED, CHUNK, ROWS, TOPS = 32, 128, 1024, 128, 128
"""Entries a program takes at a time: candidates that it ranks, requests that they are compared with, ranks of the walk,
requests whose lengths it writes, ends of tiers that it looks ahead to."""


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
    int64 for lookahead and foresight or None; summed, following [num_tops] int64 for foresight or None."""

    inverse: torch.Tensor
    size: int
    fill_to: torch.Tensor | None
    tops: torch.Tensor | None
    num_tops: int
    summed: torch.Tensor | None
    following: torch.Tensor | None


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
def _pays(prices, index, here, tau, survival, BLOCK_T: tl.constexpr):
    # Whether some further top pays, seen from top number `index` at count `here`; integers up to the one product.
    best = tl.full([], 0.0, tl.float64)
    mine, following = tl.load(prices.summed + index), tl.load(prices.following + index)
    for first in range(0, prices.num_tops, BLOCK_T):
        number = first + tl.arange(0, BLOCK_T)
        there = number < prices.num_tops
        top = tl.load(prices.tops + number, there, 0)
        more = tl.load(prices.summed + number, there, 0) - mine
        ahead = top - here
        usable = there & (ahead > 0)
        more, ahead = tl.where(usable, more, 0), tl.where(usable, ahead, 0)
        gain = tl.minimum(more * survival // tl.maximum(following, 1), 4 * more)
        gain = tl.minimum(gain, ahead * survival)
        reach = (tau + gain).to(tl.float64) * tl.load(prices.inverse + top, usable, 0.0)
        best = tl.maximum(best, tl.max(tl.where(usable, reach, 0.0), 0))
    return best > tau.to(tl.float64) * tl.load(prices.inverse + here)


@triton.jit
def _first_top(order, prices, count, start, tau, CHUNK: tl.constexpr, BLOCK_T: tl.constexpr):
    # Foresight decides at the ends of tiers alone: how many candidates it admits beyond the floor.
    stop = count - count
    if prices.num_tops > 0:
        last = tl.load(prices.tops + prices.num_tops - 1)
        if last >= start:
            stop = tl.minimum(count, (last - start).to(tl.int32))
    begin = count - count
    while begin < stop:
        rank = begin + tl.arange(0, CHUNK)
        units = tl.load(order.units + rank, rank < count, 0).to(tl.int64)
        for index in range(0, prices.num_tops):
            here = tl.load(prices.tops + index)
            at = (here - start).to(tl.int32)
            if (at >= begin) & (at < begin + CHUNK) & (at < stop):
                before = tau + tl.sum(tl.where(rank < at, units, 0), 0)
                survival = tl.sum(tl.where(rank == at, units, 0), 0)
                if ~_pays(prices, index, here, before, survival, BLOCK_T):
                    stop = at
        tau += tl.sum(units, 0)
        begin += CHUNK
    return stop


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
def _admit_kernel(
    batch,
    order,
    budget,
    prices,
    out,
    CHUNK: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    position = tl.arange(0, BLOCK_G)
    start = batch.num_requests * batch.floor
    most = batch.num_requests * batch.cap
    if budget is not None:
        total = tl.minimum(tl.maximum(tl.load(budget), start), most).to(tl.int32)
    else:
        tau = _floored(batch, position, BLOCK_R)
        if prices.summed is not None:
            total = start + _first_top(order, prices, most - start, start, tau, CHUNK, BLOCK_T)
        else:
            total = start + _first_stop(order, prices, most - start, start, tau, CHUNK)
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


def _check(units, rule, budget, inverse, fill_to, tops, beyond, floor, cap) -> None:
    device = units.device
    expect_tensor("units", units, [None, None], (torch.int32, torch.int64), device)
    num_requests, gamma = units.shape
    expect_range("number of requests", num_requests, 1, MAX_REQUESTS)
    expect_range("gamma", gamma, 1, MAX_GAMMA)
    expect_range("cap", cap, 0, gamma)
    expect_range("floor", floor, 0, cap)
    if rule not in get_args(Rule):
        raise ValueError(f"rule={rule!r} is refused, expected one of {', '.join(get_args(Rule))}")
    wanted = {"budget": budget, "inverse": inverse, "tops": tops, "beyond": beyond}
    for name, rules in (
        ("budget", ("budget",)),
        ("inverse", ("early-stop", "lookahead", "foresight")),
        ("tops", ("lookahead", "foresight")),
        ("beyond", ("foresight",)),
    ):
        if (wanted[name] is not None) != (rule in rules):
            raise ValueError(f"rule {rule!r} {'needs' if rule in rules else 'does not take'} {name}")
    if fill_to is not None:
        if rule == "budget":
            raise ValueError("rule 'budget' does not take fill_to")
        expect_tensor("fill_to", fill_to, [num_requests * gamma + 1], torch.int64, device)
    if inverse is not None:
        expect_tensor("inverse", inverse, [None], torch.float64, device)
        least = num_requests * gamma + 1
        if tops is not None and inverse.shape[0] < least:
            raise ValueError(f"inverse has {inverse.shape[0]} entries, expected at least {least}")
    if tops is not None:
        expect_tensor("tops", tops, [None], torch.int64, device)
    for name, table in zip(("summed", "following"), beyond or (), strict=False):
        expect_tensor(name, table, [tops.shape[0]], torch.int64, device)
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
    beyond: tuple[torch.Tensor, torch.Tensor] | None = None,
    floor: int = 0,
    cap: int | None = None,
) -> Admission:
    """Verify lengths of a batch.

    units: [R, gamma] int32 or int64 survivals (`survival_units`), R 1..1024, gamma 1..16, non-increasing along gamma.
    rule: "budget" takes the first `budget` of the order (int or [1] int64 on the device; clamped to what floor and
    cap allow).
      "early-stop" admits rank m iff tau_m * inverse[m] > tau_{m-1} * inverse[m-1] (Algorithm 1; with a hull's table:
      `hull`); a table that ends early, or holds 0, stops the walk there. "lookahead" admits iff tau + (top - m) * a
      times inverse[top] beats the present value for some of `tops` beyond m. "foresight" decides at `tops` alone, by
      the lagged survivals beyond them (`sglang_dspark.policies.rules.foresight`), and ends at the last of them.
    inverse: [n] float64, 1 / step seconds by admitted draft tokens k = 0, 1, ...; `lookahead` and `foresight` need
    R * gamma + 1 entries.
    fill_to: [R * gamma + 1] int64, the count to raise a stopped walk to (at least the count), for a stopping rule.
    tops: [m] int64 increasing, the counts at which graph tiers end, each below len(inverse). beyond: at each of them
    ([m] int64 lagged survivals up to it, summed; [m] int64 the one after it), for foresight.
    floor, cap: every request verifies its first `floor` positions and none beyond `cap`; both count in k.
    Returns `Admission`. Errors: ValueError or TypeError for shapes, dtypes or tables that do not fit the rule.
    Source: design.md 3; bit-equal to `sglang_dspark.policies` (the tests compare them).
    """
    cap = units.shape[-1] if cap is None else cap
    _check(units, rule, budget, inverse, fill_to, tops, beyond, floor, cap)
    if not runs_kernel(units):
        return admit_reference(
            units,
            rule,
            budget=budget,
            inverse=inverse,
            fill_to=fill_to,
            tops=tops,
            beyond=beyond,
            floor=floor,
            cap=cap,
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
        num_tops = 0 if tops is None else tops.shape[0]
        prices = _Prices(inverse, inverse.shape[0], fill_to, tops, num_tops, *(beyond or (None, None)))
    _admit_kernel[(1,)](
        batch,
        order,
        budget,
        prices,
        out,
        CHUNK=CHUNK,
        BLOCK_R=ROWS,
        BLOCK_G=triton.next_power_of_2(gamma),
        BLOCK_T=TOPS,
        num_warps=8,
    )
    return out
