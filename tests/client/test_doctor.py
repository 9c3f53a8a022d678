"""`dspark doctor`: what it concludes from a server's state, one ailment at a time."""

import json
import subprocess
import sys
from copy import deepcopy

import pytest
from fake_server import FakeServer

from sglang_dspark.live.client import Server
from sglang_dspark.live.doctor import diagnosed, examine

INFO = {"speculative_algorithm": "DSPARK", "version": "0.5.23", "speculative_dspark_confidence_sts_path": "sts.json"}
GOOD = {
    "policy": "hull",
    "class": "stopping",
    "lossless": True,
    "since_step": 0,
    "schedule": "overlapped",
    "mode": "compact",
    "gamma": 7,
    "profile": "here",
    "provenance": {"hardware": "cpu (x86_64)", "estimate": False, "foreign": False, "requests": [1, 48]},
    "hardware": "cpu (x86_64)",
    "limits": {"max_running_requests": 48, "kv_tokens": 100_000},
    "ranks": [{"faults": []}],
    "forced_fraction": None,
    "drift": {"measured_over_predicted": 1.02, "holds": True, "windows": 4},
    "confidences": {"error": 0.02, "bias": 0.0, "outcomes": 4096},
    "calibration": None,
    "trial": None,
    "recording": None,
    "decisions": "compiled (numba 0.68.1)",
    "counters": {
        "decode_steps": 1000,
        "steps_by_reason": {"policy": 1000, "late": 0, "explore": 0, "forced": 0, "fault": 0},
        "anchors": 8000,
        "drafted_tokens": 56_000,
        "verified_tokens": 28_000,
        "accepted_tokens": 14_000,
        "expected_tokens": 14_100.0,
        "fallback_steps": 0,
        "certain_confidences": 10,
        "decide_s": 0.01,
        "timed_steps": 990,
        "timed_s": 9.9,
        "timed_committed": 21_780,
        "priced_tokens": 22_100.0,
        "priced_s": 9.0,
        "priced_everything_tokens": 24_000.0,
        "priced_everything_s": 11.0,
        "mean_accept_length": 2.75,
    },
}


def with_(path: str, value) -> dict:
    """The good state with one value of it changed."""
    state = deepcopy(GOOD)
    *above, last = path.split(".")
    inner = state
    for name in above:
        inner = inner[name]
    inner[last] = value
    return state


def levels(state, info=INFO) -> dict[str, str]:
    return {finding.key: finding.level for finding in diagnosed(0, info, state).findings}


def test_a_good_server_is_healthy_and_says_what_it_gains() -> None:
    found = diagnosed(0, INFO, GOOD)
    assert found.healthy and set(levels(GOOD).values()) == {"good"}
    assert "policy hull (stopping, lossless)" in found.on
    said = " ".join(finding.says for finding in found.findings)
    assert "2.75 tokens a step" in said and "50% of what is verified is thrown away" in said
    gain = (22_100 / 9.0) / (24_000 / 11.0) - 1
    assert f"{gain:+.1%} tokens/s against verifying every draft" in said
    assert found.figures["gain_over_verifying_everything"] == pytest.approx(gain)
    assert found.figures["tokens_per_s"] == pytest.approx(2200)


