"""A stand-in for a running server: policies, counters that move with time, answers, SGLang's own records."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

GAMMA = 4


class FakeServer:
    """rates: tokens per decode second by policy. Counters advance by the clock, whatever is asked."""

    def __init__(self, rates=None, dspark=True, busy=True):
        self.rates, self.dspark, self.busy = rates or {}, dspark, busy
        self.policy, self.switches, self.bodies, self.aborted, self.cleared = "argmax:lag=2", [], [], [], 0
        self.info = self.ring = self.refuses = None
        self.running, self.longest = 0, 4096
        self.lock = threading.Lock()
        self.counters = dict.fromkeys(
            ["timed_steps", "timed_s", "timed_requests", "timed_verified", "timed_executed", "timed_committed"], 0
        )
        self.last = time.perf_counter()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *arguments):
                pass

            def do_GET(self):
                self.answer(*outer.get(self.path))

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                self.answer(*outer.post(self.path, body))

            def answer(self, status, value):
                data = b"" if value is None else json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

        self.http = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def close(self):
        self.http.shutdown()
        self.http.server_close()

    def shown(self):
        """As GET /dspark/policy: every switch holds from another step on."""
        return {"policy": self.policy, "ranks": [{"policy": self.policy, "since_step": len(self.switches)}]}

    def step_seconds(self, requests, tokens):
        return 0.002 + 0.0005 * requests + 0.0001 * tokens

    def tick(self):
        """Advance the counters to now, under the present policy."""
        now = time.perf_counter()
        requests = self.running or 4
        kind, _, value = self.policy.partition("=")
        tokens = (
            int(value) if kind == "tetris:capacity" else requests * (1 if self.policy == "fixed:k=0" else 1 + GAMMA)
        )
        seconds = self.step_seconds(requests, tokens)
        steps = int((now - self.last) / seconds) if self.busy else 0
        self.last += steps * seconds
        self.counters["timed_steps"] += steps
        self.counters["timed_s"] += steps * seconds
        self.counters["timed_requests"] += steps * requests
        self.counters["timed_verified"] += steps * tokens
        self.counters["timed_executed"] += steps * tokens
        self.counters["timed_committed"] += steps * seconds * self.rates.get(self.policy, 100.0)

    def get(self, path):
        with self.lock:
            self.tick()
            if path == self.refuses:
                return 401, {"error": "Unauthorized"}
            if path == "/dspark/policy":
                return (200, self.shown()) if self.dspark else (404, {"detail": "Not Found"})
            if path == "/v1/models":
                return 200, {"data": [{"id": "m", "max_model_len": self.longest}]}
            if path != "/server_info":
                return 404, None
            state = {"memory_usage": {}}
            if self.dspark:
                state["dspark"] = {
                    "gamma": GAMMA,
                    "counters": dict(self.counters),
                    "schedule": "overlapped",
                    "gpu_memory_gib": 79.63,
                    "limits": {"max_running_requests": 2},
                }
            if self.info is not None:
                state["dspark_info_record"] = self.info()
            return 200, {"internal_states": [state], "version": "0.5.23", "device": "cpu", "model_path": "/x/model"}

    def post(self, path, body):
        if path == "/generate":
            with self.lock:
                self.tick()
                self.bodies.append(body)
                self.running += 1
            end = time.perf_counter() + (0.01 if body["sampling_params"]["max_new_tokens"] < 500 else 5.0)
            while time.perf_counter() < end and body.get("rid") not in self.aborted:
                time.sleep(0.01)
            with self.lock:
                self.tick()
                self.running -= 1
            meta = {"id": body.get("rid"), "completion_tokens": 30, "spec_verify_ct": 10, "spec_num_correct_drafts": 19}
            return 200, {"text": " answer", "meta_info": meta}
        with self.lock:
            self.tick()
            if path == "/dspark/policy":
                if body["policy"] == "argmax-live":
                    return 400, {"error": "policy 'argmax-live' is not lossless"}
                self.policy = body["policy"]
                self.switches.append(self.policy)
                return 200, self.shown()
            if path == "/abort_request":
                self.aborted.append(body["rid"])
                return 200, None
            self.cleared += "dspark_clear_info_records" in body["server_args"]
            if self.ring is not None:
                self.ring.steps.clear()
            return 200, [True]
