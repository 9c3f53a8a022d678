"""A stand-in for a server with CUDA graphs: steps of milliseconds, priced by the padded tier, and requests that end."""

from __future__ import annotations

import time

from fake_server import GAMMA, FakeServer

WIDTH = GAMMA + 1
CAPTURED = (1, 2, 3, 4, 6, 8, 12, 16)
WAIT_S = 0.00015
RISES = (0.2, 0.0, 0.25, 0.02, 0.4, 0.1, 0.3)


class StairServer(FakeServer):
    """Requests decode from the moment they are sent until they have as many tokens as they asked for."""

    def __init__(self, kv_tokens: int = 1 << 20, longest: int = 4096, limit: int = 12, accepted: float = 0.9) -> None:
        super().__init__()
        self.kv_tokens, self.longest, self.limit, self.accepted = kv_tokens, longest, limit, accepted
        self.left: dict[str, float] = {}
        self.grown: dict[str, float] = {}

    @staticmethod
    def executed(tokens: int) -> int:
        return next(size * WIDTH for size in CAPTURED if size * WIDTH >= tokens)

    @staticmethod
    def stair_s(executed: int) -> float:
        """Rises that no line follows: nothing for one tier, a fifth for the next."""
        return 0.0006 * (1.0 + sum(RISES[: CAPTURED.index(executed // WIDTH)]))

    def step_s(self, requests: int, tokens: int, context: float) -> float:
        drafted = next(size for size in CAPTURED if size >= requests)
        return 0.0002 + 2e-5 * drafted + self.stair_s(self.executed(tokens)) + 1e-8 * context

    def waits_s(self) -> float:
        """What this server waits for a copy in every step of a policy that needs survivals."""
        return WAIT_S if self.policy.startswith("tetris") else 0.0

    def tick(self) -> None:
        now = time.perf_counter()
        while self.left:
            requests = len(self.left)
            kind, _, value = self.policy.partition("=")
            full = requests * WIDTH
            tokens = requests if self.policy == "fixed:k=0" else full
            if kind == "tetris:capacity":
                tokens = min(max(int(value), requests), full)
            context = sum(self.grown.values())
            seconds = self.step_s(requests, tokens, context) + self.waits_s()
            growth = 1 + self.accepted * (tokens - requests) / requests
            steps = int((now - self.last) / seconds)
            until = int(min(self.left.values()) / growth) + 1
            steps = min(steps, until, 20)
            if steps <= 0:
                return
            self.last += steps * seconds
            for key, amount in {
                "timed_steps": steps,
                "timed_s": steps * seconds,
                "timed_requests": steps * requests,
                "timed_verified": steps * tokens,
                "timed_executed": steps * self.executed(tokens),
                "timed_committed": steps * requests * growth,
            }.items():
                self.counters[key] += amount
            for rid in list(self.left):
                self.left[rid] -= steps * growth
                self.grown[rid] += steps * growth
                if self.left[rid] <= 0 or rid in self.aborted:
                    del self.left[rid], self.grown[rid]
        self.last = now

    def get(self, path):
        status, value = super().get(path)
        if path == "/server_info":
            value["internal_states"][0]["dspark"] |= {
                "graphs": {"requests": list(CAPTURED), "tokens_per_request": WIDTH},
                "limits": {"max_running_requests": self.limit, "kv_tokens": self.kv_tokens},
            }
        return status, value

    def post(self, path, body):
        if path != "/generate":
            answer = super().post(path, body)
            if path == "/abort_request":
                with self.lock:
                    self.left.pop(body["rid"], None)
                    self.grown.pop(body["rid"], None)
            return answer
        with self.lock:
            self.tick()
            self.left[body["rid"]] = body["sampling_params"]["max_new_tokens"]
            self.grown[body["rid"]] = len(body["input_ids"])
        while body["rid"] in self.left:
            time.sleep(0.02)
            with self.lock:
                self.tick()
        return 200, {"text": "", "meta_info": {"id": body["rid"]}}
