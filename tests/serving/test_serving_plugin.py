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

from sglang_dspark.errors import InputError  # noqa: E402
from sglang_dspark.serving.base import hardware, start_line  # noqa: E402
from sglang_dspark.serving.base.options import ATTRIBUTE, ServingOptions, options_of  # noqa: E402
from sglang_dspark.serving.plugin import flags, startup, taking_part  # noqa: E402
from sglang_dspark.serving.recording import arrivals  # noqa: E402

FLAGS = ("policy", "profile", "shadow-policy", "schedule", "allow-foreign-profile", "explore", "if-possible")


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
    (tmp_path / "config.json").write_text(json.dumps({"enable_confidence_head": False}))
    with pytest.raises(InputError, match="no confidence head"):
        startup.check_draft(str(tmp_path), None, 7)
    calibration = tmp_path / "sts.json"
    calibration.write_text(json.dumps({"temperatures": [1.0] * 5}))
    with pytest.raises(InputError, match="gamma=5, expected the draft's gamma=7"):
        startup.check_draft(None, str(calibration), 7)
    startup.check_draft(None, str(calibration), 5)


CARDS = [
    "NVIDIA H100 80GB HBM3",
    "NVIDIA H100 PCIe",
    "NVIDIA H100 NVL",
    "NVIDIA H200",
    "NVIDIA H200 NVL",
    "NVIDIA A100-SXM4-40GB",
    "NVIDIA A100-SXM4-80GB",
    "NVIDIA A100 80GB PCIe",
    "NVIDIA B200",
    "NVIDIA B300 SXM6 AC",
    "NVIDIA GB10",
    "NVIDIA GB200",
    "NVIDIA L4",
    "NVIDIA L40S",
    "NVIDIA GeForce RTX 4090",
    "NVIDIA GeForce RTX 4090 D",
    "NVIDIA GeForce RTX 4090 Laptop GPU",
    "NVIDIA GeForce RTX 5090",
    "NVIDIA RTX 6000 Ada Generation",
    "NVIDIA RTX A6000",
    "NVIDIA RTX PRO 6000 Blackwell Workstation Edition",
    "NVIDIA RTX PRO 6000 Blackwell Server Edition",
    "NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition",
    "Tesla V100-SXM2-16GB",
    "AMD Instinct MI300X",
    "cpu (x86_64)",
]


def test_every_card_equals_itself_and_no_other() -> None:
    for one in CARDS:
        for other in CARDS:
            assert hardware.same_hardware(one, other) is (one == other), (one, other)


@pytest.mark.parametrize(
    ("recorded", "here", "same"),
    [
        ("4x NVIDIA B300 (TP4)", "NVIDIA B300 SXM6 AC", True),
        ("NVIDIA H100", "NVIDIA H100 PCIe", True),
        ("H100 SXM5", "NVIDIA H100 80GB HBM3", True),
        ("H100 SXM5", "NVIDIA H100 PCIe", False),
        ("RTX 4090", "NVIDIA GeForce RTX 4090", True),
        ("RTX PRO 6000", "NVIDIA RTX PRO 6000 Blackwell Server Edition", True),
        ("RTX PRO 6000", "NVIDIA RTX 6000 Ada Generation", False),
        ("RTX 6000 Ada", "NVIDIA RTX 6000 Ada Generation", True),
        ("4x NVIDIA B300", "NVIDIA H100 80GB HBM3", False),
        ("NVIDIA GB10", "cpu (x86_64)", False),
        ("cpu", "cpu (aarch64)", True),
    ],
)
def test_hardware_is_compared_by_card(recorded: str, here: str, same: bool) -> None:
    assert hardware.same_hardware(recorded, here) is same
    assert hardware.same_hardware(here, recorded) is same


class Nvml(SimpleNamespace):
    """NVML of a machine with some cards."""

    def __init__(self, *names: str) -> None:
        super().__init__(
            nvmlInit=lambda: None,
            nvmlShutdown=lambda: None,
            nvmlDeviceGetCount=lambda: len(names),
            nvmlDeviceGetHandleByIndex=lambda index: index,
            nvmlDeviceGetHandleByUUID=lambda uuid: {"GPU-b": 1}[uuid],
            nvmlDeviceGetName=lambda handle: names[handle],
        )


