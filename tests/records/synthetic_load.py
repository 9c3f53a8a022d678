"""A closed or open loop of load as an engine would record it: real policies, known step costs, known acceptance."""

from __future__ import annotations

import numpy as np
from synthetic_records import PROFILE, header_of

from sglang_dspark.cost import load_profile
from sglang_dspark.policies import LiveBlock, Past, SurvivalRing, make_policy
from sglang_dspark.records import Lagged, RecordWriter, RequestRecord, StepRecord
from sglang_dspark.records.costs import table_hash

GAMMA = 4


class Load:
    """Writes repetitions of loads into one folder, one run; idle between them."""

    def __init__(self, folder, policy="argmax:lag=2", explore=0.0, seed=0, slowdown=1.0):
        self.policy, self.text, self.explore = make_policy(policy), policy, explore
        self.writer = RecordWriter(folder, header_of(policy, GAMMA, explore_probability=explore))
        self.cost = load_profile(PROFILE)
        self.rng, self.now, self.steps, self.names = np.random.default_rng(seed), 5000.0, 0, 0
        self.slowdown, self.prefilled = slowdown, 0

    def seconds(self, requests, tokens):
        return self.slowdown * (0.004 + 0.0002 * requests + 0.0001 * tokens)

    def close(self):
        assert self.writer.close().dropped == 0

    def closed(self, concurrency, requests=40, output=60, repetitions=3):
        for _ in range(repetitions):
            self._run(concurrency, requests, output, None)
            self.now += 10.0
        return self

    def open(self, rate, requests=60, output=30):
        self._run(None, requests, output, self.now + np.cumsum(self.rng.exponential(1 / rate, size=requests)))
        self.now += 10.0
        return self

    def _run(self, concurrency, requests, output, arrivals):
        """Ease is a property of a request and drifts within it, so that lagged survivals say something."""
        ring = SurvivalRing(256, GAMMA, 4)
        waiting = list(range(requests))
        running, free, owner = [], list(range(255, -1, -1)), 0
        while waiting or running:
            while waiting and (len(running) < concurrency if concurrency else arrivals[waiting[0]] <= self.now):
                number, self.names, owner = waiting.pop(0), self.names + 1, owner + 1
                came = self.now if concurrency else float(arrivals[number])
                self.now += 0.002
                own = np.random.default_rng([17, number])
                length, self.prefilled = int(own.integers(output // 2, output * 3 // 2)), 20
                running.append(
                    {
                        "rid": f"q{self.names}",
                        "came": came,
                        "first": self.now,
                        "slot": free.pop(),
                        "owner": owner,
                        "want": length,
                        "have": 1,
                        "ease": own.normal(1.0, 0.8),
                        "steps": 0,
                        "own": own,
                    }
                )
            if not running:
                self.now = float(arrivals[waiting[0]])
                continue
            self._step(running, ring)
            for done in [r for r in running if r["have"] >= r["want"]]:
                running.remove(done)
                free.append(done["slot"])
                self.writer.put(
                    RequestRecord(
                        rid=done["rid"],
                        arrival_time_s=done["came"],
                        first_token_time_s=done["first"],
                        finish_time_s=self.now,
                        input_length=20,
                        output_length=done["want"],
                        num_steps=done["steps"],
                    )
                )

    def _step(self, running, ring):
        count = len(running)
        slots, owners = (np.array([r[key] for r in running]) for key in ("slot", "owner"))
        for r in running:
            r["ease"] = 0.9 * r["ease"] + 0.1 * 1.0 + 0.35 * r["own"].normal()
        logit = np.array([r["ease"] for r in running])[:, None] + 0.5 * self.rng.normal(size=(count, GAMMA))
        confidence = (1 / (1 + np.exp(-logit))).astype(np.float32)
        depth = np.cumprod(self.rng.random((count, GAMMA)) < confidence, axis=1).sum(axis=1)
        past = Past(
            count,
            GAMMA,
            self.cost.prices(count, GAMMA, 0.0),
            lambda lag: ring.look(slots, owners, lag),
            self.policy.start(GAMMA),
        )
        coin = self.explore > 0 and bool(self.rng.random() < self.explore)
        full = np.full(count, GAMMA)
        lengths = full if coin else self.policy.decide(past, LiveBlock.of(confidence)).lengths
        accepted = np.minimum(depth, lengths)
        anchor = np.array([r["have"] for r in running])
        took = self.seconds(count, count + int(lengths.sum()))
        shown = {lag: ring.look(slots, owners, lag) for lag in range(1, self.policy.max_lag + 1)}
        lagged = [Lagged(lag=lag, units=units.astype(np.int32), published=seen) for lag, (units, seen) in shown.items()]
        prefill = {"prefill_tokens": np.array([20]), "prefill_ago_s": np.array([0.002])} if self.prefilled else {}
        self.prefilled = 0
        self.writer.put(
            StepRecord(
                step=self.steps,
                time_s=self.now,
                slots=slots,
                generation=owners,
                rids=[r["rid"] for r in running],
                anchor=anchor,
                context_lengths=anchor + 20,
                temperature=np.ones(count, dtype=np.float32),
                policy=self.text,
                table=table_hash(self.cost),
                confidence=confidence,
                lengths=lengths,
                accepted=accepted,
                lagged=lagged,
                step_s=took,
                override="explore" if coin else "",
                explore=coin,
                explore_probability=self.explore,
                schedule="no-overlap",
                **prefill,
            )
        )
        if self.steps % 50 == 0:
            self.writer.flush()
        ring.publish(slots, owners, LiveBlock.of(confidence).units)
        self.now += took
        self.steps += 1
        for r, more in zip(running, accepted.tolist(), strict=True):
            r["have"] += more + 1
            r["steps"] += 1
