"""Two DP-attention ranks on this CPU: every class under uneven load and switches; records, metrics, audit."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("sglang", reason="needs the extra `serve`")

from live_server import LiveServer, write_profile  # noqa: E402

from sglang_dspark.policies import make_policy  # noqa: E402
from sglang_dspark.records import RecordSet  # noqa: E402
from sglang_dspark.records.replay import replay  # noqa: E402
from simulator.results.prediction import predict  # noqa: E402

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1200)]

RANKS = ("--tp", "2", "--dp", "2", "--enable-dp-attention", "--enable-dp-lm-head")
POLICIES = ("fixed:k=3", "argmax:lag=2", "hull", "threshold:t=0.5", "foresight:lag=2", "argmax:lag=2,calibrate=online")
LOADS = (
    ("fixed:k=7", 4, 12, 24),
    ("fixed:k=7", 8, 32, 40),
    ("fixed:k=7", 12, 24, 24),
    ("fixed:k=3", 4, 8, 16),
    ("fixed:k=3", 12, 24, 16),
    ("fixed:k=0", 12, 24, 10),
)
"""(policy, in flight, requests, tokens each) of a round."""
KV_TOKENS = 3000  # of a rank: fifteen long requests do not fit


@pytest.fixture(scope="module")
def ranks(demo_pair: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    folder = tmp_path_factory.mktemp("dp")
    # Every token costs: a small rank asks for less than a full block, and finds room below a large one's tier.
    sizes = [*range(1, 17), *range(18, 65, 2), 128, 512]
    profile = write_profile(folder / "made.json", {size: 0.006 + 0.004 * size for size in sizes})
    flags = ("--speculative-dspark-profile", str(profile), "--speculative-dspark-policy", "fixed:k=3")
    more = ("--speculative-dspark-record", str(folder / "records"), "--enable-metrics")
    more += (*RANKS, "--max-total-tokens", str(KV_TOKENS), "--schedule-conservativeness", "0.05")
    with LiveServer(demo_pair, folder / "log", *flags, *more) as running:
        running.records = folder / "records"
        yield running


def answer_of(server: LiveServer, rank: int, prompt: list[int] | str, tokens: int, temperature: float, **more) -> dict:
    """One rank's answer to a request."""
    key = "text" if isinstance(prompt, str) else "input_ids"
    sampling = {"max_new_tokens": tokens, "temperature": temperature, **more}
    answer = server.http.post("/generate", json={key: prompt, "sampling_params": sampling, "routed_dp_rank": rank})
    answer.raise_for_status()
    return answer.json()


def generate_on(server: LiveServer, rank: int, prompt: list[int] | str, tokens: int, temperature: float) -> list[int]:
    """A continuation by one rank, of exactly so many tokens."""
    found = answer_of(server, rank, prompt, tokens, temperature, ignore_eos=True)["output_ids"]
    assert len(found) == tokens
    return found


def agreed(answer: dict, policy: str) -> None:
    """Both ranks, from one step on."""
    assert sorted(rank["replica"] for rank in answer["ranks"]) == [0, 1], answer["ranks"]
    assert {rank["policy"] for rank in answer["ranks"]} == {policy}
    assert len({rank["since_step"] for rank in answer["ranks"]}) == 1, answer["ranks"]


def steps_of(server: LiveServer) -> dict[int, dict[int, object]]:
    """Recorded steps by rank and step."""
    time.sleep(2.5)
    found: dict[int, dict[int, object]] = defaultdict(dict)
    for _, step in RecordSet(server.records).steps():
        found[step.rank][step.step] = step
    return found


def test_forty_uneven_requests_under_every_class_while_it_is_switched(ranks, prompts, reference) -> None:
    """Thirty requests on one rank and ten on the other, which is idle before and after; greedy text is the target's,
    ranks switch at one step, and every recorded decision of both comes out the same when it is decided again."""
    stop, met = threading.Event(), []

    def keep_switching() -> None:
        while not stop.wait(2.0):
            policy = POLICIES[(len(met) + 1) % len(POLICIES)]
            answer = ranks.switch(policy)
            agreed(answer, policy)
            met.append(answer)

    inputs = [reference.tokens(prompts[number * 4 % len(prompts)])[:40] for number in range(10)]
    with ThreadPoolExecutor(41) as pool:
        switching = pool.submit(keep_switching)
        try:
            greedy = [
                pool.submit(generate_on, ranks, number % 3 % 2, ids, 48, 0.0) for number, ids in enumerate(inputs)
            ]
            rest = [
                pool.submit(generate_on, ranks, int(number % 4 == 0), prompts[number], 24 + 2 * number, 1.0)
                for number in range(30)
            ]
            outputs = [one.result() for one in greedy]
            [one.result() for one in rest]
            for number in range(20):
                if len(met) >= len(POLICIES):
                    break
                generate_on(ranks, number % 2, prompts[number], 32, 1.0)
        finally:
            stop.set()
        switching.result()
    verdicts = [reference.judge(ids, output) for ids, output in zip(inputs, outputs, strict=True)]
    assert "different" not in verdicts and verdicts.count("tie") <= 2, verdicts
    assert len(met) >= len(POLICIES) and not met[-1]["faults"], met[-1]["faults"]

    steps = steps_of(ranks)
    assert set(steps) == {0, 1}
    together = set(steps[0]) & set(steps[1])
    alone = (set(steps[0]) ^ set(steps[1])) - {-1}
    assert len(together) > 20 and len(alone) > 5
    for number in together:
        one, other = steps[0][number], steps[1][number]
        assert one.policy == other.policy, "a switch is at one step"
        assert one.asked_tokens.tolist() == other.asked_tokens.tolist() and one.shared_tier == other.shared_tier
        assert one.graph_tokens == other.graph_tokens == one.shared_tier == max(one.asked_tokens)
    for number in alone:
        step = steps[0].get(number) or steps[1][number]
        assert step.asked_tokens[1 - step.rank] == 0
    filled = [
        step
        for of_rank in steps.values()
        for step in of_rank.values()
        if step.num_tokens > int(step.asked_tokens[step.rank])
    ]
    assert filled and {step.policy.partition(":")[0] for step in filled} <= {"argmax", "hull", "foresight"}
    result = replay(RecordSet(ranks.records))
    assert result.different == 0 and not result.skipped, result.first
    assert result.equal > 100


