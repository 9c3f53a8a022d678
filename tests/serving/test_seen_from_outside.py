"""A live server as Prometheus, Grafana's dashboard, a response's `meta_info` and `dspark doctor` see it."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("sglang", reason="needs the extra `serve`")

from live_server import LiveServer, write_profile  # noqa: E402
from prometheus_scrape import PROGRAM, Prometheus, as_grafana_asks  # noqa: E402

pytestmark = [pytest.mark.engine, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
PANELS = json.loads((ROOT / "dashboards" / "dspark.json").read_text())["panels"]
FLAG = "--speculative-dspark-"
STEPS = '{__name__=~"sglang[:_]dspark_decode_steps_total"}'


def doctor(server: LiveServer) -> tuple[int, dict]:
    """`dspark doctor --json` on a server: its exit status and its answer."""
    program = [sys.executable, "-c", "from sglang_dspark.cli import main; main()", "doctor", "--url", server.url]
    done = subprocess.run([*program, "--json"], capture_output=True, text=True)
    print(subprocess.run(program, capture_output=True, text=True).stdout)
    return done.returncode, json.loads(done.stdout)


def keys(answer: dict, *levels: str) -> set[str]:
    [one] = answer["replicas"]
    return {finding["key"] for finding in one["findings"] if finding["level"] in levels}


def measured_here(server: LiveServer, path: Path, batches: str = "1/4/8") -> Path:
    """A profile of this machine, by `dspark profile`."""
    program = [sys.executable, "-c", "from sglang_dspark.cli import main; main()", "profile", "--url", server.url]
    small = ("--batches", batches, "--contexts", "32", "--windows", "1", "--window", "0.5", "--max-new-tokens", "600")
    done = subprocess.run([*program, "--out", str(path), *small], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    print(done.stdout)
    return path


@pytest.fixture(scope="module")
def watched(demo_pair: Path, prompts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server that records, shadows and calibrates online, under a little load."""
    folder = tmp_path_factory.mktemp("watched")
    flags = (
        *(f"{FLAG}profile", str(write_profile(folder / "made.json")), f"{FLAG}policy", "self-tuning"),
        *(f"{FLAG}shadow-policy", "hull", f"{FLAG}record", str(folder / "records"), "--enable-metrics"),
    )
    with LiveServer(demo_pair, folder / "server.log", *flags, "--max-running-requests", "24") as running:
        running.folder = folder
        yield running


@pytest.mark.skipif(PROGRAM is None, reason="needs Debian's package `prometheus`")
def test_every_panel_has_data(watched: LiveServer, prompts: list[str], tmp_path: Path) -> None:
    with Prometheus(tmp_path, f"127.0.0.1:{watched.port}") as prometheus:
        found: dict[str, list] = {}
        queries = {target["expr"] for panel in PANELS for target in panel.get("targets", [])}
        for _ in range(12):
            watched.generate_all(prompts[:48], concurrency=16, tokens=48, temperature=1.0, ignore_eos=True)
            time.sleep(4)
            found = {query: prometheus.ask(as_grafana_asks(query)) for query in queries}
            values = [float(series["value"][1]) for one in found.values() for series in one]
            if all(found.values()) and all(map(math.isfinite, values)):
                break
        assert not [query for query, series in found.items() if not series], prometheus.problems()
        broken = {
            query: series for query, series in found.items() for one in series if one["value"][1] in ("NaN", "+Inf")
        }
        assert not broken
        for variable in ("model_name", "instance"):
            assert prometheus.ask(f"count by ({variable}) ({STEPS})")[0]["metric"][variable]
        print({query: series[0]["value"][1] for query, series in sorted(found.items())})


