"""Flags, early refusals, and a plug-in that is switched off."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("sglang", reason="needs the extra `serve`")

from sglang_dspark.serving.base import start_line  # noqa: E402
from sglang_dspark.serving.base.options import ATTRIBUTE, ServingOptions, options_of  # noqa: E402
from sglang_dspark.serving.plugin import flags, startup  # noqa: E402
from sglang_dspark.serving.recording import arrivals  # noqa: E402

FLAGS = ("policy", "profile", "shadow-policy", "schedule", "allow-foreign-profile", "explore")


def record(**fields: object) -> SimpleNamespace:
    return SimpleNamespace(**{"speculative_algorithm": "DSPARK", "speculative_dspark_sps_table_path": None, **fields})


def test_flags_become_options() -> None:
    parser = argparse.ArgumentParser()
    flags.add_flags(None, parser)
    arguments = parser.parse_args(["--speculative-dspark-policy", "fixed:k=2", "--speculative-dspark-explore", "0.1"])
    kept = flags.read_flags(lambda cls, args: record(), SimpleNamespace, arguments)
    assert options_of(kept) == ServingOptions(policy="fixed:k=2", explore=0.1)
    assert options_of(record()) == ServingOptions()


def test_options_travel_with_sglangs_record() -> None:
    from sglang.srt.server_args import ServerArgs

    kept = ServerArgs(model_path="dummy")
    setattr(kept, ATTRIBUTE, ServingOptions(policy="hull"))
    assert options_of(pickle.loads(pickle.dumps(kept))).policy == "hull"


@pytest.fixture(autouse=True)
def _mode(monkeypatch) -> None:
    monkeypatch.delenv(startup.MODE_VARIABLE, raising=False)
    yield
    os.environ.pop(startup.MODE_VARIABLE, None)


@pytest.mark.parametrize(
    ("fields", "options", "sentence"),
    [
        ({"speculative_algorithm": "EAGLE"}, ServingOptions(policy="fixed"), "--speculative-algorithm DSPARK"),
        ({"speculative_algorithm": None}, ServingOptions(policy="fixed"), "it is none"),
        ({}, ServingOptions(policy="hull"), "--speculative-dspark-profile"),
        ({}, ServingOptions(policy="argmax-live"), "not lossless"),
        ({}, ServingOptions(profile="/no/such.json"), "no/such.json"),
    ],
)
def test_refusals_leave_with_one_sentence(fields: dict, options: ServingOptions, sentence: str, capsys) -> None:
    with pytest.raises(SystemExit) as left:
        startup.prepare(record(**fields), options)
    assert left.value.code == 2
    message = capsys.readouterr().err.strip()
    assert message.startswith("sglang-dspark: ") and sentence in message and "\n" not in message


def test_the_mode_is_chosen_unless_the_user_did(monkeypatch, capsys) -> None:
    startup.prepare(record(), ServingOptions(policy="fixed:k=2"))
    assert os.environ[startup.MODE_VARIABLE] == startup.COMPACT
    monkeypatch.setenv(startup.MODE_VARIABLE, startup.CAP_ACCEPT)
    startup.prepare(record(), ServingOptions(policy="fixed:k=2"))
    assert os.environ[startup.MODE_VARIABLE] == startup.CAP_ACCEPT
    monkeypatch.setenv(startup.MODE_VARIABLE, startup.STATIC)
    with pytest.raises(SystemExit):
        startup.prepare(record(), ServingOptions(policy="fixed:k=2"))
    assert "static" in capsys.readouterr().err


def test_requests_carry_their_arrival_to_the_scheduler(monkeypatch) -> None:
    from sglang.srt.observability.req_time_stats import (
        APIServerReqTimeStats,
        DPControllerReqTimeStats,
        SchedulerReqTimeStats,
    )

    monkeypatch.delenv("SGLANG_DSPARK_CARRY_ARRIVALS", raising=False)
    for stats in (APIServerReqTimeStats, DPControllerReqTimeStats):
        monkeypatch.setattr(stats, "__getstate__", stats.__getstate__)  # put back later
    here = APIServerReqTimeStats()
    here.set_created_time(123.5)
    assert SchedulerReqTimeStats.new_from_obj(pickle.loads(pickle.dumps(here))).created_time == 0.0
    for _ in range(2):
        arrivals.forward()
    between = DPControllerReqTimeStats.new_from_obj(pickle.loads(pickle.dumps(here)))
    for carried in (here, between):
        assert SchedulerReqTimeStats.new_from_obj(pickle.loads(pickle.dumps(carried))).created_time == 123.5


def test_another_sglang_is_refused(monkeypatch, capsys) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.5.24")
    with pytest.raises(SystemExit):
        startup.prepare(record(), ServingOptions(policy="fixed:k=2"))
    assert "0.5.24" in capsys.readouterr().err


def test_drafts_and_calibrations_that_do_not_fit(tmp_path: Path) -> None:
    from sglang_dspark.errors import InputError

    (tmp_path / "config.json").write_text(json.dumps({"enable_confidence_head": False}))
    with pytest.raises(InputError, match="no confidence head"):
        startup.check_draft(str(tmp_path), None, 7)
    calibration = tmp_path / "sts.json"
    calibration.write_text(json.dumps({"temperatures": [1.0] * 5}))
    with pytest.raises(InputError, match="gamma=5, expected the draft's gamma=7"):
        startup.check_draft(None, str(calibration), 7)
    startup.check_draft(None, str(calibration), 5)


@pytest.mark.parametrize(
    ("recorded", "here", "same"),
    [
        ("4x NVIDIA B300", "NVIDIA B300 SXM6 AC", True),
        ("NVIDIA H100 80GB HBM3", "NVIDIA H100 80GB HBM3", True),
        ("4x NVIDIA B300", "NVIDIA H100 80GB HBM3", False),
        ("NVIDIA GB10", "cpu (x86_64)", False),
        ("cpu", "cpu (aarch64)", True),
    ],
)
def test_hardware_is_compared_by_model(recorded: str, here: str, same: bool) -> None:
    assert start_line.same_hardware(recorded, here) is same


def test_a_foreign_profile_needs_permission(monkeypatch) -> None:
    from serving_support import flat_cost

    from sglang_dspark.errors import InputError

    cost = flat_cost()
    cost.meta["hardware"] = "4x NVIDIA B300"
    monkeypatch.setattr(start_line, "hardware_name", lambda: "cpu (x86_64)")
    here = start_line.hardware_name()
    with pytest.raises(InputError, match="recorded on 4x NVIDIA B300"):
        start_line.check_hardware(cost, ServingOptions(profile="x"), here)
    start_line.check_hardware(cost, ServingOptions(profile="x", allow_foreign_profile=True), here)
    start_line.check_hardware(cost, ServingOptions(profile="x"), None)
    from sglang_dspark.policies import make_policy
    from sglang_dspark.serving.base.options import Resolved

    line = start_line.start_line(
        Resolved(make_policy("hull"), None, cost, "synchronous", 0.0), ServingOptions(), "cap-accept", "overlap"
    )
    assert "FOREIGN HARDWARE" in line and "saves no compute" in line


_LOOK = (
    "from sglang.srt.plugins import load_plugins; load_plugins()\n"
    "import argparse, json\n"
    "from sglang.srt.plugins.hook_registry import HookRegistry\n"
    "from sglang.srt.arg_groups.resolution_hooks import _HOOKS\n"
    "from sglang.srt.server_args import ServerArgs\n"
    "from sglang.srt.platforms import current_platform\n"
    "parser = argparse.ArgumentParser(); ServerArgs.add_cli_args(parser)\n"
    "ours = [hook for hooks in HookRegistry._hooks.values() for _, hook, _ in hooks]\n"
    "ours += [hook for hooks in _HOOKS.values() for hook in hooks]\n"
    "ours = [hook for hook in ours if hook.__module__.startswith('sglang_dspark')]\n"
    "print(json.dumps([parser.format_help(), len(ours), type(current_platform).__module__]))\n"
)


def test_help_and_a_plugin_that_is_switched_off() -> None:
    """`SGLANG_PLUGINS=` leaves SGLang as it is: no flag, no hook, no platform."""
    environment = {name: value for name, value in os.environ.items() if name != "SGLANG_PLUGINS"}
    runs = [
        subprocess.Popen([sys.executable, "-c", _LOOK], stdout=subprocess.PIPE, text=True, env={**environment, **more})
        for more in ({}, {"SGLANG_PLUGINS": ""})
    ]
    enabled, disabled = (json.loads(run.communicate(timeout=300)[0].splitlines()[-1]) for run in runs)
    for flag in FLAGS:
        assert f"--speculative-dspark-{flag}" in enabled[0]
        assert f"--speculative-dspark-{flag}" not in disabled[0]
    assert enabled[1] > 0 and disabled[1] == 0
    assert not disabled[2].startswith("sglang_dspark")


def test_a_policy_file_that_was_tuned_elsewhere_is_said(tmp_path) -> None:
    path = tmp_path / "policy.json"
    path.write_text('{"policy": "hull", "meta": {"gamma": 7, "max_running_requests": 64}}')
    said = startup.tuned_elsewhere(str(path), 5, 48)
    assert "was tuned for gamma 7 (here 5) and max_running_requests 64 (here 48): its gain" in said
    assert startup.tuned_elsewhere(str(path), 7, None) == startup.tuned_elsewhere("hull", 5, 48) == ""
    path.write_text('{"policy": "hull"}')
    assert startup.tuned_elsewhere(str(path), 5, 48) == ""
