"""`dspark audit live` against real servers: it finds a forced leak, and passes lossless policies on the same cliff.

The leak: `argmax-live` in a test build (leaky_server.py), on a profile where verifying anything costs three times as
much as verifying nothing. Two requests decide together, one audited and one of the background, so a request verifies
its block only when the survivals that its own draft tokens promise are high: a draft token decides whether it is
judged at all. The pair's confidence head is replaced by one with a strong opinion (partial_draft.py). Candidates are
order records cut before a time stamp, whose hour is two digits; which of them leak enough is not taken for granted but
predicted on the pair that is served. Lossless policies pass on the same cliff and confidences.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sglang", reason="needs the extra `serve`")

from live_server import LiveServer  # noqa: E402
from partial_draft import write_partial_draft  # noqa: E402
from transformers import AutoTokenizer  # noqa: E402

from sglang_dspark.audit.live.pair import load_models  # noqa: E402
from sglang_dspark.audit.live.prediction import predict  # noqa: E402
from sglang_dspark.audit.live.prompts import read_prompts  # noqa: E402
from sglang_dspark.audit.live.settings import AuditSettings  # noqa: E402
from sglang_dspark.cost import (  # noqa: E402
    MeasuredDraft,
    MeasuredVerify,
    SpsAdditiveCostTable,
    Tiered,
    load_profile,
    write_table,
)
from sglang_dspark.demo.structured import documents  # noqa: E402
from sglang_dspark.policies import POLICIES, make_policy  # noqa: E402

pytestmark = [pytest.mark.engine, pytest.mark.timeout(3600)]

GAMMA = 7
LEAST_TV = 0.05
PRICE = 3.0
LEAK = AuditSettings(skip=2, tokens=1, background=1, concurrency=1, samples=700)
"""After the cut come a "T", the first anchor, and the hour: its second digit is the second token of a block. (The first
of a block cannot be biased: where nothing is admitted, SGLang still accepts it or draws from the residual.)"""


class LeakyServer(LiveServer):
    """The test build that lets `argmax-live` through."""

    def command(self) -> list[str]:
        return [sys.executable, str(Path(__file__).parent / "leaky_server.py"), *super().command()[3:]]


def write_cliff(path: Path, num_requests: int, price: float) -> Path:
    """A profile in which `num_requests` anchors alone cost 1, and whatever is verified beside them `price`."""
    sizes = [num_requests, num_requests * (1 + GAMMA)]
    tiered = Tiered(MeasuredDraft([1], [1e-6]), MeasuredVerify(sizes, [0.02, 0.02 * price]), sizes, 64)
    meta = {"hardware": "cpu", "how": "made for a test"}
    write_table(path, SpsAdditiveCostTable(1e-6, [1, 2], [0.01, 0.01], sizes, [0.01, 0.02], meta, tiered))
    return path


def write_prompts(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    return path


def candidates(count: int) -> list[str]:
    """Order records, each cut after the date of its fourth record: "2024-03-15|T10:42:03"."""
    texts = []
    for text in documents("json", 200, 1):
        cuts = [match.end() for match in re.finditer(r'"placed_at": "[0-9]{4}-[0-9]{2}-[0-9]{2}', text)]
        if len(cuts) >= 4:
            texts.append(text[max(0, cuts[3] - 700) : cuts[3]])
    return texts[:count]


def audit(*arguments: str) -> tuple[int, dict[str, Any]]:
    """Exit status and report of `dspark audit live`."""
    program = [sys.executable, "-c", "from sglang_dspark.cli import main; main()", "audit", "live", "--json"]
    done = subprocess.run([*program, *arguments], capture_output=True, text=True)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


@pytest.fixture(scope="module")
def pair(demo_pair: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained pair with the partial confidence head."""
    folder = tmp_path_factory.mktemp("partial") / "pair"
    tokenizer = AutoTokenizer.from_pretrained(demo_pair / "target", local_files_only=True)
    write_partial_draft(demo_pair / "draft", folder / "draft", tokenizer)
    for part in ("target", "prompts"):
        (folder / part).symlink_to(demo_pair / part)
    return folder


@pytest.fixture(scope="module")
def server(pair: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LeakyServer]:
    """A leaky server with synchronous decisions on the cliff; it starts with a lossless policy."""
    folder = tmp_path_factory.mktemp("leaky")
    profile = write_cliff(folder / "cliff.json", 2, PRICE)
    flags = ("--speculative-dspark-profile", str(profile), "--speculative-dspark-schedule", "synchronous")
    with LeakyServer(pair, folder / "server.log", *flags, "--speculative-dspark-policy", "fixed:k=2") as running:
        yield running


