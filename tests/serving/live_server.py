"""Starts a real SGLang server on this machine's CPU and talks to it over HTTP."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

START_TIMEOUT_S = 300.0


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class LiveServer:
    """One server process; `with` starts and stops it. records: where it records, if it does."""

    records: Path | None = None

    def __init__(self, pair: Path, log: Path, *flags: str, env: dict[str, str] | None = None) -> None:
        self.pair, self.log, self.flags = pair, log, flags
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.env = {**os.environ, "TOKENIZERS_PARALLELISM": "false", **(env or {})}
        self.http = httpx.Client(base_url=self.url, timeout=300, limits=httpx.Limits(max_connections=1024))

    def command(self) -> list[str]:
        """The command line that a user would type."""
        draft = ["--speculative-algorithm", "DSPARK", "--speculative-draft-model-path", str(self.pair / "draft")]
        return [
            *(sys.executable, "-m", "sglang.launch_server", "--model-path", str(self.pair / "target")),
            *(*draft, "--port", str(self.port), *self.flags),
        ]

    def __enter__(self) -> LiveServer:
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                self.command(), stdout=output, stderr=subprocess.STDOUT, env=self.env, start_new_session=True
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"the server left with {self.process.returncode}:\n{self.tail()}")
            try:
                if self.http.get("/health", timeout=5).status_code == 200:
                    return self
            except httpx.HTTPError:
                pass
            time.sleep(0.5)
        self.__exit__()
        raise RuntimeError(f"the server was not ready after {START_TIMEOUT_S:.0f} s:\n{self.tail()}")

    def __exit__(self, *_: object) -> None:
        self.http.close()
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self.process.pid, number)
                self.process.wait(timeout=20)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue

    def tail(self, lines: int = 30) -> str:
        """The end of the server's log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def generate(self, prompt: str | list[int], tokens: int = 32, temperature: float = 0.0, **more: Any) -> dict:
        """SGLang's own /generate; raises on an HTTP error. Extra sampling parameters and request fields go by name."""
        fields = {key: more.pop(key) for key in ("return_logprob", "top_logprobs_num") if key in more}
        key = "text" if isinstance(prompt, str) else "input_ids"
        sampling = {"max_new_tokens": tokens, "temperature": temperature, **more}
        answer = self.http.post("/generate", json={key: prompt, "sampling_params": sampling, **fields})
        answer.raise_for_status()
        return answer.json()

    def generate_all(self, prompts: list[Any], concurrency: int = 32, **arguments: Any) -> list[dict]:
        """`generate` for every prompt, some at a time, in order."""
        with ThreadPoolExecutor(concurrency) as pool:
            return list(pool.map(lambda prompt: self.generate(prompt, **arguments), prompts))

    def switch(self, policy: str) -> dict:
        """POST /dspark/policy."""
        answer = self.http.post("/dspark/policy", json={"policy": policy})
        assert answer.status_code == 200, answer.text
        return answer.json()

    def counters(self) -> dict[str, Any]:
        """The engine's counters of replica 0, once it has settled."""
        time.sleep(0.3)
        state = self.http.get("/server_info").json()["internal_states"][0]["dspark"]
        return state["counters"]

    def metrics(self, name: str) -> list[str]:
        """The lines of /metrics that start with `name` (--enable-metrics)."""
        return [line for line in self.http.get("/metrics").text.splitlines() if line.startswith(name)]

    def works(self) -> None:
        """The server still answers a plain request."""
        assert len(self.generate("import os\n", 8, ignore_eos=True)["output_ids"]) == 8


def write_profile(path: Path, step_s: dict[int, float] | None = None) -> Path:
    """A profile of this machine's kind: step seconds by verified tokens, with a cliff that policies react to."""
    probes = step_s or {1: 0.010, 8: 0.012, 9: 0.020, 16: 0.021, 32: 0.030, 64: 0.060, 512: 0.500}
    rates = [1.0 / seconds for seconds in probes.values()]
    table = {"sample_batch_tokens": list(probes), "sample_steps_per_sec": rates, "max_batch_tokens": max(probes)}
    meta = {"hardware": "cpu", "how": "made for a test", "sweep": "off-diagonal"}
    path.write_text(json.dumps({**table, "meta": meta}))
    return path
