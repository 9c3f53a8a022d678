"""A head that is too sure of itself, served and recorded: `dspark calibrate` finds by how much."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("sglang", reason="needs the extra `serve`")

from live_server import LiveServer  # noqa: E402

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

SHARPENED = 3.0


@pytest.fixture(scope="module")
def sharpened_pair(demo_pair: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained pair with its confidence logits multiplied."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("sharpened")
    shutil.copytree(demo_pair / "draft", folder / "draft")
    (folder / "target").symlink_to(demo_pair / "target")
    weights = load_file(demo_pair / "draft" / "model.safetensors")
    for part in ("weight", "bias"):
        weights[f"confidence_head.proj.{part}"] *= SHARPENED
    save_file(weights, folder / "draft" / "model.safetensors", {"format": "pt"})
    return folder


def test_a_mis_tempered_head_is_put_right(sharpened_pair: Path, prompts: list[str], tmp_path: Path) -> None:
    records = tmp_path / "records"
    flags = ("--speculative-dspark-policy", "fixed:k=7", "--speculative-dspark-record", str(records))
    with LiveServer(sharpened_pair, tmp_path / "server.log", *flags) as server:
        server.generate_all(prompts[::2], concurrency=16, tokens=128, temperature=1.0, ignore_eos=True)
        time.sleep(2.5)
    program = [sys.executable, "-c", "from sglang_dspark.cli import main; main()", "calibrate", "--json"]
    done = subprocess.run(
        [*program, str(records), "--out", str(tmp_path / "sts.json")], capture_output=True, text=True, check=True
    )
    found = json.loads(done.stdout)
    before, after = (np.mean([place[f"ece_{when}"] for place in found["positions"]]) for when in ("before", "after"))
    print(f"\nmean survival ECE on held-out records: {before:.3f} before, {after:.3f} after; {found['temperatures']}")
    assert found["improved"] and after < 0.5 * before and after < 0.04
    assert np.median(found["temperatures"]) == pytest.approx(SHARPENED, rel=0.35)
