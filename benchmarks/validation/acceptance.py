"""The paper's acceptance: Figure 2 and Table 1 (lengths), Figure 5 (thresholds), Figure 6 (reliability)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from simulator import DRAFTERS, Confidence
from simulator.blocks.acceptance import BlockTable, StatisticalAcceptance
from simulator.blocks.drafters import DOMAINS, Drafter
from simulator.blocks.survival import accept_length

from .rows import CONSTRUCTION, FITTED, IN_SAMPLE, Group, Row, Section, Tried, errors
from .tables import table
from .worlds import at_length, drafter_of, serve, step_cost

METHODS = {"dspark": "DSpark", "dflash": "DFlash", "eagle3": "EAGLE-3"}
TARGETS = ("qwen3-4b", "qwen3-8b", "qwen3-14b", "gemma4-12b")
REQUESTS, TOKENS = 400, 600
BINS = 20


@lru_cache(maxsize=64)
def walked(drafter: str, domain: str, calibration: str = "sts") -> tuple[np.ndarray, np.ndarray]:
    """(accepted depth [n], reported survivals [n, gamma]) of the blocks that requests meet when all is verified."""
    known = DRAFTERS[drafter]
    one = drafter_of(known.name, known.acceptance[domain])
    length = np.full(REQUESTS, TOKENS, dtype=np.int64)
    source = StatisticalAcceptance(one, Confidence.of(calibration), np.zeros(REQUESTS, dtype=np.int64), length, 0)
    depths, units = [], []
    for request in range(REQUESTS):
        blocks = BlockTable.empty(TOKENS, one.gamma, confidence=False)
        source.fill(request, 0, blocks)
        at, met = 0, []
        while at < TOKENS:
            met.append(at)
            at += int(blocks.depth[at]) + 1
        depths.append(blocks.depth[met])
        units.append(blocks.units[met])
    return np.concatenate(depths), np.concatenate(units) * 2.0**-24


def figure2() -> list[Row]:
    """Conditional acceptance by position."""
    rows = []
    for method, label in METHODS.items():
        drafter: Drafter = DRAFTERS[method]
        for domain in DOMAINS:
            depth, _ = walked(method, domain)
            for position, said in enumerate(drafter.acceptance[domain], start=1):
                here, before = (depth >= position).sum(), (depth >= position - 1).sum()
                what = f"{label}, {domain}, position {position}"
                rows.append(Row(what, said, here / before, "share", CONSTRUCTION))
    return rows


def table1() -> list[Row]:
    """Mean accepted length by domain: of Qwen3-4B out of Figure 2's positions, of others shifted to it."""
    lengths = _published_lengths()
    cost = step_cost("any", lambda tokens: 1e-2 + 1e-5 * tokens, lambda requests: 1e-3 + 0 * requests, 512, 64)
    rows = []
    for target in TARGETS:
        for method, label in METHODS.items():
            for domain in DOMAINS:
                drafter = DRAFTERS[f"{method}:{target}"]
                one = drafter_of(drafter.name, drafter.acceptance[domain])
                got = serve(cost, one, "fixed:k=7", 32, requests=160)["accept_length"]
                kind = CONSTRUCTION if target == "qwen3-4b" else FITTED
                rows.append(Row(f"{target}, {label}, {domain}", lengths[target, method, domain], got, "tokens", kind))
    return rows


def _published_lengths() -> dict[tuple[str, str, str], float]:
    """Means of a domain's three data sets. Of other targets than Qwen3-4B that is what the drafters were shifted to."""
    found = {}
    for target in TARGETS:
        for method in METHODS:
            name = f"{method}:{target}" + ("-table1" if target == "qwen3-4b" else "")
            for domain, values in DRAFTERS[name].acceptance.items():
                found[target, method, domain] = accept_length(values)
    return found


@lru_cache(maxsize=256)
def threshold(domain: str, at: float, calibration: str) -> tuple[float, float]:
    """(accepted tokens, bonus included, and rejected ones, per step) where confidences below `at` end a block."""
    first = next(row for row in table("figure5") if row["domain"] == domain and float(row["confidence_threshold"]) == 0)
    accept = at_length(DRAFTERS["dspark"].acceptance[domain], float(first["accepted_tokens_per_step_incl_bonus"]))
    cost = step_cost("any", lambda tokens: 1e-2 + 1e-5 * tokens, lambda requests: 1e-3 + 0 * requests, 512, 64)
    head = Confidence.of(calibration)
    got = serve(cost, drafter_of("DSpark", accept), f"threshold:t={at:g}", 32, confidence=head, requests=128)
    return got["accept_length"], got["verified_tokens_per_request_step"] - got["accept_length"]


def figure5(calibration: str = "calibrated", domains: Sequence[str] = DOMAINS) -> list[Row]:
    """Accepted and rejected tokens by threshold."""
    rows = []
    for row in table("figure5"):
        if row["domain"] not in domains:
            continue
        at = float(row["confidence_threshold"])
        got = threshold(row["domain"], at, calibration)
        for name, value, key in zip(
            ("accepted", "rejected"),
            got,
            ("accepted_tokens_per_step_incl_bonus", "rejected_tokens_per_step"),
            strict=True,
        ):
            rows.append(Row(f"{row['domain']}, threshold {at:g}, {name}", float(row[key]), value, "tokens", IN_SAMPLE))
    return rows


def figure6() -> list[Row]:
    """Observed survival by reported one, before and after STS, weighted by how often it is reported."""
    rows = []
    for stage, calibration in (("before", "raw"), ("after", "sts")):
        depth, survival = walked("dspark", "chat", calibration)
        for row in table("figure6"):
            if row["calibration"] != stage:
                continue
            position, said = int(row["position"]), float(row["predicted"])
            bins = np.minimum((survival[:, position - 1] * BINS).astype(int), BINS - 1)
            inside = bins == min(int(said * BINS), BINS - 1)
            count = int(inside.sum())
            got = float((depth[inside] >= position).mean()) if count else float("nan")
            what = f"{stage} STS, position {position}, reported {said:.2f}"
            if count:
                rows.append(Row(what, float(row["observed"]), got, "share", IN_SAMPLE, count / len(depth)))
    return rows


def section(short: bool = False) -> Section:
    """short: Figure 2 alone."""
    groups = [Group("Figure 2, conditional acceptance", tuple(figure2()), short=True)]
    if not short:
        groups += [
            Group("Table 1, accepted length", tuple(table1()), short=True, checked=False),
            Group("Figure 5, tokens a step by confidence threshold", tuple(figure5()), short=True, checked=False),
            Group("Figure 6, reliability of survivals", tuple(figure6()), short=True, checked=False),
        ]
    return Section(
        "acceptance",
        "The paper's acceptance: Table 1, Figures 2, 5 and 6",
        "These figures are where the simulator's blocks come from, so they show that what went in comes out, not that "
        "it predicts. Figure 2 is the acceptance itself; of Table 1 (means of a domain's three data sets) Qwen3-4B's "
        "lengths follow from Figure 2, which are the same runs, and others are shifted to it; the spreads of "
        "confidences were fitted to Figure 5 as a whole (two numbers for 60 values), bias and temperature to Figure 6 "
        "(two for each stage).",
        tuple(groups),
        () if short else _tried(),
    )


def _tried() -> tuple[Tried, ...]:
    words = {
        "calibrated": "exactly calibrated, as the spreads were fitted",
        "raw": "the raw head's",
        "sts": "after STS",
    }
    return tuple(
        Tried(f"Figure 5 with confidences {said}", (errors(figure5(name)),), name == "calibrated")
        for name, said in words.items()
    )