def test_the_counters_of_both_ranks_are_told_apart(ranks) -> None:
    text = ranks.http.get("/metrics").text
    found = re.findall(
        r'sglang:dspark_decode_steps_total\{[^}]*dp_rank="(\d)"[^}]*reason="policy"[^}]*\} ([0-9.e+]+)', text
    )
    assert {rank for rank, steps in found if float(steps) > 0} == {"0", "1"}, text[:2000]
    states = ranks.http.get("/server_info").json()["internal_states"]
    assert sorted(state["dspark"]["dp_rank"] for state in states) == [0, 1]


def test_a_rank_that_retracts_and_one_that_ends_its_last_request(ranks, prompts, reference) -> None:
    """The first rank runs out of memory while the second serves a short request and is idle for the rest."""
    ranks.switch("hull")
    inputs = [reference.tokens(prompts[number])[:40] for number in range(15)]
    with ThreadPoolExecutor(16) as pool:
        # With ignore_eos SGLang reserves the whole length and admits only what fits: nothing would be retracted.
        long = [pool.submit(answer_of, ranks, 0, ids, 330, 0.0) for ids in inputs]
        short = pool.submit(generate_on, ranks, 1, inputs[0], 12, 0.0).result()
        answers = [one.result() for one in long]
    outputs = [answer["output_ids"] for answer in answers]
    verdicts = [reference.judge(ids, output) for ids, output in zip(inputs, outputs, strict=True)]
    assert "different" not in verdicts and reference.judge(inputs[0], short) != "different", verdicts
    assert sum(answer["meta_info"]["num_retractions"] for answer in answers) > 0, "the pool was not too small"
    assert not ranks.http.get("/dspark/policy").json()["faults"]
    time.sleep(2.5)
    assert replay(RecordSet(ranks.records)).different == 0


def test_the_simulator_prices_the_same_tier(ranks, prompts, capsys) -> None:
    """A closed loop of eight, three times, predicted in lock step with costs fitted on loads of four and twelve."""
    for _ in range(3):
        for policy, concurrency, count, tokens in LOADS:
            ranks.switch(policy)
            texts = [prompts[number % len(prompts)] for number in range(count)]
            ranks.generate_all(texts, concurrency, tokens=tokens, temperature=1.0, ignore_eos=True)
            time.sleep(2.0)
    time.sleep(2.5)
    records = RecordSet(ranks.records)
    found = predict(records, records, concurrency=8, under=make_policy("fixed:k=7"))
    with capsys.disabled():
        print(json.dumps(found.as_json(), indent=1))
    assert found.repetitions == 3 and found.requests == 3 * 32, "the runs of both ranks are one load"
    assert abs(found.figures["accept_length"].error) < 0.1
    for name in ("steady_output_throughput", "mean_tpot_ms"):
        figure = found.figures[name]
        assert abs(figure.error) < max(0.3, figure.spread), (name, figure)


def test_a_live_audit_passes_under_a_stopping_rule_that_fills(ranks, demo_pair: Path) -> None:
    ranks.switch("hull")
    program = [sys.executable, "-c", "from sglang_dspark.cli import main; main()", "audit", "live", "--json"]
    done = subprocess.run(
        [
            *(*program, "--url", ranks.url, "--target", str(demo_pair / "target"), "--samples", "400"),
            *("--prompts", str(demo_pair / "prompts" / "python.jsonl"), "--limit", "1", "--detect", "0.15"),
            *("--background", "4", "--concurrency", "12", "--least-cut", "0.05"),
        ],
        capture_output=True,
        text=True,
    )
    report = json.loads(done.stdout)
    assert (done.returncode, report["verdict"]) == (0, "lossless"), report["reasons"]
