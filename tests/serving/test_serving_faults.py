"""Parts of ours that fail on a live server, many in one start: every request is answered, greedy text is the target's,
and the fault is shown in one place."""

from __future__ import annotations

import base64
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("sglang", reason="needs the extra `serve`")

from live_server import LiveServer, write_profile  # noqa: E402
from planted_faults import Planted  # noqa: E402
from test_serving_short import audited  # noqa: E402

from sglang_dspark.records import RecordSet  # noqa: E402

pytestmark = [pytest.mark.engine, pytest.mark.short, pytest.mark.timeout(600)]

KEY, ADMIN = "the-api-key", "the-admin-key"


class GuardedServer(LiveServer):
    """A server with two keys; its records lie in a folder that tests may delete."""

    def __init__(self, pair: Path, folder: Path, planted: Planted) -> None:
        self.records, self.planted = folder / "records", planted
        flags = (
            *("--speculative-dspark-profile", str(write_profile(folder / "made.json"))),
            *("--speculative-dspark-schedule", "synchronous", "--speculative-dspark-policy", "hull"),
            *("--speculative-dspark-kernels", "ours", "--speculative-dspark-record", str(self.records)),
            *("--enable-metrics", "--api-key", KEY, "--admin-api-key", ADMIN),
            *("--max-running-requests", "16"),  # kernels are tried at every size that is served
        )
        super().__init__(pair, folder / "server.log", *flags, env=planted.environment)
        self.http.headers["Authorization"] = f"Bearer {KEY}"

    def admin(self, method: str, path: str, **more) -> dict:
        answer = self.http.request(method, path, headers={"Authorization": f"Bearer {ADMIN}"}, **more)
        assert answer.status_code == 200, answer.text
        return answer.json() if answer.content else {}

    def switch(self, policy: str) -> dict:
        return self.admin("POST", "/dspark/policy", json={"policy": policy})

    def shown(self) -> dict:
        time.sleep(0.3)
        return self.admin("GET", "/dspark/policy")

    def faults(self) -> dict[str, dict]:
        return {fault["what"]: fault for fault in self.shown()["faults"]}

    def counters_of(self) -> dict:
        time.sleep(0.3)
        return self.http.get("/server_info").json()["internal_states"][0]["dspark"]["counters"]

    def scheduler_pid(self) -> int:
        found = subprocess.run(["ps", "-eo", "pid,pgid,args"], capture_output=True, text=True, check=True).stdout
        rows = [line.split(None, 2) for line in found.splitlines()[1:]]
        [pid] = [pid for pid, group, name in rows if int(group) == self.process.pid and "sglang::scheduler" in name]
        return int(pid)


@pytest.fixture(scope="module")
def guarded(demo_pair, tmp_path_factory) -> Iterator[GuardedServer]:
    folder = tmp_path_factory.mktemp("guarded")
    with GuardedServer(demo_pair, folder, Planted(folder / "build")) as server:
        yield server


@pytest.fixture(autouse=True)
def _nothing_planted(guarded):
    guarded.planted.clear()
    yield
    guarded.planted.clear()
    assert guarded.process.poll() is None, guarded.tail()


def answers_are_right(server, reference, prompts, requests: int = 6, sampled: int = 6) -> None:
    inputs = [reference.tokens(prompts[number * 7 % len(prompts)])[:40] for number in range(requests)]
    greedy = server.generate_all(inputs, concurrency=requests, tokens=24, ignore_eos=True)
    verdicts = [reference.judge(ids, answer["output_ids"]) for ids, answer in zip(inputs, greedy, strict=True)]
    assert "different" not in verdicts and verdicts.count("tie") <= 1, verdicts
    rest = server.generate_all(inputs[:sampled], concurrency=sampled, tokens=16, temperature=1.0, ignore_eos=True)
    assert [answer["meta_info"]["completion_tokens"] for answer in rest] == [16] * sampled


def test_ours_are_chosen_and_pass_their_check(guarded) -> None:
    kernels = guarded.shown()["kernels"]
    assert {name: kernels[name].split(" (")[0] for name in ("markov", "rejection", "confidence", "admission")} == {
        name: f"{name}: ours" for name in ("markov", "rejection", "confidence", "admission")
    }
    assert any(name.startswith("live early stop, filled") for name in kernels)
    assert guarded.shown()["faults"] == []
    time.sleep(1.5)
    assert not list(guarded.records.glob("*")), "SGLang's start-up request is nobody's load"


