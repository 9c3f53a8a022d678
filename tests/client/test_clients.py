"""The commands that talk to a running server, against a stand-in for one."""

import json
import subprocess
import sys
import time

import numpy as np
import pytest
from fake_server import GAMMA, FakeServer

from sglang_dspark.calibration.quality import quality
from sglang_dspark.cost import load_profile
from sglang_dspark.errors import InputError
from sglang_dspark.keys import Keys
from sglang_dspark.live import ab, load
from sglang_dspark.live.ab import Verdict, compare_live
from sglang_dspark.live.client import Server, read_prompts, run_closed_loop
from sglang_dspark.live.evaluate import EvalSettings, evaluate
from sglang_dspark.live.profiling import ProfilePlan, measure, table_of
from sglang_dspark.live.rotation import rotating
from sglang_dspark.records import ROUNDED, Header, RecordSet, RecordWriter, StepRecord


@pytest.fixture
def fake(monkeypatch):
    for module in (ab, load):
        monkeypatch.setattr(module, "_SETTLE_S", 0.05)
    servers = []

    def make(**options):
        servers.append(FakeServer(**options))
        return servers[-1]

    yield make
    for server in servers:
        server.close()


def dspark(*arguments):
    command = [sys.executable, "-c", "from sglang_dspark.cli import main; main()", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_better_policy_is_named_and_the_old_one_put_back(fake):
    server = fake(rates={"fixed:k=4": 100.0, "hull": 125.0})
    verdict = compare_live(Server(server.url), "fixed:k=4", "hull", pairs=6, block_s=0.3)
    assert verdict.keep == "hull" and verdict.gain == pytest.approx(0.25, abs=0.03)
    assert verdict.low > 0.15 and verdict.stopped_early and len(verdict.pairs) == 5
    assert server.policy == "argmax:lag=2"
    assert verdict.noise < 0.5 and verdict.sentence().startswith("keep hull: 2")
    orders = [tuple(server.switches[2:][i : i + 2]) for i in range(0, 10, 2)]
    assert {("fixed:k=4", "hull"), ("hull", "fixed:k=4")} == set(orders), "both orders occur"


def test_no_difference_is_said(fake):
    server = fake(rates={"fixed:k=4": 100.0, "hull": 100.0})
    verdict = compare_live(Server(server.url), "fixed:k=4", "hull", pairs=4, block_s=0.2)
    assert verdict.keep is None and verdict.low < 0 < verdict.high and abs(verdict.gain) < 0.05
    assert verdict.noise == 1.0 and "no difference between fixed:k=4 and hull beyond the noise" in verdict.sentence()


def test_a_verdict_says_which_to_keep_and_which_share_of_it_may_be_noise():
    def verdict(gain, low, high, keep):
        return Verdict("fixed:k=4", "hull", [], gain, low, high, keep, stopped_early=False)

    assert verdict(0.25, 0.2, 0.3, "hull").sentence() == (
        "keep hull: 25.0 % more tokens per decode second than fixed:k=4, of which 20 % may be noise"
    )
    behind = verdict(-0.2, -0.25, -0.15, "fixed:k=4")
    assert behind.sentence().startswith("keep fixed:k=4: 25.0 % more tokens per decode second than hull, of which 25 %")
    assert verdict(0.0, -0.1, 0.1, None).noise == 1.0


def test_the_warm_up_after_a_switch_is_left_out_and_ends_on_an_idle_server(fake):
    server, slept = fake(rates={"hull": 100.0}), []

    def sleep(seconds):
        slept.append(seconds)
        server.counters["timed_steps"] += 5

    ab._warm_up(Server(server.url), 10.0, sleep)
    assert 1 <= len(slept) <= 4
    idle, slept = fake(busy=False), []
    ab._warm_up(Server(idle.url), 1.0, slept.append)
    assert len(slept) == 20, "a block of 1 s, looked at every 0.05 s"


def test_a_server_is_switched_in_a_circle_and_gets_its_policy_back(fake):
    server = fake()
    with rotating(Server(server.url), ["hull", "fixed:k=1"], 0.1) as made:
        time.sleep(0.6)
    assert made[:3] == ["hull", "fixed:k=1", "hull"] and server.policy == "argmax:lag=2"
    assert server.switches[2 : 2 + len(made)] == made
    with pytest.raises(InputError, match="400"), rotating(Server(server.url), ["hull", "argmax-live"], 0.1):
        raise AssertionError("nothing is measured on a server that refuses a policy")
    with pytest.raises(InputError, match="--every 0 is refused"), rotating(Server(server.url), ["hull"], 0.0):
        pass
    with (
        pytest.raises(InputError, match="somebody else switched the server to fixed:k=3"),
        rotating(Server(server.url), ["hull", "fixed:k=1"], 0.1),
    ):
        server.post("/dspark/policy", {"policy": "fixed:k=3"})
        time.sleep(0.5)
    assert server.policy == "fixed:k=3"


def test_an_idle_server_and_a_refused_policy_end_it(fake):
    with pytest.raises(InputError, match="too little traffic"):
        compare_live(Server(fake(busy=False).url), "fixed:k=4", "hull", pairs=2, block_s=0.05)
    refusing = fake()
    with pytest.raises(InputError, match="400: policy 'argmax-live' is not lossless"):
        compare_live(Server(refusing.url), "fixed:k=4", "argmax-live", pairs=2, block_s=0.05)
    assert refusing.policy == "argmax:lag=2"
    with pytest.raises(InputError, match="404: this server runs without the DSpark flags"):
        compare_live(Server(fake(dspark=False).url), "fixed:k=4", "hull", pairs=2, block_s=0.05)


@pytest.mark.parametrize("other", ["fixed:k=1", "hull"], ids=["another policy", "a second ab, the same policy"])
def test_somebody_else_who_switches_is_noticed_and_kept(fake, other):
    server = fake(rates={"fixed:k=4": 100.0, "hull": 125.0})

    def sleep(seconds):
        if len(server.switches) == 5:
            server.post("/dspark/policy", {"policy": other})
        time.sleep(seconds)

    with pytest.raises(InputError, match=f"somebody else switched the server to {other} meanwhile"):
        compare_live(Server(server.url), "fixed:k=4", "hull", pairs=6, block_s=0.1, sleep=sleep)
    assert server.policy == other, "what somebody else switched on stays"


@pytest.mark.parametrize("command", ["ab", "profile"])
def test_a_command_that_is_told_to_end_puts_the_policy_back(fake, tmp_path, command):
    """SIGTERM, as a service manager or a closing terminal sends it, while a measuring policy decides."""
    server = fake()
    arguments = {
        "ab": ("--policy", "fixed:k=4", "--policy", "hull", "--block", 30),
        "profile": ("--out", tmp_path / "p.json", "--batches", "2", "--contexts", "16", "--window", 30),
    }[command]
    program = [sys.executable, "-c", "from sglang_dspark.cli import main; main()", command, "--url", server.url]
    process = subprocess.Popen([*program, *map(str, arguments)], stderr=subprocess.PIPE)
    deadline = time.monotonic() + 30
    while server.policy == "argmax:lag=2" and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.7)
    assert server.policy != "argmax:lag=2"
    process.terminate()
    _, said = process.communicate(timeout=30)
    assert process.returncode == 128 + 15 and server.policy == "argmax:lag=2", said


