"""`--speculative-dspark-profile auto`: measured once, found again, by everything that step costs depend on."""

import json
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from fake_server import FakeServer

from sglang_dspark.cost import load_profile
from sglang_dspark.errors import InputError
from sglang_dspark.keys import Keys
from sglang_dspark.live import load
from sglang_dspark.live.client import Server
from sglang_dspark.serving.plugin import auto_profile
from sglang_dspark.serving.plugin.auto_profile import find_or_measure, key_of, short_command

COMMAND = [
    "/usr/bin/python",
    "-m",
    "sglang.launch_server",
    "--model-path",
    "m",
    "--speculative-dspark-profile",
    "auto",
    "--port=30000",
    "--speculative-dspark-record-text",
    "--speculative-dspark-record",
    "d",
    "--tp-size",
    "2",
]
CIRCUMSTANCES = {"hardware": "cpu (x86_64)", "model": "m", "model_config": "abc", "dtype": "float32", "tp_size": 1}


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """Counts how often a short server is started; it is a stand-in."""
    started, fake = [], FakeServer()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(auto_profile, "describe", lambda arguments: {**CIRCUMSTANCES, "dtype": arguments.dtype})
    monkeypatch.setattr(load, "_SETTLE_S", 0.05)

    @contextmanager
    def short_server(command, port, keys):
        started.append(command)
        yield Server(fake.url)

    monkeypatch.setattr(auto_profile, "_short_server", short_server)
    yield started
    fake.close()


def test_the_short_server_is_the_same_but_for_our_flags():
    command = short_command(COMMAND, 7)
    assert command[1:] == [
        "-m",
        "sglang.launch_server",
        "--model-path",
        "m",
        "--tp-size",
        "2",
        "--speculative-dspark-policy",
        "fixed:k=1",
        "--port",
        "7",
    ]


def test_measured_once_and_found_again(measured, capsys):
    arguments = SimpleNamespace(dtype="float32", nnodes=1, max_running_requests=2)
    path = find_or_measure(arguments, COMMAND)
    cost = load_profile(path)
    assert cost.meta["hardware"] == "cpu (x86_64)" and len(measured) == 1 and cost.meta["cells"] == 8
    assert cost.meta["gpu_memory_gib"] == 79.6  # by which the simulator knows SGLang's defaults for this machine
    assert find_or_measure(arguments, COMMAND) == path and len(measured) == 1
    assert "measured before" in capsys.readouterr().err
    other = find_or_measure(SimpleNamespace(dtype="bfloat16", nnodes=1, max_running_requests=2), COMMAND)
    assert other != path and len(measured) == 2


def test_every_circumstance_is_in_the_name():
    names = {key_of({**CIRCUMSTANCES, key: "changed"}) for key in CIRCUMSTANCES} | {key_of(CIRCUMSTANCES)}
    assert len(names) == len(CIRCUMSTANCES) + 1 and all(name == name.strip("/") for name in names)


def test_several_nodes_and_a_server_that_measures_itself_are_refused(measured, monkeypatch):
    with pytest.raises(InputError, match="measures one node"):
        find_or_measure(SimpleNamespace(dtype="x", nnodes=2), COMMAND)
    monkeypatch.setenv(auto_profile._CHILD, "1")
    with pytest.raises(InputError, match="in full"):
        find_or_measure(SimpleNamespace(dtype="x", nnodes=1), COMMAND)
    assert not measured


def test_a_server_that_ends_at_once_is_reported():
    command = ["/bin/sh", "-c", "echo no such model; exit 3"]
    with pytest.raises(InputError, match="ended with 3: no such model"):
        with auto_profile._short_server(command, auto_profile._free_port(), Keys()):
            raise AssertionError("it never came up")


def test_plain_sglang_reads_the_table(measured):
    path = find_or_measure(SimpleNamespace(dtype="float32", nnodes=1, max_running_requests=2), COMMAND)
    text = Path(path).read_text()
    assert text.count('"bias_seconds"') == 1
    assert {"bias_seconds", "bs_probes", "alpha_seconds", "m_probes", "theta_seconds"} <= set(json.loads(text))
