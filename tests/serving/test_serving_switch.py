"""Any lossless policy after any other while requests run, the schedule with it: text, records and replays hold."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("sglang", reason="needs the extra `serve`")

from sglang_dspark.records import RecordSet  # noqa: E402
from sglang_dspark.records.replay import replay  # noqa: E402

pytestmark = [pytest.mark.engine, pytest.mark.short, pytest.mark.timeout(600)]

ORDER = (
    "fixed:k=3",
    "hull",
    "argmax:lag=2",
    "threshold:t=0.5",
    "foresight",
    "self-tuning",
    "argmax:lag=2,calibrate=online",
    "fixed:k=0",
)
GREEDY = 10


def test_a_switch_a_second_across_schedules_under_forty_requests(server, prompts, reference) -> None:
    """All are answered, greedy text is the target's, and every recorded decision is decided again."""
    server.switch("fixed:k=7")
    server.works()
    time.sleep(2.5)
    before = sum(1 for _ in RecordSet(server.records).steps())
    stop, met = threading.Event(), []

    def keep_switching() -> None:
        while not stop.is_set():
            met.append(server.switch(ORDER[len(met) % len(ORDER)]))
            time.sleep(1.0)

    thread = threading.Thread(target=keep_switching)
    thread.start()
    try:
        inputs = [reference.tokens(prompts[number * 4 % len(prompts)])[:50] for number in range(GREEDY)]
        sampled = [prompts[number % len(prompts)] for number in range(30)]
        with ThreadPoolExecutor(2) as pool:
            greedy = pool.submit(server.generate_all, inputs, GREEDY, tokens=48, ignore_eos=True)
            rest = pool.submit(server.generate_all, sampled, 30, tokens=64, temperature=1.0, ignore_eos=True)
            lengths = [answer["meta_info"]["completion_tokens"] for answer in rest.result()]
            answers = greedy.result()
        while len(met) < len(ORDER):
            time.sleep(0.5)
            server.generate_all(sampled[:8], 8, tokens=24, temperature=1.0, ignore_eos=True)
    finally:
        stop.set()
        thread.join()
    assert lengths == [64] * 30
    verdicts = [reference.judge(ids, answer["output_ids"]) for ids, answer in zip(inputs, answers, strict=True)]
    assert "different" not in verdicts and verdicts.count("tie") <= 2, verdicts
    assert {one["schedule"] for one in met} == {"overlapped", "synchronous"} and not met[-1]["faults"]
    time.sleep(2.5)
    records = RecordSet(server.records)
    result = replay(records)
    assert result.different == 0 and not result.skipped, result.first
    steps = [step for _, step in records.steps()][before:]
    ran = {(step.policy, step.schedule) for step in steps}
    assert {schedule for _, schedule in ran} == {"overlapped", "synchronous"}
    assert len({policy for policy, _ in ran}) >= 6
    assert {schedule for policy, schedule in ran if policy in ("hull", "threshold:t=0.5")} == {"synchronous"}


def test_a_refused_switch_changes_nothing_and_one_goes_at_a_time(server) -> None:
    server.switch("hull")
    with ThreadPoolExecutor(6) as pool:
        bodies = [{"policy": text} for text in ORDER[:6]]
        answers = list(pool.map(lambda body: server.http.post("/dspark/policy", json=body), bodies))
    assert {answer.status_code for answer in answers} <= {200, 400}
    assert all("another switch is under way" in answer.text for answer in answers if answer.status_code == 400)
    present = server.http.get("/dspark/policy").json()
    assert present["policy"] in {answer.json()["policy"] for answer in answers if answer.status_code == 200}
    for body in ({"policy": "no-such"}, {"policy": "missing.json"}, {"policy": "argmax-live"}):
        refused = server.http.post("/dspark/policy", json=body)
        assert refused.status_code == 400 and len(refused.json()["error"].splitlines()) == 1
    assert server.http.get("/dspark/policy").json()["policy"] == present["policy"]


def test_a_request_s_cap_is_kept(server, prompts, tmp_path: Path) -> None:
    """Exempted and held short under a policy that verifies everything; a bad value is answered 400."""
    server.switch("fixed:k=7")
    answers = {}
    for cap in (0, 2, None):
        custom = {} if cap is None else {"custom_params": {"dspark_cap": cap}}
        found = server.generate_all(prompts[:12], 12, tokens=40, temperature=1.0, ignore_eos=True, **custom)
        tokens = sum(answer["meta_info"]["completion_tokens"] for answer in found)
        answers[cap] = tokens / sum(answer["meta_info"]["spec_verify_ct"] for answer in found)
    assert answers[0] <= 1.1 < answers[2] <= 3.1 and answers[2] < answers[None]
    body = {"text": "a", "sampling_params": {"max_new_tokens": 4, "custom_params": {"dspark_cap": -1}}}
    refused = server.http.post("/generate", json=body)
    assert refused.status_code == 400 and "dspark_cap=-1 is refused, expected an integer in 0..64" in refused.text


def test_a_trial_of_a_policy_that_is_worse_by_construction_goes_back_and_another_is_kept(server, prompts) -> None:
    """No draft token verified, though all are drafted, against three: less than half the tokens in most of the time."""

    def load() -> None:
        server.generate_all(prompts[:8], 8, tokens=100, temperature=1.0, ignore_eos=True)

    def post(policy: str, trial_s: float) -> dict:
        answer = server.http.post("/dspark/policy", json={"policy": policy, "trial_s": trial_s})
        assert answer.status_code == 200, answer.text
        return answer.json()["trial"]

    def seen() -> dict:
        return server.http.get("/dspark/policy").json()

    server.switch("fixed:k=3")
    load()
    load()
    assert post("tetris:capacity=1", 60.0)["verdict"] == "running"
    deadline = time.monotonic() + 90
    while seen()["trial"]["verdict"] == "running" and time.monotonic() < deadline:
        load()
    found = seen()
    assert found["trial"]["verdict"] == "reverted" and found["policy"] == "fixed:k=3", found["trial"]
    assert "trial of tetris:capacity=1" in server.log.read_text()
    server.switch("tetris:capacity=1")
    load()
    load()
    assert post("fixed:k=3", 10.0)["previous"] == "tetris:capacity=1"
    deadline = time.monotonic() + 60
    while seen()["trial"]["verdict"] == "running" and time.monotonic() < deadline:
        load()
    found = seen()
    assert (found["trial"]["verdict"], found["policy"]) == ("kept", "fixed:k=3") and found["trial"]["gain"] > 0
    assert post("hull", 60.0)["verdict"] == "running"
    server.switch("fixed:k=3")
    ended = {
        line.rpartition(" ")[0].split('outcome="')[1].split('"')[0]: float(line.rpartition(" ")[2])
        for line in server.metrics("sglang:dspark_trials_total{")
    }
    assert ended == {"kept": 1, "reverted": 1, "replaced": 1}
    refused = server.http.post("/dspark/policy", json={"policy": "hull", "trial_s": 1})
    assert refused.status_code == 400 and "trial of 1 s is refused" in refused.json()["error"]