@pytest.mark.parametrize(
    ("visible", "first", "order", "name"),
    [
        (None, 0, "PCI_BUS_ID", "NVIDIA H100 PCIe"),
        (None, 1, "PCI_BUS_ID", "NVIDIA L4"),
        ("1", 0, "PCI_BUS_ID", "NVIDIA L4"),
        ("1,0", 1, "PCI_BUS_ID", "NVIDIA H100 PCIe"),
        ("GPU-b", 0, None, "NVIDIA L4"),
        ("1", 0, None, None),
        ("", 0, "PCI_BUS_ID", None),
        ("MIG-x", 0, "PCI_BUS_ID", None),
    ],
)
def test_the_launcher_names_the_card_without_touching_cuda(monkeypatch, visible, first, order, name) -> None:
    import torch

    monkeypatch.setitem(sys.modules, "pynvml", Nvml("NVIDIA H100 PCIe", "NVIDIA L4"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: 1 // 0)
    for variable, value in (("CUDA_VISIBLE_DEVICES", visible), ("CUDA_DEVICE_ORDER", order)):
        monkeypatch.delenv(variable, raising=False)
        if value is not None:
            monkeypatch.setenv(variable, value)
    assert hardware.launcher_hardware(first) == name


NOT_SERVED = [
    ({"attn_dp_size": 2, "disaggregation_mode": "decode"}, "DP attention on a PD server"),
    ({"attn_dp_size": 2, "pp_size": 2}, "pipeline parallelism"),
    ({"enable_dp_attention": True, "attn_cp_size": 2}, "context parallelism"),
    ({"attn_dp_size": 2, "elastic_ep_backend": "mooncake"}, "--elastic-ep-backend"),
    ({"attn_dp_size": 2, "enable_dp_attention_local_control_broadcast": True}, "at different steps"),
    ({"pp_size": 2}, "pipeline parallelism"),
    ({"disaggregation_mode": "prefill"}, "a prefill server"),
    ({"enable_lora": True}, "LoRA"),
    ({"lora_paths": ["a=b"]}, "LoRA"),
]


@pytest.mark.parametrize(("fields", "reason"), NOT_SERVED)
def test_flags_without_effect_are_refused_or_left_alone(fields, reason, capsys, caplog) -> None:
    """Before anything is touched: the mode stays as it is, and SGLang's own worker serves as without our flags."""
    with pytest.raises(SystemExit):
        startup.prepare(record(**fields), ServingOptions(policy="fixed:k=2"))
    message = capsys.readouterr().err
    assert reason in message and "--speculative-dspark-if-possible" in message and message.count("\n") == 1
    assert startup.MODE_VARIABLE not in os.environ
    parser = argparse.ArgumentParser()
    flags.add_flags(None, parser)
    asked = ["--speculative-dspark-policy", "hull", "--speculative-dspark-if-possible"]
    kept = flags.read_flags(lambda cls, args: record(**fields), SimpleNamespace, parser.parse_args(asked))
    assert not options_of(kept).active and startup.MODE_VARIABLE not in os.environ
    assert reason in caplog.text


@pytest.mark.parametrize("fields", [{"disaggregation_mode": "decode"}, {"pp_size": 1, "attn_dp_size": 1}])
def test_a_decode_server_takes_part(fields) -> None:
    assert startup.prepare(record(**fields), ServingOptions(policy="fixed:k=2"))
    assert os.environ[startup.MODE_VARIABLE] == startup.COMPACT


@pytest.mark.parametrize("fields", [{"attn_dp_size": 2}, {"enable_dp_attention": True}])
def test_dp_attention_takes_part(fields, monkeypatch) -> None:
    assert startup.prepare(record(**fields), ServingOptions(policy="hull", profile="vllm-b300-dsv4-flash"))
    monkeypatch.setenv("SGLANG_SCHEDULER_SKIP_ALL_GATHER", "true")
    assert "decode at different times" in (taking_part.why_not(record(**fields)) or "")
    assert taking_part.why_not(record()) is None


@pytest.mark.parametrize(
    ("architecture", "backend", "refused"),
    [("Qwen3DSparkModel", "full", True), ("DeepseekV4ForCausalLMDSpark", "full", False), ("Q", "disabled", False)],
)
def test_a_dense_draft_in_graphs_under_dp_attention_is_refused_with_the_remedy(
    tmp_path, architecture, backend, refused
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": [architecture]}))
    graphs = SimpleNamespace(decode=SimpleNamespace(backend=backend))
    config = record(attn_dp_size=2, speculative_draft_model_path=str(tmp_path), cuda_graph_config=graphs)
    said = taking_part.why_not_under_graphs(config)
    assert (said is not None and "--cuda-graph-backend-decode disabled" in said) is refused
    config.attn_dp_size = 1
    assert taking_part.why_not_under_graphs(config) is None


def model(**fields: object) -> SimpleNamespace:
    from sglang.srt.configs.model_config import AttentionArch

    given = {"attention_arch": AttentionArch.MHA, "hf_text_config": SimpleNamespace(layer_types=None), **fields}
    return SimpleNamespace(**given)


def mla() -> SimpleNamespace:
    from sglang.srt.configs.model_config import AttentionArch

    windows = SimpleNamespace(layer_types=["sliding_attention"])
    return model(attention_arch=AttentionArch.MLA, hf_text_config=windows)


def test_the_mode_follows_the_backend_that_verifies() -> None:
    split = SimpleNamespace(attention_backend=None, prefill_attention_backend="triton", decode_attention_backend="fa3")
    assert taking_part.verifying_backend(split) == "triton"
    split.speculative_attention_mode = "decode"
    assert taking_part.verifying_backend(split) == "fa3"


@pytest.mark.parametrize(
    ("backend", "fields", "target", "reason"),
    [
        ("fa3", {}, model(), None),
        ("flashinfer", {}, model(), None),
        ("triton", {}, model(), "backend triton"),
        ("flashinfer", {}, model(hf_text_config=SimpleNamespace(layer_types=["sliding_attention"])), "sliding-window"),
        ("flashinfer", {}, model(is_hybrid_swa=True, sliding_window_size=128), "sliding-window"),
        ("flashinfer", {"kv_cache_dtype": "nvfp4"}, model(), "kv-cache-dtype nvfp4"),
        ("flashinfer", {"kv_cache_dtype": "nvfp4"}, mla(), None),
        ("fa3", {"enable_two_batch_overlap": True}, model(), "--enable-two-batch-overlap"),
        ("fa3", {"disable_cuda_graph_padding": True}, model(), "--disable-cuda-graph-padding"),
        (None, {}, model(), None),
    ],
)
def test_compact_only_where_it_works(backend, fields, target, reason) -> None:
    found = taking_part.why_not_compact(SimpleNamespace(**{"kv_cache_dtype": "auto", **fields}), backend, target)
    assert found is None if reason is None else reason in found


@pytest.mark.parametrize(("given", "backend"), [(None, "triton"), (None, "fa3"), ("compact", "triton")])
def test_a_mode_that_works_or_one_sentence(monkeypatch, given, backend, capsys) -> None:
    from sglang.srt.arg_groups import model_override_base, overrides

    if given is not None:
        monkeypatch.setenv(startup.MODE_VARIABLE, given)
    fields = {"attention_backend": backend, "prefill_attention_backend": None, "decode_attention_backend": None}
    server = record(**fields, kv_cache_dtype="auto")
    startup.prepare(server, ServingOptions(policy="fixed:k=2"))
    monkeypatch.setattr(overrides, "resolved_view", lambda args: args)
    monkeypatch.setattr(model_override_base, "model_config_of", lambda args: model())
    if given is None:
        startup._choose_mode(server)
        assert os.environ[startup.MODE_VARIABLE] == ("compact" if backend == "fa3" else "cap-accept")
    else:
        with pytest.raises(InputError, match="backend triton.*set cap-accept"):
            startup._choose_mode(server)


def test_a_foreign_profile_needs_permission(monkeypatch) -> None:
    from serving_support import flat_cost

    cost = flat_cost()
    cost.meta["hardware"] = "4x NVIDIA B300"
    monkeypatch.setattr(start_line, "hardware_name", lambda: "cpu (x86_64)")
    here = "cpu (x86_64)"
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