@pytest.mark.parametrize(
    ("keys", "api", "admin"),
    [
        (Keys("a", "b"), "Bearer a", "Bearer b"),
        (Keys("a"), "Bearer a", "Bearer a"),
        (Keys(None, "b"), "Bearer b", "Bearer b"),
        (Keys(), None, None),
    ],
)
def test_each_route_gets_its_own_key(keys, api, admin):
    assert keys.headers("/server_info").get("Authorization") == api == keys.headers("/generate").get("Authorization")
    for path in ("/dspark/policy", "/set_internal_state", "/abort_request"):
        assert keys.headers(path).get("Authorization") == admin


def test_the_admin_key_comes_from_the_environment_unless_given(monkeypatch):
    monkeypatch.setenv("SGLANG_ADMIN_API_KEY", "e")
    assert (Keys.given(), Keys.given("a"), Keys.given("a", "b")) == (Keys(None, "e"), Keys("a", "e"), Keys("a", "b"))


@pytest.mark.parametrize(
    ("path", "said"), [("/dspark/policy", "the admin key was"), ("/server_info", "the API key was")]
)
def test_the_key_that_was_refused_is_named(fake, path, said):
    server = fake()
    server.refuses = path
    with pytest.raises(InputError, match=f"401: {said} refused"):
        Server(server.url).get(path)