def test_metrics_agree_with_the_server_s_own_counters(watched: LiveServer, prompts: list[str]) -> None:
    watched.generate(prompts[0], 24, ignore_eos=True)
    counts = watched.counters()
    text = watched.http.get("/metrics").text

    def total(name: str) -> float:
        return sum(
            float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(f"sglang:dspark_{name}{{")
        )

    for name in ("verified", "accepted", "expected", "executed", "drafted"):
        assert total(f"{name}_tokens_total") == pytest.approx(counts[f"{name}_tokens"], rel=1e-6)
    for kind in ("verified", "accepted", "expected"):
        assert total(f"position_{kind}_tokens_total") == pytest.approx(counts[f"{kind}_tokens"], rel=1e-6)
        assert sum(counts[f"position_{kind}"]) == pytest.approx(counts[f"{kind}_tokens"], rel=1e-6)
    assert total("budget_tokens_count") == counts["decode_steps"] == total("tier_tokens_count")
    assert total("budget_tokens_sum") == counts["verified_tokens"]
    assert re.search(r'sglang:dspark_policy_info\{[^}]*policy="self-tuning[^}]*\} 1\.0', text)


@pytest.mark.parametrize(("policy", "share"), [("fixed:k=7", 1.0), ("fixed:k=3", 3 / 7), ("fixed:k=0", 0.0)])
def test_a_response_tells_its_own_acceptance(watched: LiveServer, prompts, policy: str, share: float) -> None:
    """SGLang's figures stay; what was verified of its drafts stands beside them."""
    watched.switch(policy)
    before = watched.counters()
    meta = watched.generate(prompts[1], 48, ignore_eos=True)["meta_info"]
    after = watched.counters()
    steps = meta["spec_verify_ct"]
    assert meta["spec_num_verified_drafts"] == pytest.approx(share * 7 * steps)
    assert meta["spec_accept_length"] == pytest.approx(meta["completion_tokens"] / steps)
    assert meta["spec_num_proposed_drafts"] == 7 * steps
    correct = meta["spec_num_correct_drafts"]
    if share:
        assert meta["spec_verified_accept_rate"] == pytest.approx(correct / meta["spec_num_verified_drafts"])
    # The overlapped loop decodes a finished request once more.
    assert 0 <= after["accepted_tokens"] - before["accepted_tokens"] - correct <= 7
    assert (correct + steps + 1) == pytest.approx(meta["completion_tokens"], abs=7)


def test_three_servers_are_told_apart(demo_pair: Path, prompts: list[str], tmp_path: Path) -> None:
    """A good one, an uncalibrated one, and one with a profile of other hardware."""
    load = {"concurrency": 8, "tokens": 48, "temperature": 1.0, "ignore_eos": True}
    small = ("--max-running-requests", "8")
    foreign = (f"{FLAG}profile", "vllm-b300-dsv4-flash", f"{FLAG}policy", "hull", f"{FLAG}allow-foreign-profile")
    with LiveServer(demo_pair, tmp_path / "foreign.log", *foreign, *small) as server:
        own = measured_here(server, tmp_path / "here.json")
        server.generate_all(prompts[:64], **load)
        status, answer = doctor(server)
        assert status == 1 and not answer["healthy"] and "foreign-profile" in keys(answer, "problem")
        [words] = [one for one in answer["replicas"][0]["findings"] if one["key"] == "foreign-profile"]
        assert "B300" in words["says"] and "cpu" in words["says"] and "dspark profile" in words["do"]
    plain = (f"{FLAG}profile", str(own))
    with LiveServer(demo_pair, tmp_path / "plain.log", *plain, f"{FLAG}policy", "hull", *small) as server:
        server.generate_all(prompts[:64], **load)
        _, answer = doctor(server)
        assert "uncalibrated" in keys(answer, "warning", "note")
        assert not keys(answer, "problem") - {"drift"}  # this machine's speed is anybody's guess
    with LiveServer(demo_pair, tmp_path / "good.log", *plain, f"{FLAG}policy", "self-tuning", *small) as server:
        server.generate_all(prompts[:96], **load)
        _, answer = doctor(server)
        assert "calibrated" in keys(answer, "good") and not keys(answer, "problem", "warning") - {"drift", "gain"}
        figures = answer["replicas"][0]["figures"]
        assert figures["accept_length"] > 1 and figures["gain_over_verifying_everything"] is not None
