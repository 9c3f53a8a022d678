"""A recorded live server: every decision replays, requests are complete, and kill -9 loses no more than a flush."""

import os
import signal
import subprocess
import sys
import time

import pytest

pytest.importorskip("sglang", reason="needs the extra `serve`")

from live_server import LiveServer, write_profile  # noqa: E402

from sglang_dspark.errors import InputError  # noqa: E402
from sglang_dspark.records import ROUNDED, RecordSet  # noqa: E402
from sglang_dspark.records.blocks import uncensored_blocks  # noqa: E402
from sglang_dspark.records.replay import replay  # noqa: E402

pytestmark = pytest.mark.engine

POLICIES = (
    "hull",
    "argmax:lag=1",
    "argmax:lag=3,cold=prior",
    "early-stop",
    "lookahead",
    "threshold:t=0.5",
    "goodput",
    "tetris:capacity=20",
    "guard:inner=(hull),baseline=(fixed:k=2)",
    "fixed:k=7",
)


def test_every_decision_of_a_recorded_server_replays(demo_pair, prompts, tmp_path):
    profile = write_profile(tmp_path / "made.json")
    folder = tmp_path / "records"
    flags = (
        "--speculative-dspark-profile",
        str(profile),
        "--speculative-dspark-schedule",
        "synchronous",
        "--speculative-dspark-record",
        str(folder),
        "--speculative-dspark-explore",
        "0.15",
        "--speculative-dspark-shadow-policy",
        "argmax:lag=1",
    )
    with LiveServer(demo_pair, tmp_path / "server.log", *flags) as server:
        for policy in POLICIES:
            server.switch(policy)
            server.generate_all(prompts[:8], concurrency=8, tokens=24, temperature=0.8, ignore_eos=True)
        server.generate("import os", 1)
        time.sleep(2.5)
        seen = {request.rid for request in RecordSet(folder).requests()}
        before = RecordSet(folder).scan().steps
        os.killpg(server.process.pid, signal.SIGKILL)
    records = RecordSet(folder)
    result = replay(records)
    assert result.different == 0 and not result.skipped, result.first
    assert result.equal > 50 and result.verified_all > 5
    assert records.summary.problems == [] and records.summary.steps >= before and records.summary.dropped == 0
    requests = list(records.requests())
    assert seen == {request.rid for request in requests} and len(requests) >= 8 * len(POLICIES) + 1
    ours = [request for request in requests if request.max_new_tokens == 24]
    assert all(r.output_length == 24 and r.prompt is None and r.temperature == pytest.approx(0.8) for r in ours)
    assert all(r.arrival_time_s < r.first_token_time_s <= r.finish_time_s for r in ours)
    steps = [step for _, step in records.steps()]
    assert {step.policy.partition(":")[0] for step in steps} >= {policy.partition(":")[0] for policy in POLICIES}
    assert any(step.explore for step in steps) and any(step.shadow is not None for step in steps)
    assert all(step.fresh is not None and step.draft_s > 0 and step.verify_s > 0 for step in steps)
    assert len(uncensored_blocks(records)) > 50


def test_the_overlapped_schedule_replays_too(demo_pair, prompts, tmp_path):
    profile = write_profile(tmp_path / "made.json")
    folder = tmp_path / "records"
    flags = ("--speculative-dspark-profile", str(profile), "--speculative-dspark-record", str(folder))
    with LiveServer(demo_pair, tmp_path / "server.log", *flags) as server:
        for policy in ("argmax:lag=2", "argmax:lag=4,pricing=floor", "goodput", "schedule:upto=4,k=5/2"):
            server.switch(policy)
            server.generate_all(prompts[:6], concurrency=6, tokens=24, temperature=1.0, ignore_eos=True)
        time.sleep(2.5)
    records = RecordSet(folder)
    result = replay(records)
    assert result.different == 0 and not result.skipped and result.equal > 40, result.first
    lagged = [step for _, step in records.steps() if step.lagged]
    assert lagged and {item.lag for step in lagged for item in step.lagged} <= {2, 3, 4}


def test_an_unmodified_worker_is_drained(demo_pair, prompts, tmp_path):
    """None of our flags, SGLang's own worker and debug dump; rounded confidences, so figures but no exact replay."""
    folder = tmp_path / "drained"
    table = write_profile(tmp_path / "made.json")
    dump = "core,reqs,step_cpu_time"
    environment = {"SGLANG_DSPARK_DEBUG_DUMP": dump, "SGLANG_RAGGED_VERIFY_MODE": "cap-accept"}
    flags = ("--speculative-dspark-sps-table-path", str(table))
    with LiveServer(demo_pair, tmp_path / "server.log", *flags, env=environment) as server:
        assert "dspark" not in server.http.get("/server_info").json()["internal_states"][0]
        server.generate_all(prompts[:12], concurrency=6, tokens=24, temperature=1.0, ignore_eos=True)
        command = [sys.executable, "-c", "from sglang_dspark.cli import main; main()", "record"]
        done = subprocess.run([*command, "--url", server.url, "--out", str(folder)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    records = RecordSet(folder)
    assert records.header().fidelity == ROUNDED and records.header().gamma == 7
    steps = [step for _, step in records.steps()]
    assert len(steps) > 20 and all(step.confidence is not None for step in steps)
    assert {rid for step in steps for rid in step.rids or ()} and all(step.mode == "cap-accept" for step in steps)
    assert len(uncensored_blocks(records)) > 100
    with pytest.raises(InputError, match="cannot be replayed"):
        replay(records)
