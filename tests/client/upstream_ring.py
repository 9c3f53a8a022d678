"""SGLang's ring of step records (dspark_observability.py, DsparkInfoDumper), and a server that shows nothing else.

Numbered by the scheduler's forwards, prefills included; the oldest fall out of a full ring; a clear forgets all.
"""

from __future__ import annotations

import json
from collections import deque

import numpy as np

GAMMA = 4


class UpstreamRing:
    """longest: records in the ring. late: decode steps that run between a reading and whatever comes next.

    decoded: steps in all. lives: [steps decoded, the last of them that any reading showed] of each life of the server.
    """

    def __init__(self, longest=200_000, late=0, seed=0):
        self.steps, self.late = deque(maxlen=longest), late
        self.rng = np.random.default_rng(seed)
        self.forwards = self.decoded = self.names = 0
        self.running: dict[str, int] = {}
        self.lives = [[0, 0]]

    def prefill(self):
        self.forwards += 1
        self.names += 1
        self.running[f"r{self.names}"] = int(self.rng.integers(5, 50))

    def finish(self):
        self.running.pop(next(iter(self.running), None), None)

    def decode(self, count=1):
        if not self.running:
            self.prefill()
        for _ in range(count):
            self.forwards += 1
            self.decoded += 1
            self.lives[-1][0] += 1
            rows = []
            for slot, (rid, prefix) in enumerate(self.running.items()):
                correct = int(self.rng.integers(0, GAMMA + 1))
                rows.append(
                    {
                        "req_pool_index": slot,
                        "prefix_len": prefix,
                        "verify_len": GAMMA + 1,
                        "acc_len": correct + 1,
                        "correct_drafts": correct,
                        "cap_trim": 0,
                        "rid": rid,
                        "confidence": [0.5] * GAMMA,
                    }
                )
                self.running[rid] += correct + 1
            self.steps.append(
                {
                    "forward_ct": self.forwards,
                    "mode": "compact",
                    "reqs": rows,
                    "step_cpu_ms": 10.0,
                    "number": self.lives[-1][0],
                }
            )

    def restart(self):
        """The server is another process, with the same kind of load."""
        self.steps.clear()
        self.running, self.forwards = {}, 0
        self.lives.append([0, 0])

    def info(self):
        shown = {
            "mode": "compact",
            "gamma": GAMMA,
            "components": ["core", "reqs"],
            "simulate_acc_len": None,
            "records": list(self.steps),
        }
        if self.steps:
            self.lives[-1][1] = self.steps[-1]["number"]
        if self.late:
            self.decode(self.late)
        return shown


class RingServer:
    """What `Drain` asks a server for, without HTTP. away: it does not answer."""

    def __init__(self, *rings):
        self.rings, self.away, self.cleared = rings, None, 0

    def get_bytes(self, path):
        assert path == "/server_info"
        if self.away is not None:
            raise self.away
        states = [{"dspark_info_record": ring.info()} for ring in self.rings]
        return json.dumps({"internal_states": states, "version": "0.5.23"}).encode()

    def decode(self, path, answer):
        return json.loads(answer)

    def post(self, path, body):
        assert (path, body) == ("/set_internal_state", {"server_args": {"dspark_clear_info_records": 1}})
        self.cleared += 1
        for ring in self.rings:
            ring.steps.clear()