def test_weights_that_change_in_place(guarded, demo_pair, reference, prompts, tmp_path) -> None:
    """Through SGLang's sessions of tensors, which its own worker survives: text and sampled law stay the target's."""
    import torch
    from safetensors.torch import load_file
    from sglang.srt.utils import MultiprocessingSerializer

    torch.multiprocessing.set_sharing_strategy("file_system")
    draft = load_file(demo_pair / "draft" / "model.safetensors")
    changed = {name: 3 * weight if name.startswith("markov_head") else weight for name, weight in draft.items()}

    def update(weights: dict) -> None:
        sent = base64.b64encode(MultiprocessingSerializer.serialize(list(weights.items()))).decode()
        guarded.admin("POST", "/begin_weight_update", json={"selector": "draft"})
        body = {"serialized_named_tensors": [sent], "selector": "draft"}
        assert guarded.admin("POST", "/update_weights_from_tensor", json=body)["success"]
        guarded.admin("POST", "/end_weight_update", json={})

    accepted = []
    for weights in (changed, draft):
        update(weights)
        before = guarded.counters_of()
        answers_are_right(guarded, reference, prompts)
        after = guarded.counters_of()
        drafted, taken = (after[key] - before[key] for key in ("anchors", "accepted_tokens"))
        accepted.append(taken / drafted)
        if weights is changed:
            report = audited(guarded, demo_pair, prompts, tmp_path, "--api-key", KEY, "--admin-api-key", ADMIN)
            assert report["verdict"] == "lossless", report
    assert accepted[0] < accepted[1], "the worse draft was drafted with"
    assert "kernel markov bounds" not in guarded.faults()


@pytest.mark.parametrize("policy", ["planted-budget", "planted-stop"])
def test_a_policy_that_raises(guarded, reference, prompts, policy) -> None:
    """A rule from a user's own package: before the draft it verifies everything, at a rank the walk ends there."""
    guarded.switch(policy)
    answers_are_right(guarded, reference, prompts, requests=3, sampled=3)
    assert f"policy {policy}" not in guarded.faults()
    guarded.planted.plant("policy")
    answers_are_right(guarded, reference, prompts)
    guarded.planted.clear()
    fault = guarded.faults()[f"policy {policy}"]
    assert "ZeroDivisionError" in fault["first"] and fault["count"] > 5
    answers_are_right(guarded, reference, prompts, requests=2, sampled=2)
    assert guarded.faults()[f"policy {policy}"] == fault, "it decides again"
    guarded.switch("hull")


def test_an_observer_that_raises(guarded, reference, prompts) -> None:
    guarded.planted.plant("observer")
    answers_are_right(guarded, reference, prompts)
    fault = guarded.faults()["observer DriftWatch"]
    assert fault["first"] == "ZeroDivisionError: a planted observer" and fault["count"] > 5
    assert guarded.log.read_text().count("observer DriftWatch failed") == 1
    lines = guarded.metrics("sglang:dspark_faults_total{")
    assert sum('part="observer DriftWatch"' in line for line in lines) == 1
    assert guarded.counters_of()["decode_steps"] > 5, "the observers around it go on"


@pytest.mark.parametrize("name", ["confidence", "markov", "rejection"])
def test_a_kernel_that_raises(guarded, reference, prompts, name) -> None:
    guarded.planted.plant(f"kernel {name}")
    answers_are_right(guarded, reference, prompts)
    fault = guarded.faults()[f"kernel {name}"]
    assert fault["count"] == 1, "SGLang's own from then on"
    guarded.planted.clear()
    answers_are_right(guarded, reference, prompts, requests=2, sampled=2)


def test_a_record_folder_that_is_deleted(guarded, prompts) -> None:
    guarded.generate_all(prompts[:3], tokens=8, ignore_eos=True)
    shutil.rmtree(guarded.records)
    guarded.generate_all(prompts[:3], tokens=8, ignore_eos=True)
    time.sleep(1.5)
    assert RecordSet(guarded.records).scan().steps > 0
    state = guarded.shown()["recording"]
    assert state["written"] > 0 and not state["stalled"]


