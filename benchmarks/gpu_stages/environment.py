"""What machine this is, and its two ceilings: bytes a second of a copy, operations a second of a matrix product."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version

from gpu_stages import Stage

PACKAGES = ("torch", "triton", "numpy", "msgspec", "zstandard", "simpy", "sglang", "flashinfer-python", "pytest")
QUERY = "name,driver_version,memory.total,clocks.max.sm,clocks.sm,power.limit,temperature.gpu"


def run(stage: Stage) -> None:
    stage.note(python=platform.python_version(), **{name: _version(name) for name in PACKAGES})
    import torch

    if torch.cuda.is_available():
        asked = ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader"]
        answer = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
        stage.note(gpu=answer, capability=list(torch.cuda.get_device_capability()), cuda=torch.version.cuda)
    import kernels

    copy, product = kernels.ceilings(stage.device, small=stage.device.type == "cpu")
    stage.note(copy_bytes_per_s=copy, bfloat16_operations_per_s=product)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
