"""Bad input to `simulate` is one sentence on standard error, a status, and no file under the final name."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import pytest
from command_line import PROFILE, QUICK, assert_one_line_error, call, call_alone

VIDUR = "arrived_at,num_prefill_tokens,num_decode_tokens\n0,5,5\n"
ADDITIVE = {
    "bias_seconds": 0.005,
    "bs_probes": [1, 8],
    "alpha_seconds": [0.001, 0.002],
    "m_probes": [1, 64],
    "theta_seconds": [0.0, 0.01],
}
GOOD = ("--trace", "example", "--profile", PROFILE, *QUICK)

TRACES = {
    "no file": (None, "No such file"),
    "empty": ("", "is empty"),
    "header alone": (VIDUR.splitlines()[0] + "\n", "at least one request"),
    "unknown": ("a,b,c\n1,2,3\n", "unknown trace format"),
    "negative": (VIDUR + "1,-5,5\n", "line 3, column num_prefill_tokens"),
    "nan": (VIDUR + "1,5,nan\n", "line 3, column num_decode_tokens"),
    "nan stamp": (VIDUR + "nan,5,5\n", "line 3, column arrived_at"),
}


@pytest.mark.parametrize("name", TRACES)
def test_traces(capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str) -> None:
    text, says = TRACES[name]
    path = tmp_path / "trace.csv"
    if text is not None:
        path.write_text(text)
    output = tmp_path / "out.jsonl"
    answer = call(capsys, "--trace", str(path), "--profile", PROFILE, *QUICK, "--output", str(output))
    assert_one_line_error(answer, says)
    assert not output.exists()


PROFILES = {
    "no such name": (None, "unknown profile 'profile', expected a file or one of"),
    "one probe": ({**ADDITIVE, "m_probes": [8], "theta_seconds": [0.01]}, "1 probe(s) cannot inform a decision"),
    "not a number": ('{"bias_seconds": NaN}', "profile"),
    "negative": ({**ADDITIVE, "theta_seconds": [0.0, -0.01]}, "expected positive seconds"),
    "unordered": ({**ADDITIVE, "m_probes": [64, 1]}, "strictly increasing"),
    "not json": ("SPS", "profile"),
    "empty": ("", "profile"),
}


@pytest.mark.parametrize("flag", ["--profile", "--policy-profile"])
@pytest.mark.parametrize("name", PROFILES)
def test_profiles(capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str, flag: str) -> None:
    content, says = PROFILES[name]
    path = tmp_path / "profile.json"
    if content is not None:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    given = "profile" if content is None else str(path)
    arguments = [*GOOD, flag, given] if flag != "--profile" else ["--trace", "example", flag, given, *QUICK]
    assert_one_line_error(call(capsys, *arguments), says)


VALUES = {
    "unknown policy": (("--policy", "hulll"), "hulll"),
    "policy parameter": (("--policy", "hull:fil=true"), "policy 'hull'"),
    "policy range": (("--policy", "argmax:lag=9"), "expected an integer in 1..8"),
    "policy beyond gamma": (("--policy", "fixed:k=8"), "policy 'fixed': k=8 exceeds the draft block, expected 0..7"),
    "policy file": (("--policy", "nothing.json"), "nothing.json"),
    "lossy in time": (("--policy", "hull", "--schedule", "overlapped"), "expected schedule synchronous or no-overlap"),
    "schedule": (("--schedule", "later"), "schedule 'later' is unknown, expected one of overlapped"),
    "router": (("--replicas", "2", "--router", "random"), "router 'random' is unknown"),
    "drafter": (("--drafter", "medusa"), "unknown drafter 'medusa'"),
    "gamma": (("--gamma", "0"), "gamma=0 is refused"),
    "concurrency": (("--concurrency", "0"), "concurrency=0 is refused, expected 1.."),
    "running": (("--max-running-requests", "0"), "max-running-requests=0 is refused, expected 1..65536"),
    "chunk": (("--chunked-prefill-size", "-1"), "chunked-prefill-size=-1 is refused"),
    "prefill": (("--max-prefill-tokens", "0"), "max-prefill-tokens=0 is refused"),
    "kv": (("--kv-tokens", "0"), "kv-tokens=0 is refused"),
    "kv too small": (("--kv-tokens", "40"), "no request fits in 40 KV tokens, expected at least"),
    "replicas": (("--replicas", "0"), "replicas=0 is refused"),
    "replications": (("--replications", "0"), "replications=0 is refused, expected 1..1000"),
    "jobs": (("--jobs", "0"), "jobs=0 is refused, expected 1..1024"),
    "limit": (("--limit", "0"), "limit"),
    "rate": (("--request-rate", "0"), "request_rate is 0.0, expected a number above 0"),
    "rate nan": (("--request-rate", "nan"), "--request-rate nan is refused"),
    "scale": (("--rate-scale", "-2"), "rate_scale is -2.0"),
    "window": (("--start", "5", "--end", "4"), "4"),
    "empty window": (("--start", "1e9"), "request"),
    "cost term": (("--cost", "verify_s=1"), "--cost: 'verify_s=1' is refused"),
    "cost range": (("--cost", "host_s=-1"), "cost term: host_s=-1"),
    "cost nan": (("--cost", "host_s=nan"), "expected a finite number"),
    "cost twice": (("--cost", "host_s=0,host_s=1"), "given twice"),
    "confidence": (("--confidence", "temperature=0"), "confidence temperature=0"),
    "confidence name": (("--confidence", "heat=1"), "--confidence: 'heat=1' is refused"),
    "no target": (("--output", "no/such/folder/out.jsonl"), "is no directory"),
}


@pytest.mark.parametrize("name", VALUES)
def test_values(capsys: pytest.CaptureFixture[str], name: str) -> None:
    arguments, says = VALUES[name]
    once = [text for text in GOOD if not (name == "limit" and text in ("--limit", "40"))]
    for flag in ("--replications", "--jobs"):
        if flag in arguments:
            at = once.index(flag)
            del once[at : at + 2]
    assert_one_line_error(call(capsys, *once, *arguments), says)


@pytest.mark.parametrize("flag", ["--output", "--timeline"])
def test_a_directory_is_no_target(capsys: pytest.CaptureFixture[str], tmp_path: Path, flag: str) -> None:
    assert_one_line_error(call(capsys, *GOOD, flag, str(tmp_path)), "is a directory")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("flag", ["--output", "--timeline"])
def test_a_disk_that_refuses_leaves_what_was_there(tmp_path: Path, flag: str) -> None:
    """The file may grow to 500 bytes, less than any result: the old result stays, whole."""
    target = tmp_path / "result.json"
    target.write_text("the result before")

    def small_disk() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))

    answer = call_alone(*GOOD, "--policy", "hull", flag, str(target), before=small_disk)
    assert_one_line_error(answer, f"cannot write {target}")
    assert target.read_text() == "the result before"
    assert list(tmp_path.iterdir()) == [target], "a temporary file was left"


def test_nothing_is_written_when_a_later_file_is_refused(tmp_path: Path) -> None:
    """A timeline that fails must not leave its own part; the run ends with the error."""
    target = tmp_path / "timeline.json"

    def small_disk() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))

    answer = call_alone(*GOOD, "--timeline", str(target), "--output", str(tmp_path / "o"), before=small_disk)
    assert_one_line_error(answer, "cannot write")
    assert list(tmp_path.iterdir()) == []


def test_the_command_line_itself() -> None:
    """Missing options and unknown flags are the parser's own errors; no traceback either."""
    for arguments in (("--trace", "example"), (*GOOD, "--speed", "9")):
        answer = call_alone(*arguments)
        assert answer.status == 2 and "Traceback" not in answer.err and answer.out == ""


def test_help_names_every_flag() -> None:
    answer = call_alone("--help")
    assert answer.status == 0
    for flag in ("--trace", "--policy-profile", "--dp-attention", "--chunked-prefill-size", "--timeline"):
        assert flag in answer.out
