"""Estimates priced with the library: their terms, what they refuse, and that they need no network."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sglang_dspark.cost import StepCost, keys_of, load_profile
from sglang_dspark.cost.estimate.anchors import REFERENCE_CONTEXT
from sglang_dspark.cost.estimate.asked import Asked
from sglang_dspark.errors import InputError

pytest.importorskip("aiconfigurator_core", reason="needs aiconfigurator-core (extra `estimate`)")

from sglang_dspark.cost.estimate.draft import price_draft
from sglang_dspark.cost.estimate.forward import Forward
from sglang_dspark.cost.estimate.library import Precisions
from sglang_dspark.cost.estimate.models import find_draft, find_model
from sglang_dspark.cost.estimate.table import estimate_table

QWEN = "estimate:h100_sxm/Qwen3-8B"
BF16 = Precisions("bfloat16", None, "bfloat16")


@pytest.fixture(scope="module")
def qwen() -> StepCost:
    return load_profile(QWEN)


@pytest.fixture(scope="module")
def forward() -> Forward:
    return Forward("Qwen/Qwen3-8B", "h100_sxm", BF16)


@pytest.mark.parametrize(
    "requests, width, context", [(1, 1, 1024), (8, 4, 4096), (64, 8, 1024), (256, 2, 256), (32, 8, 8192)]
)
def test_the_terms_give_the_kernel_times_back(
    qwen: StepCost, forward: Forward, requests: int, width: int, context: int
) -> None:
    """R requests, B = R * width, at any context, within what the provenance says."""
    tokens = requests * width
    kernels = forward.tokens_s(tokens) + forward.attention_s(requests, width, context)
    floor = float(qwen.verify.at(tokens))
    ours = floor + qwen.terms["context_token_s"] * requests * context
    ours += qwen.terms["width_context_s"] * (tokens - requests) * context
    assert ours == pytest.approx(kernels, rel=qwen.meta["fit_error"]["verify_largest"] + 1e-3)


def test_queries_of_one_request_read_its_keys_once(forward: Forward) -> None:
    """Eight queries a request: the KV floor of the batch, far from eight times it (256 requests, 1,024 tokens each)."""
    held = 256 * 1024 * forward.kv_bytes_per_token()
    floor = held / 3.35e12  # the H100's memory bandwidth
    wide, narrow = forward.attention_s(256, 8, 1024), forward.attention_s(256, 1, 1024)
    assert floor < narrow <= wide < 1.3 * narrow


def test_kv_is_never_what_the_library_would_guess() -> None:
    """It infers fp8 from DeepSeek's checkpoint; SGLang keeps bfloat16 unless a flag says otherwise."""
    asked = Asked("h200_sxm", "DeepSeek-V3", tp=8)
    assert estimate_table(asked).meta["precisions"] == {"gemm": "fp8_block", "kv": "bfloat16", "moe": "fp8_block"}  # type: ignore[index]


def test_more_work_takes_longer_and_more_gpus_less(qwen: StepCost) -> None:
    assert np.all(np.diff(qwen.draft.at(np.array([1.0, 16.0, 64.0, 128.0, 256.0]))) > 0)
    two = load_profile(f"{QWEN},tp=2")
    for tokens in (1, 64, 512, 2048):
        assert float(two.verify.at(tokens)) < float(qwen.verify.at(tokens))
    assert two.terms["kv_tokens"] > 2 * qwen.terms["kv_tokens"]
    assert qwen.prefill_s(2048) < 2.2 * qwen.prefill_s(1024) < 4 * qwen.prefill_s(512)
    assert 0.1 < qwen.terms["draft_kv_share"] < 0.25, "5 of 36 layers, and the draft's weights"


def test_kv_capacity_is_what_the_weights_and_sglangs_reserve_leave(qwen: StepCost) -> None:
    """80 GiB less 15.3 GiB of weights and 13.4 GiB of reserve, in tokens of 36 layers x 8 heads x 128 x 2 x 2 bytes."""
    reserve = (512 + 1.5 * 8192 + 1024 / 8 + 2 * 256) / 1024
    per_token = 36 * 8 * 128 * 2 * 2
    assert qwen.terms["kv_tokens"] == pytest.approx((80 - 16380854272 / 2**30 - reserve) * 2**30 / per_token, rel=1e-3)