def test_a_leak_is_predicted_and_then_found(pair: Path, server: LeakyServer, tmp_path: Path, capsys) -> None:
    models = load_models(pair / "target", pair / "draft")
    files = write_prompts(tmp_path / "candidates.jsonl", candidates(4)), pair / "prompts" / "python.jsonl"
    prompts, beside = (read_prompts(file, 4, models.tokenizer) for file in files)
    policy, cost = make_policy("argmax-live"), load_profile(server.flags[1])
    first = predict(models, policy, cost, prompts, beside, LEAK, 64, lambda done, total: None)
    chosen = max(range(len(prompts)), key=lambda number: first[number].tv)
    # Being chosen flatters: the figure that counts comes from fresh draws.
    fresh = replace(LEAK, seed=1)
    (predicted,) = predict(models, policy, cost, [prompts[chosen]], beside, fresh, 300, lambda done, total: None)
    with capsys.disabled():
        print(f"\npredicted TV {predicted.tv:.3f} +- {predicted.tv_error:.3f}, samples {predicted.samples_needed:.0f}")
    assert predicted.tv >= LEAST_TV
    assert predicted.samples_needed <= LEAK.samples
    write_prompts(tmp_path / "leak.jsonl", [candidates(4)[chosen]])
    server.switch("argmax-live")
    status, report = audit(
        *("--url", server.url, "--target", str(pair / "target"), "--prompts", str(tmp_path / "leak.jsonl")),
        *("--skip", str(LEAK.skip), "--tokens", str(LEAK.tokens), "--samples", str(LEAK.samples)),
        *("--background", "1", "--concurrency", "1"),
        *("--background-prompts", str(files[1])),
    )
    assert (status, report["verdict"]) == (1, "biased"), report["reasons"]
    assert not [d for prompt in report["prompts"] for d in prompt["greedy"]["differences"] if not d["tie"]]


LOSSLESS = (
    "fixed:k=2",
    "threshold:t=0.7",
    "early-stop:cap=3",
    "hull",
    "lookahead",
    "argmax:lag=1,cap=3",
    "schedule:upto=4,k=3/1",
    "goodput:cap=3",
    "tetris:capacity=20",
    "guard:inner=(hull),baseline=(fixed:k=2)",
    "foresight",
    "self-tuning",
    "argmax:lag=1,cap=3,calibrate=online",
    "hull:costs=online",
)


def test_every_lossless_policy_is_audited() -> None:
    known = {name for name in POLICIES if make_policy(name).lossless and make_policy(name).drafts}
    assert {make_policy(text).name for text in LOSSLESS} == known


@pytest.mark.parametrize("policy", LOSSLESS)
def test_lossless_policies_pass(pair: Path, server: LeakyServer, tmp_path: Path, policy: str) -> None:
    server.switch(policy)
    prompts = write_prompts(tmp_path / "prompts.jsonl", candidates(2))
    status, report = audit(
        *("--url", server.url, "--target", str(pair / "target"), "--prompts", str(prompts)),
        *("--samples", "500", "--detect", "0.12", "--background", "2", "--concurrency", "6"),
    )
    assert (status, report["verdict"]) == (0, "lossless"), report["reasons"]
    assert report["noise"]["mean_tv"] < 1e-4 and report["cut_share"] >= 0.3


def test_switches_across_schedules_pass(pair: Path, server: LeakyServer, tmp_path: Path) -> None:
    """The policy changes each second, and with it the schedule: the law stays the target's."""
    server.switch("fixed:k=3")
    prompts = write_prompts(tmp_path / "prompts.jsonl", candidates(2))
    policies = ("hull", "argmax:lag=2", "threshold:t=0.7", "foresight", "fixed:k=2", "argmax:lag=2,calibrate=online")
    status, report = audit(
        *("--url", server.url, "--target", str(pair / "target"), "--prompts", str(prompts)),
        *("--samples", "500", "--detect", "0.12", "--background", "2", "--concurrency", "6"),
        *(part for policy in policies for part in ("--across", policy)),
    )
    assert (status, report["verdict"], report["across"]) == (0, "lossless", list(policies)), report["reasons"]
    assert server.http.get("/dspark/policy").json()["policy"] == "fixed:k=3"
