"""The estimates that ship as files: they say what they are, need no library, and are what the script makes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sglang_dspark.cost import load_profile, profile_names
from sglang_dspark.cost.estimate.accuracy import accuracy, error_band

ROOT = Path(__file__).parents[2]
NAMES = [name for name in profile_names() if name.startswith("estimate-")]


def test_the_common_gpus_and_models_ship() -> None:
    for gpu in ("h100", "h200", "b200", "b300"):
        for model in ("qwen3-8b", "qwen3-14b", "qwen3-32b"):
            for precision in ("bf16", "fp8"):
                assert any(
                    name.startswith(f"estimate-{gpu}") and name.endswith(f"{model}-{precision}") for name in NAMES
                )
    assert {"estimate-h200x8-deepseek-v3-fp8", "estimate-b300x4-deepseek-v4-flash"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_estimate_says_so_and_prices_what_a_server_runs(name: str) -> None:
    model = load_profile(name)
    assert model.is_estimate and "not measured" in model.meta["how"] and not model.diagonal
    assert any(
        one.key == "estimate_error" and one.text.startswith("estimate, not measured") for one in model.assumptions
    )
    assert any(one.key == "draft" for one in model.assumptions) and model.meta["draft"]
    assert model.meta["fit_error"]["verify_mean"] < 0.05
    assert model.meta["gpu_memory_gib"] > 0 and model.meta["tp_size"] >= 1
    assert model.terms["kv_tokens"] > 20_000 and 0 < model.terms["draft_kv_share"] < 0.5
    steps = model.verify.at(np.array([1.0, 64.0, 512.0, 2048.0]))
    assert steps[1] > 0.9 * steps[0], "flat while weights are what is read"
    assert np.all(np.diff(steps[1:]) > 0), "far apart, more tokens cost more"
    assert np.all(model.draft.at(np.array([1.0, 256.0])) < steps[[0, 3]])


def test_a_shipped_estimate_loads_in_plain_sglang() -> None:
    upstream = pytest.importorskip(
        "sglang.srt.speculative.dspark_components.dspark_sps", reason="needs the sglang package (extra `serve`)"
    )
    path = str(ROOT / "profiles" / "estimate-h100-qwen3-8b-bf16.json")
    table = upstream.load_sps_table_from_path(path)
    assert isinstance(table, upstream.SpsAdditiveCostTable) and not upstream.is_uninitialized_sps_table(table)
    model = load_profile(path)
    for requests, tokens in ((1, 8), (8, 64), (64, 512)):
        ours = model.draft_s(requests) + float(model.verify_s(requests, tokens))
        assert table.step_time(num_reqs=requests, budget=tokens - requests) == pytest.approx(ours, rel=1e-4)


def test_what_every_result_prints_is_what_was_measured() -> None:
    known = accuracy()
    text = error_band().text
    assert known.steps.count >= 7 and known.serving.count > 200 and known.gains.count >= 14
    for error in (known.steps.mean, known.steps.largest, known.serving.mean, known.staircase.mean):
        assert f"{error:.0%}" in text
    page = (ROOT / "docs" / "estimates.md").read_text()
    assert f"| published decode steps | {known.steps.count} | {known.steps.mean:.1%} |" in page
    assert page.count("the right sign for all") == 2


def test_the_files_need_no_library() -> None:
    code = (
        "import sys; sys.modules['aiconfigurator_core'] = None; sys.modules['scipy.optimize'] = None\n"
        "from sglang_dspark.cost import load_profile\n"
        f"print(load_profile({NAMES[0]!r}).is_estimate)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.stdout.strip() == "True", done.stderr


@pytest.mark.parametrize("name", ["estimate-h100-qwen3-8b-bf16", "estimate-h100-qwen3-14b-fp8"])
def test_the_files_are_what_the_library_says_now(name: str) -> None:
    pytest.importorskip("aiconfigurator_core", reason="needs aiconfigurator-core (extra `estimate`)")
    from sglang_dspark.cost import encode_table
    from sglang_dspark.cost.estimate.asked import Asked
    from sglang_dspark.cost.estimate.table import estimate_table

    meta = load_profile(name).meta
    asked = Asked(meta["gpu"], meta["model"].split(",")[0], tp=meta["tp_size"], gemm=meta["precisions"]["gemm"])
    assert encode_table(estimate_table(asked)) + b"\n" == (ROOT / "profiles" / f"{name}.json").read_bytes()
