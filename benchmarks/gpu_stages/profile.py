"""A profile of this GPU: `record_gpu_profile.py`, written where `simulate` finds it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from gpu_stages import Stage

SCRIPT = Path(__file__).resolve().parents[1] / "record_gpu_profile.py"


def run(stage: Stage) -> None:
    target = stage.out / "profile-made.json"
    target.unlink(missing_ok=True)
    small = ["--device", "cpu", "--small"] if stage.device.type == "cpu" else []
    done = subprocess.run([sys.executable, str(SCRIPT), "--output", str(target), *small], check=False)
    if done.returncode:
        raise RuntimeError(f"{SCRIPT.name} ended with status {done.returncode}")
    import msgspec

    meta = msgspec.json.decode(target.read_bytes())["meta"]
    stage.note(**{name: meta[name] for name in ("hardware", "largest_spread", "largest_fit_error", "leaves_out")})
