"""A real Prometheus (Debian's package) that scrapes one live server, and is asked like Grafana would."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx
from live_server import free_port

PROGRAM = shutil.which("prometheus")


class Prometheus:
    """One process; `with` starts and stops it."""

    def __init__(self, folder: Path, target: str) -> None:
        self.folder, self.port = folder, free_port()
        (folder / "prometheus.yml").write_text(
            "global: {scrape_interval: 3s, scrape_timeout: 3s}\n"
            "scrape_configs:\n"
            f"  - {{job_name: sglang, static_configs: [{{targets: ['{target}']}}]}}\n"
        )

    def __enter__(self) -> Prometheus:
        assert PROGRAM is not None
        command = [
            *(PROGRAM, f"--config.file={self.folder / 'prometheus.yml'}"),
            *(f"--storage.tsdb.path={self.folder / 'tsdb'}", f"--web.listen-address=127.0.0.1:{self.port}"),
        ]
        with (self.folder / "prometheus.log").open("wb") as log:
            self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                if httpx.get(f"http://127.0.0.1:{self.port}/-/ready").status_code == 200:
                    return self
            except httpx.HTTPError:
                pass
            time.sleep(0.2)
        raise RuntimeError((self.folder / "prometheus.log").read_text()[-2000:])

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(timeout=30)

    def problems(self) -> list[str]:
        """What went wrong with the last scrapes."""
        found = httpx.get(f"http://127.0.0.1:{self.port}/api/v1/targets").json()["data"]["activeTargets"]
        return [one["lastError"] for one in found if one["health"] != "up"]

    def ask(self, query: str) -> list[dict[str, Any]]:
        """An instant query's series; the query's own error is raised."""
        answer = httpx.get(f"http://127.0.0.1:{self.port}/api/v1/query", params={"query": query}).json()
        assert answer["status"] == "success", (query, answer)
        return answer["data"]["result"]


def as_grafana_asks(query: str) -> str:
    """With the dashboard's variables filled in as `All`, and a rate interval of a minute."""
    filled = query.replace("$model", ".*").replace("$instance", ".*").replace("$__rate_interval", "1m")
    assert "$" not in filled, filled
    return filled