def test_ab_command(fake):
    server = fake(rates={"fixed:k=4": 120.0, "hull": 100.0})
    both = ("--policy", "fixed:k=4", "--policy", "hull:fill=true")
    done = dspark("ab", "--url", server.url, *both, "--pairs", 2, "--block", 1, "--json")
    answer = json.loads(done.stdout)
    assert (answer["a"], answer["b"], answer["keep"]) == ("fixed:k=4", "hull", "fixed:k=4"), done.stderr
    assert dspark("ab", "--url", server.url, "--policy", "hull").returncode == 2
    same = dspark("ab", "--url", server.url, "--policy", "hull", "--policy", "hull:fill=true")
    assert same.returncode == 2 and "expected two different ones" in same.stderr


def test_a_profile_is_measured_and_loads(fake, tmp_path):
    server = fake()
    plan = ProfilePlan(batches=(1, 2, 4), shares=(0.0, 0.5, 1.0), contexts=(16,), windows=2, window_s=0.1)
    cells = measure(Server(server.url), plan)
    assert [(cell.requests, cell.tokens, cell.adaptive) for cell in cells] == [
        (batch, batch + drafts, adaptive)
        for batch in (1, 2, 4)
        for drafts, adaptive in ((0, False), (2 * batch, True), (4 * batch, True), (4 * batch, False))
    ]
    for cell in cells:
        assert cell.seconds == pytest.approx(server.step_seconds(cell.requests, cell.tokens), rel=0.01)
    assert server.policy == "argmax:lag=2" and server.aborted
    assert {"fixed:k=0", f"fixed:k={GAMMA}", "tetris:capacity=12"} <= set(server.switches)
    server.longest = 50
    with pytest.raises(InputError, match="context 16 leaves 24 tokens"):
        measure(Server(server.url), plan)
    from sglang_dspark.cost import write_table

    write_table(tmp_path / "p.json", table_of(cells * 4, {"hardware": "cpu (test)"}))
    cost = load_profile(str(tmp_path / "p.json"))
    assert cost.measured_requests == (1, 4) and cost.measured_tokens == (1, 20)
    for requests, tokens in [(1, 1), (2, 10), (4, 12)]:
        seconds = cost.draft_s(requests) + float(cost.verify_s(requests, tokens))
        assert seconds == pytest.approx(server.step_seconds(requests, tokens), rel=0.05)


def test_profile_command_needs_hardware_only_off_cpu(fake, tmp_path):
    server = fake()
    small = ("--batches", "1/3", "--contexts", "16", "--windows", 1, "--window", 0.1)
    done = dspark("profile", "--url", server.url, "--out", tmp_path / "p.json", *small)
    assert done.returncode == 0, done.stderr
    meta = json.loads((tmp_path / "p.json").read_text())["meta"]
    assert meta["hardware"].startswith("cpu") and meta["model"] == "model" and meta["sweep"] == "off-diagonal"
    wrong = dspark("profile", "--url", server.url, "--out", tmp_path / "q.json", "--batches", "4/2")
    assert wrong.returncode == 2 and "expected increasing integers" in wrong.stderr


def upstream_info():
    steps = [
        {
            "forward_ct": number,
            "mode": "compact",
            "step_cpu_ms": 10.0,
            "reqs": [
                {
                    "req_pool_index": 1,
                    "prefix_len": 20,
                    "verify_len": 3,
                    "acc_len": 2,
                    "correct_drafts": 1,
                    "cap_trim": 0,
                    "rid": "a",
                    "confidence": [0.5] * GAMMA,
                }
            ],
        }
        for number in range(7)
    ]
    return {
        "mode": "compact",
        "gamma": GAMMA,
        "components": ["core", "reqs"],
        "simulate_acc_len": None,
        "records": steps,
    }


def test_an_unmodified_server_is_drained_once(fake, tmp_path):
    server = fake(dspark=False)
    server.info = upstream_info
    done = dspark("record", "--url", server.url, "--out", tmp_path / "r", "--duration", 2, "--interval", 0.1)
    assert done.returncode == 0 and "7 decode steps" in done.stdout and "none lost" in done.stdout, done.stderr
    records = RecordSet(tmp_path / "r")
    assert [step.step for _, step in records.steps()] == list(range(7)) and server.cleared == 1
    assert records.header().fidelity == ROUNDED and records.header().engine["version"] == "0.5.23"
    server.info = None
    none = dspark("record", "--url", server.url, "--out", tmp_path / "q")
    assert none.returncode == 2 and "SGLANG_DSPARK_DEBUG_DUMP=all" in none.stderr


