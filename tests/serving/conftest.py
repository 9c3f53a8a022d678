"""Fixtures of the live-engine tests: a trained pair, and one server that many tests share."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def demo_pair() -> Path:
    """A trained CI pair: DSPARK_DEMO_PAIR, or one that is trained once and kept in the user's cache."""
    pytest.importorskip("sglang", reason="needs the extra `serve`")
    given = os.environ.get("DSPARK_DEMO_PAIR")
    if given:
        return Path(given)
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "sglang-dspark" / "pair-ci"
    program = [sys.executable, "-c", "from sglang_dspark.cli import main; main()"]
    subprocess.run([*program, "demo-model", "--out", str(cache), "--size", "ci", "--threads", "2"], check=True)
    return cache


@pytest.fixture(scope="session")
def prompts(demo_pair: Path) -> list[str]:
    """Unseen prompts of the pair: Python first, then structured text."""
    texts = []
    for name in ("python", "json", "csv", "logs"):
        lines = (demo_pair / "prompts" / f"{name}.jsonl").read_text().splitlines()
        texts += [json.loads(line)["turns"][0] for line in lines]
    return texts


@pytest.fixture(scope="session")
def reference(demo_pair: Path):
    """The plain target's greedy text."""
    from greedy_reference import GreedyReference

    return GreedyReference(demo_pair / "target")


@pytest.fixture(scope="session")
def server(demo_pair: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    """One recorded server, on which every lossless policy can be switched on; tests leave any policy behind."""
    from live_server import LiveServer, write_profile

    folder = tmp_path_factory.mktemp("server")
    profile = write_profile(folder / "made.json")
    flags = ("--speculative-dspark-profile", str(profile), "--speculative-dspark-record", str(folder / "records"))
    # A tiny model left alone with a grammar fills its answer with the white space that JSON allows.
    more = ("--enable-metrics", "--constrained-json-disable-any-whitespace")
    with LiveServer(demo_pair, folder / "server.log", *flags, *more) as running:
        running.records = folder / "records"
        yield running