def test_an_estimate_says_what_it_is(qwen: StepCost) -> None:
    assert qwen.is_estimate and qwen.splits_draft and not qwen.diagonal
    meta = qwen.meta
    assert "estimate, not measured" in meta["how"] and "0.12.0" in meta["software"] and "0.5.14" in meta["software"]
    assert meta["precisions"] == {"gemm": "bfloat16", "kv": "bfloat16"} and meta["gamma"] == 7
    assert meta["draft"].startswith("assumed: 5 layers of the target's geometry")
    assert 0 < meta["fit_error"]["verify_mean"] < 0.03 and meta["fit_error"]["verify_largest"] < 0.1
    stated = {"estimate_error", "draft", "sampling", "host_s", "copy_s", "captured_tokens", "kv_precision", "eager"}
    assert stated <= keys_of(qwen.assumptions)
    experts = load_profile("estimate:h200_sxm/DeepSeek-V3,tp=8")
    assert {"expert_routing", "over_roofline"} <= keys_of(experts.assumptions)


@pytest.mark.parametrize("anchors", ["4:7.5", "1:7.2", "4:7.5/64:12", "1:6/16:9/128:20"])
def test_an_anchored_step_takes_what_was_measured(anchors: str) -> None:
    given = anchors.split("/")
    model = load_profile(",".join([QWEN, *(f"anchor={text}" for text in given)]))
    for text in given:
        requests, milliseconds = int(text.split(":")[0]), float(text.split(":")[1])
        context = model.terms["context_token_s"] * requests * REFERENCE_CONTEXT
        assert 1e3 * (float(model.verify.at(requests)) + context) == pytest.approx(milliseconds, rel=1e-4)
    assert model.meta["anchors"] == given and "anchors" in keys_of(model.assumptions)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("estimate:h1000/Qwen3-8B", "unknown GPU 'h1000', expected one of a100_sxm, b200_sxm"),
        ("estimate:h100_sxm/Qwen3-9B", "unknown model 'Qwen3-9B', expected a folder with a config.json or one of"),
        ("estimate:h100_sxm/someone/else", "unknown model 'someone/else'"),
        (
            f"{QWEN},tp=3",
            "tp=3 is refused: the 32 attention heads of Qwen3-8B do not divide by it, expected one of 1, 2, 4, 8",
        ),
        (f"{QWEN},tp=16", "a node has 8 x h100_sxm"),
        ("estimate:l40s/Qwen3-8B,gemm=fp7", "gemm=fp7 is refused on l40s, expected one of bfloat16, fp8"),
        ("estimate:l40s/Qwen3-8B,gemm=fp8_block", "gemm=fp8_block is refused on l40s, expected one of bfloat16, fp8"),
        (f"{QWEN},moe=fp8_block", "moe=fp8_block does nothing: Qwen3-8B has no experts"),
        (f"{QWEN},tp=2,ep=2", "ep=2 does nothing: Qwen3-8B has no experts"),
        (f"{QWEN},anchor=4:70", "anchor 4:70 is refused: it is 10 times what the kernel times add up to"),
        (f"{QWEN},draft=DeepSeek-V3", "draft 'DeepSeek-V3' has no estimate: it has experts"),
        ("estimate:h100_sxm/Qwen3.5-27B", "no times of its recurrent layers"),
        ("estimate:h100_sxm/DeepSeek-V3", "does not fit"),
        ("estimate:l40s/DeepSeek-V3,tp=8", "has no estimate"),
    ],
)
def test_what_has_no_estimate_is_refused_in_one_sentence(text: str, says: str) -> None:
    with pytest.raises(InputError) as refused:
        load_profile(text)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value) and "site-packages" not in str(refused.value)