def prompts(tmp_path):
    path = tmp_path / "chat.jsonl"
    path.write_text("\n".join(json.dumps({"turns": [f"one {i}", f"two {i}"]}) for i in range(5)) + "\n\n")
    return path


def test_eval_sends_every_turn_and_switches_back(fake, tmp_path):
    server = fake()
    [result] = evaluate(Server(server.url), [prompts(tmp_path)], EvalSettings(concurrency=3))
    assert result.requests == 10 and result.accept_length == pytest.approx(2.9) and result.quality is None
    assert server.switches == [f"fixed:k={GAMMA}", "argmax:lag=2"]
    second = [body["text"] for body in server.bodies if body["text"].count("two")]
    assert sorted(second) == [f"one {i} answer\ntwo {i}" for i in range(5)]


def test_eval_reads_positions_from_the_server_s_records(fake, tmp_path, monkeypatch):
    server = fake()
    folder = tmp_path / "records"

    writer = RecordWriter(folder, Header(gamma=GAMMA))
    original = server.post

    def post(path, body):
        if path == "/generate":
            for depth in (1, 3):
                writer.put(
                    StepRecord(
                        step=0,
                        slots=np.array([0]),
                        rids=[body["rid"]],
                        lengths=np.array([GAMMA]),
                        accepted=np.array([depth]),
                        confidence=np.full((1, GAMMA), 0.5, dtype=np.float32),
                    )
                )
            writer.flush()
        return original(path, body)

    server.post = post
    monkeypatch.setattr("sglang_dspark.live.evaluate._FLUSH_S", 0.0)
    [result] = evaluate(Server(server.url), [prompts(tmp_path)], EvalSettings(), folder)
    assert result.quality.blocks == 20 and result.quality.accept_length == 3.0
    assert result.quality.survival == [1.0, 0.5, 0.5, 0.0]
    writer.close()


def test_eval_works_on_an_unmodified_server(fake, tmp_path):
    server = fake(dspark=False)
    done = dspark("eval", "--url", server.url, "--prompts", prompts(tmp_path), "--limit", 2, "--json")
    [answer] = json.loads(done.stdout)
    assert answer["requests"] == 4 and answer["quality"] is None, done.stderr
    missing = dspark("eval", "--url", server.url, "--prompts", tmp_path / "none.jsonl")
    assert missing.returncode == 2 and "No such file" in missing.stderr


def test_quality_on_a_worked_case():
    depth = np.array([0, 1, 2, 2])
    confidence = np.array([[0.9, 0.1], [0.9, 0.8], [0.4, 0.9], [0.9, 0.9]], dtype=np.float32)
    found = quality(depth, confidence, 2)
    assert found.accept_length == 2.25 and found.survival == [0.75, 0.5]
    assert found.conditional == [0.75, pytest.approx(2 / 3)]
    at = {point.threshold: point for point in found.sweep}
    assert at[0.0].accept_length == 2.25 and at[0.0].rejected == 0.75
    assert at[0.5].accept_length == 1 + (0 + 1 + 0 + 2) / 4 and at[0.5].rejected == (1 + 1 + 0 + 0) / 4
    assert at[0.5].acceptance_rate == pytest.approx(1.75 / 2.25)


def test_closed_loop_keeps_its_concurrency_and_stops_on_errors(fake):
    server = fake()
    bodies = [{"text": str(i), "sampling_params": {"max_new_tokens": 5}} for i in range(20)]
    answers = run_closed_loop(Server(server.url), bodies, 4)
    assert [answer.number for answer in answers] == list(range(20))
    with pytest.raises(InputError, match="cannot be used"):
        run_closed_loop(Server("http://127.0.0.1:9"), bodies, 2)


def test_bad_prompt_files_name_the_line(tmp_path):
    path = tmp_path / "p.jsonl"
    for text, words in [('{"turns": ["a"]}\n{"x": 1}', "line 2"), ('{"turns": []}', "line 1"), ("", "holds no prompt")]:
        path.write_text(text)
        with pytest.raises(InputError, match=words):
            read_prompts(path)
