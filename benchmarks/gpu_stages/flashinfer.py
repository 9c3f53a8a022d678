"""Ragged verification under CUDA graphs on FlashInfer, where sglang and flashinfer are installed."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec

from gpu_stages import Skip, Stage


def run(stage: Stage) -> None:
    missing = [name for name in ("flashinfer", "sglang") if find_spec(name) is None]
    if missing:
        raise Skip(f"{' and '.join(missing)} not installed")
    marker = "gpu" if stage.device.type == "cuda" else "not gpu"
    command = [sys.executable, "-m", "pytest", "-q", "-m", marker, "tests/serving/test_flashinfer_ragged.py"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    print(done.stdout, done.stderr)
    stage.note(last_line=done.stdout.strip().splitlines()[-1])
    if done.returncode:
        raise RuntimeError("tests failed, see flashinfer.log")