def dense(**changes: Any) -> dict[str, Any]:
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "num_hidden_layers": 36,
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
        "max_position_embeddings": 40960,
        **changes,
    }


def folder(path: Path, config: dict[str, Any]) -> Path:
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    return path


def test_a_local_config_of_a_known_architecture_works(tmp_path: Path, qwen: StepCost) -> None:
    local = load_profile(f"estimate:h100_sxm/{folder(tmp_path / 'mine', dense())}")
    assert local.meta["model"] == "mine, DSpark draft"
    assert np.array_equal(local.verify.seconds, qwen.verify.seconds)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (dense(architectures=["SomethingElse"]), "architecture SomethingElse is not supported"),
        ({"hidden_size": 4096}, "names no architectures"),
    ],
)
def test_a_local_config_of_an_unknown_architecture_is_refused(
    tmp_path: Path, config: dict[str, Any], says: str
) -> None:
    with pytest.raises(InputError, match=says):
        load_profile(f"estimate:h100_sxm/{folder(tmp_path / 'mine', config)}")


def test_a_draft_of_ones_own_is_priced_by_its_numbers(tmp_path: Path, forward: Forward) -> None:
    """A DeepSpec export: its layers, block size, Markov rank and target layers count."""
    target = find_model("Qwen3-8B")
    own = dense(
        architectures=["Qwen3DSparkModel"],
        num_hidden_layers=2,
        block_size=5,
        markov_rank=64,
        target_layer_ids=[1, 17, 33],
    )
    draft = find_draft(str(folder(tmp_path / "draft", own)), target, None)
    assert (draft.layers, draft.gamma, draft.rank, draft.features, draft.assumed) == (2, 5, 64, 3, False)
    small = price_draft(draft, target, forward, "h100_sxm", 1, [1, 64], "silicon")
    assumed = price_draft(find_draft(None, target, 7), target, forward, "h100_sxm", 1, [1, 64], "silicon")
    assert all(ours < theirs for ours, theirs in zip(small.seconds, assumed.seconds, strict=True))
    assert small.weight_bytes < assumed.weight_bytes
    model = load_profile(f"{QWEN},draft={tmp_path / 'draft'}")
    assert model.meta["gamma"] == 5 and model.meta["draft"].startswith("draft: 2 layers")
    assert model.captured is not None and model.captured[0] == 6


ALONE = (
    "import socket, sys\n"
    "def refuse(*args, **kwargs): raise SystemExit('asked the network')\n"
    "socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse\n"
    "from sglang_dspark.cost import encode_table\n"
    "from sglang_dspark.cost.estimate.asked import Asked\n"
    "from sglang_dspark.cost.estimate.table import estimate_table\n"
    "sys.stdout.buffer.write(encode_table(estimate_table(Asked.of(sys.argv[1]))))\n"
)


def run_alone(text: str, *, isolated: bool = False, hash_seed: str = "0") -> bytes:
    command = [sys.executable, "-c", ALONE, text]
    if isolated:
        command = ["unshare", "-rn", *command]
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    done = subprocess.run(command, capture_output=True, timeout=120, env=environment, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def test_two_runs_are_byte_identical_and_ask_no_network() -> None:
    """The second one, where the machine allows that, in a namespace without any network."""
    isolated = shutil.which("unshare") is not None
    isolated = isolated and subprocess.run(["unshare", "-rn", "true"], capture_output=True).returncode == 0
    first = run_alone(QWEN, hash_seed="1")
    assert first == run_alone(QWEN, hash_seed="2", isolated=isolated)
    assert json.loads(first)["meta"]["estimate"] is True


def test_a_hub_id_outside_the_list_is_never_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    import urllib.request

    def asked(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("asked the network")

    monkeypatch.setattr(urllib.request, "urlopen", asked)
    for text in ("estimate:h100_sxm/Qwen/Qwen2.5-7B", f"{QWEN},draft=deepseek-ai/dspark_qwen3_8b_block7"):
        with pytest.raises(InputError, match="unknown model"):
            load_profile(text)
