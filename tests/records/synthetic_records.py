"""Steps as an engine would record them, made with the real policies on drawn confidences."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from sglang_dspark.cost import StepCost, load_profile
from sglang_dspark.policies import LiveBlock, Outcome, Past, SurvivalRing, make_policy, timing_of
from sglang_dspark.records import Header, Lagged, RequestRecord, StepRecord
from sglang_dspark.records.costs import cost_to_plain, table_hash

PROFILE = "vllm-b300-dsv4-flash"


def header_of(policy: str, gamma: int, cost: StepCost | None = None, **fields: object) -> Header:
    cost = cost or load_profile(PROFILE)
    return Header(
        gamma=gamma,
        policy=policy,
        profile=cost.name,
        costs={table_hash(cost): cost_to_plain(cost)},
        profile_meta={"hardware": "synthetic"},
        engine={"max_running_requests": 48},
        **fields,
    )


def synthetic_steps(
    policy: str = "argmax:lag=2",
    steps: int = 40,
    gamma: int = 5,
    slots: int = 12,
    seed: int = 0,
    explore: float = 0.0,
    mode: str = "compact",
    temperature: float = 1.0,
    sharpness: float = 1.0,
) -> Iterator[StepRecord]:
    """Requests come and go; depth is drawn from the confidences (sharpness 1: calibrated)."""
    rng = np.random.default_rng(seed)
    rule, cost = make_policy(policy), load_profile(PROFILE)
    table, lags = table_hash(cost), range(1, max(rule.max_lag, 1) + 1)
    ring, carry = SurvivalRing(slots, gamma, depth=lags[-1]), rule.start(gamma)
    generation = np.ones(slots, dtype=np.int64)
    position = np.ones(slots, dtype=np.int64)
    alive = rng.random(slots) < 0.6
    for number in range(steps):
        alive[int(rng.integers(slots))] = True
        rows = rng.permutation(np.flatnonzero(alive))
        requests = len(rows)
        true = np.clip(rng.beta(4, 1.2, size=(requests, gamma)), 0.01, 0.99)
        logit = np.log(true / (1 - true)) * sharpness
        confidence = (1 / (1 + np.exp(-logit))).astype(np.float32)
        depth = np.cumprod(rng.random((requests, gamma)) < true, axis=1).sum(axis=1)
        shown = [
            Lagged(lag=lag, units=units.astype(np.int32), published=published)
            for lag in lags
            for units, published in [ring.look(rows, generation[rows], lag)]
        ]
        context = position[rows] + 200
        live = LiveBlock.of(confidence)
        past = Past(
            requests,
            gamma,
            cost.prices(requests, gamma, float(context.sum())),
            lambda lag, rows=rows: ring.look(rows, generation[rows], lag),
            carry,
        )
        coin = explore > 0 and bool(rng.random() < explore)
        full = np.full(requests, gamma)
        lengths = full if coin else rule.decide(past, live).lengths
        accepted = np.minimum(depth, lengths)
        capped = mode == "cap-accept"
        verified = requests + int((full if capped else lengths).sum())
        yield StepRecord(
            step=number,
            time_s=1000.0 + 0.02 * number,
            mode=mode,
            slots=rows,
            generation=generation[rows],
            rids=[f"r{slot}.{generation[slot]}" for slot in rows],
            fresh=~shown[-1].published,
            anchor=position[rows],
            context_lengths=context,
            temperature=np.full(requests, temperature, dtype=np.float32),
            top_p=np.ones(requests, dtype=np.float32),
            policy=policy,
            carry=carry,
            table=table,
            context_tokens=float(context.sum()),
            confidence=confidence,
            lagged=shown if rule.max_lag else [],
            override="explore" if coin else "",
            explore=coin,
            explore_probability=explore,
            lengths=lengths,
            accepted=accepted,
            depth=depth if capped else None,
            graph_tokens=verified,
            draft_s=0.001 + 1e-5 * requests,
            verify_s=0.01 + 2e-5 * verified,
            step_s=0.0115 + 3e-5 * verified,
        )
        ring.publish(rows, generation[rows], live.units)
        if rule.learns:
            timing = timing_of(past.prices, requests, int(lengths.sum()), 0.0115 + 3e-5 * verified)
            carry = rule.learn(carry, Outcome(live.units, lengths, accepted, timing))
        position[rows] += accepted + 1
        for slot in rows[rng.random(requests) < 0.05]:
            alive[slot], position[slot] = False, 1
            generation[slot] += 1


def synthetic_request(number: int = 0, **fields: object) -> RequestRecord:
    values = {
        "rid": f"r{number}",
        "arrival_time_s": 1000.0 + number,
        "first_token_time_s": 1000.5 + number,
        "finish_time_s": 1003.0 + number,
        "input_length": 100,
        "output_length": 64,
        "temperature": 0.7,
    }
    return RequestRecord(**{**values, **fields})
