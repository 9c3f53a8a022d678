"""What CI can afford of the live engine: one server whose policies are switched hot, and a short audit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("sglang", reason="needs the extra `serve`")

from test_serving_live import PARAMETERS  # noqa: E402

from sglang_dspark.policies import POLICIES, make_policy  # noqa: E402

pytestmark = [pytest.mark.engine, pytest.mark.short, pytest.mark.timeout(600)]

REQUESTS, GREEDY = 40, 5
ONE_OF_EACH = [
    PARAMETERS.get(name, [name])[0] for name in POLICIES if make_policy(name).lossless and make_policy(name).drafts
]


@pytest.mark.parametrize("policy", ONE_OF_EACH)
def test_forty_requests(server, prompts, reference, policy: str) -> None:
    """All of them finish, and the greedy ones among them say what the target says."""
    server.switch(policy)
    inputs = [reference.tokens(prompts[number * 6 % len(prompts)])[:50] for number in range(REQUESTS)]
    greedy, sampled = inputs[:GREEDY], inputs[GREEDY:]
    answers = server.generate_all(greedy, concurrency=GREEDY, tokens=32, ignore_eos=True)
    rest = server.generate_all(sampled, concurrency=16, tokens=16, temperature=1.0, ignore_eos=True)
    lengths = [answer["meta_info"]["completion_tokens"] for answer in (*answers, *rest)]
    assert lengths == [32] * GREEDY + [16] * (REQUESTS - GREEDY)
    verdicts = [reference.judge(ids, answer["output_ids"]) for ids, answer in zip(greedy, answers, strict=True)]
    assert "different" not in verdicts and verdicts.count("tie") <= 1, verdicts


def audited(server, pair: Path, prompts, folder: Path, *more: str) -> dict:
    """The report of a short live audit on two prompts; it fails where the audit finds a bias."""
    files = folder / "prompts.jsonl"
    files.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in (prompts[0], prompts[100])))
    program = [sys.executable, "-c", "from sglang_dspark.cli import main; main()", "audit", "live", "--json"]
    done = subprocess.run(
        [
            *(*program, "--url", server.url, "--target", str(pair / "target"), "--prompts", str(files)),
            *("--samples", "250", "--background", "2", "--concurrency", "6", "--detect", "0.3", *more),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def test_two_prompts_are_audited(server, demo_pair: Path, prompts, tmp_path: Path) -> None:
    """A policy that cuts blocks by this step's confidences passes; the bias that this could see is stated."""
    server.switch("hull")
    report = audited(server, demo_pair, prompts, tmp_path)
    assert report["verdict"] == "lossless" and report["cut_share"] >= 0.3