def test_a_full_disk(guarded, reference, prompts) -> None:
    """A file-size limit of 0 in the scheduler stands for it: no block can be written."""
    scheduler = guarded.scheduler_pid()
    before = resource.prlimit(scheduler, resource.RLIMIT_FSIZE)
    resource.prlimit(scheduler, resource.RLIMIT_FSIZE, (1, before[1]))
    try:
        answers_are_right(guarded, reference, prompts, requests=3, sampled=3)
        time.sleep(1.5)
        state = guarded.shown()["recording"]
        assert state["stalled"] and state["problem"]
        guarded.generate("import os\n", 4)
        [line] = guarded.metrics("sglang:dspark_recording_stalled{")
        assert float(line.rsplit(" ", 1)[1]) == 1.0
    finally:
        resource.prlimit(scheduler, resource.RLIMIT_FSIZE, before)
    guarded.generate("import os\n", 8)
    time.sleep(1.5)
    assert not guarded.shown()["recording"]["stalled"]


def test_a_server_that_is_stopped_and_continued(guarded, reference, prompts) -> None:
    scheduler = guarded.scheduler_pid()
    os.kill(scheduler, signal.SIGSTOP)
    time.sleep(2.0)
    os.kill(scheduler, signal.SIGCONT)
    answers_are_right(guarded, reference, prompts, requests=3, sampled=3)


def test_requests_that_sglang_would_die_of(guarded, prompts, demo_pair) -> None:
    vocabulary = json.loads((demo_pair / "target" / "config.json").read_text())["vocab_size"]
    for body in ({"input_ids": [5, vocabulary]}, {"input_ids": [-1]}, {"input_ids": [[5], [10**7]]}, {"input_ids": []}):
        answer = guarded.http.post("/generate", json={**body, "sampling_params": {"max_new_tokens": 2}})
        assert answer.status_code == 400, body
    answer = guarded.http.post("/v1/completions", json={"model": "x", "prompt": [5, vocabulary + 3], "max_tokens": 2})
    assert answer.status_code == 400 and "vocabulary" in answer.text
    wrong = guarded.http.post(
        "/update_weights_from_disk",
        json={"model_path": str(demo_pair / "target")},
        headers={"Authorization": f"Bearer {ADMIN}"},
    )
    assert wrong.status_code == 400 and "would load it into the target and into the DSpark draft" in wrong.text
    guarded.works()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--admin-api-key", ADMIN), None),
        (("--api-key", KEY), "the admin key was refused"),
        (("--api-key", KEY, "--admin-api-key", "wrong"), "the admin key was refused"),
    ],
)
def test_the_policy_command_with_two_keys(guarded, arguments, said) -> None:
    program = [sys.executable, "-c", "from sglang_dspark.cli import main; main()"]
    environment = {name: value for name, value in os.environ.items() if name != "SGLANG_ADMIN_API_KEY"}
    done = subprocess.run(
        [*program, "policy", "--url", guarded.url, *arguments], capture_output=True, text=True, env=environment
    )
    assert (done.returncode == 0) is (said is None) and (said or "policy") in done.stdout + done.stderr


def test_several_policies_in_one_message_change_nothing(guarded) -> None:
    before = guarded.shown()["policy"]
    two = {"dspark_policy=fixed:k=1": 1, "dspark_policy=fixed:k=2": 1}
    assert guarded.admin("POST", "/set_internal_state", json={"server_args": two}) is not None
    assert guarded.shown()["policy"] == before
    assert "names another policy as well" in guarded.log.read_text()


def test_metrics_carry_sglangs_labels(guarded) -> None:
    def labels(line: str) -> set[str]:
        return {pair.split("=")[0] for pair in line[line.index("{") + 1 : line.rindex("}")].split(",")} - {"pid"}

    [ours], theirs = guarded.metrics("sglang:dspark_drafted_tokens_total{"), guarded.metrics("sglang:num_running_reqs{")
    assert labels(ours) == labels(theirs[0])
