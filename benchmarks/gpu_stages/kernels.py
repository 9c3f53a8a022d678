"""Our kernels and SGLang's own in CUDA graphs, against the ceilings measured in the same run: `kernels.py`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from gpu_stages import Stage

SCRIPT = Path(__file__).resolve().parents[1] / "kernels.py"


def run(stage: Stage) -> None:
    target = stage.out / "kernels-measured.json"
    arguments = ["--device", "cpu", "--small"] if stage.device.type == "cpu" else ["--out", str(target)]
    arguments += ["--sglang", stage.sglang] if stage.sglang else []
    done = subprocess.run([sys.executable, str(SCRIPT), *arguments], check=False)
    if done.returncode:
        raise RuntimeError(f"{SCRIPT.name} ended with status {done.returncode}")
    if target.is_file():
        rows = json.loads(target.read_text())["rows"]
        stage.note(**{f"us, {row['name']}, R={row['requests']}": round(1e6 * row["median_s"], 1) for row in rows})