REASONS = GOOD["counters"]["steps_by_reason"]
AILMENTS = [
    ("confidences.error", 0.2, "miscalibrated", "warning", "off by 0.200"),
    ("drift", {"measured_over_predicted": 1.6, "holds": False, "windows": 1}, "drift", "problem", "1.60 times"),
    ("provenance.foreign", True, "foreign-profile", "problem", "recorded on cpu"),
    ("provenance.estimate", True, "estimate", "warning", "nobody has measured"),
    ("provenance.requests", [1, 8], "beyond-profile", "note", "up to 8 requests"),
    ("profile", None, "no-profile", "note", "no profile"),
    ("counters.certain_confidences", 20_000, "saturated", "warning", "36% of the confidences"),
    ("counters.steps_by_reason", REASONS | {"late": 100}, "late", "warning", "10.0%"),
    ("counters.fallback_steps", 30, "fallback", "problem", "in 3.0% of the steps"),
    ("ranks", [{"faults": [{"what": "kernel markov", "count": 2, "first": "boom"}]}], "fault", "problem", "boom"),
    ("forced_fraction", 0.5, "forced", "warning", "50% of all drafts"),
    ("mode", "cap-accept", "cap-accept", "warning", "saves no compute"),
    ("lossless", False, "lossy", "problem", "not the target's"),
    ("counters.priced_s", 15.0, "gain", "warning", "against verifying every draft"),
    ("decisions", "NumPy (DSPARK_COMPILED=0)", "numpy", "note", "decide in NumPy (DSPARK_COMPILED=0)"),
    ("counters.decide_s", 2.0, "overhead", "note", "deciding takes 2.00 ms"),
    ("recording", {"stalled": True, "problem": "No space left"}, "recording", "warning", "No space left"),
    ("counters.decode_steps", 20, "little-traffic", "note", "20 decode steps"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value", "key", "level", "says"), AILMENTS, ids=[one[2] for one in AILMENTS])
def test_one_ailment_is_named_with_a_remedy(path, value, key, level, says) -> None:
    found = diagnosed(0, INFO, with_(path, value))
    [named] = [finding for finding in found.findings if finding.key == key]
    assert named.level == level and says in named.says and named.do
    assert found.healthy == (level == "note")
    others = {other: value for other, value in levels(with_(path, value)).items() if other != key}
    assert set(others.values()) <= {"good"}, others
    assert found.findings[0].level == level, "what is wrong stands first"


def test_no_calibration_is_a_warning_until_confidences_are_seen_to_be_right() -> None:
    bare = {**INFO, "speculative_dspark_confidence_sts_path": None}
    assert levels(GOOD, bare)["uncalibrated"] == "note"
    for error in (None, 0.2):
        assert levels(with_("confidences.error", error), bare)["uncalibrated"] == "warning"
    assert levels(with_("calibration", {"slope": 0.9, "shift": 0.1}), bare)["calibrated"] == "good"


def test_a_trial_s_measured_gain_is_told() -> None:
    trial = {"policy": "hull", "previous": "fixed:k=7", "verdict": "kept", "gain": 0.12, "gain_error": 0.03}
    [told] = [one for one in diagnosed(0, INFO, with_("trial", trial)).findings if one.key == "measured-gain"]
    assert "hull is kept: +12.0 +- 3.0 %" in told.says


def test_a_server_without_us_or_without_dspark() -> None:
    assert levels(None)["no-policy"] == "problem"
    assert levels(None, {"version": "0.5.23"})["no-dspark"] == "problem"
    assert diagnosed(0, {"version": "0.5.23"}, None).on == "no speculation, by SGLang 0.5.23 alone"


def test_a_server_that_has_decoded_nothing() -> None:
    counters = {key: 0 for key in GOOD["counters"]} | {"steps_by_reason": GOOD["counters"]["steps_by_reason"]}
    found = diagnosed(0, INFO, with_("counters", counters))
    assert "little-traffic" in {finding.key for finding in found.findings}


def test_the_command(tmp_path) -> None:
    server = FakeServer()
    try:
        real = server.get

        def get(path):
            status, answer = real(path)
            if path == "/server_info":
                answer |= INFO
                answer["internal_states"] = [{"dspark": GOOD}, {"dspark": with_("lossless", False)}]
            return status, answer

        server.get = get
        command = [sys.executable, "-c", "from sglang_dspark.cli import main; main()", "doctor", "--url", server.url]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 1 and "replica 1: policy hull" in done.stdout, done.stderr
        assert "PROBLEM  the output law is not the target's" in done.stdout and "-> dspark policy" in done.stdout
        answer = json.loads(subprocess.run([*command, "--json"], capture_output=True, text=True).stdout)
        assert answer["healthy"] is False and [one["replica"] for one in answer["replicas"]] == [0, 1]
        assert examine(Server(server.url))[0].healthy
    finally:
        server.close()
    gone = subprocess.run([*command[:-1], "http://127.0.0.1:9"], capture_output=True, text=True)
    assert gone.returncode == 2 and "cannot be used" in gone.stderr
