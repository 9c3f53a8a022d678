"""Everything that a GPU is needed for, in minutes: stages one after the other, each flushed when it ends.

    python benchmarks/gpu_wheels.py --out wheels          # where there is a network: what a bare machine lacks
    python benchmarks/gpu_session.py --wheels wheels --out session --minutes 9
    python benchmarks/gpu_session.py --out session --rehearse   # without a GPU: every stage on the CPU, small, no times

A bare machine has PyTorch, Triton and Python; sglang and a network are not needed. `session.json` is written anew after
every stage: what it found, or why it was skipped or failed. A stage that takes longer than its share is ended, and what
it had written stays.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
STAGES = {
    "environment": 40,
    "tests": 150,
    "streams": 40,
    "decisions": 60,
    "kernels": 120,
    "memory": 40,
    "flashinfer": 40,
    "profile": 120,
    "simulate": 30,
}
"""Stage -> seconds that it may take; the most telling ones first. Each is a module of `gpu_stages`."""


@dataclass
class Outcome:
    """done, skipped (no device, a package that is not there) or failed (with the reason); figures: what it found."""

    stage: str
    status: str
    reason: str = ""
    took_s: float = 0.0
    figures: dict[str, Any] = field(default_factory=dict)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for logs and results")
    parser.add_argument("--minutes", type=float, default=9.0, help="no stage begins or goes on after them")
    parser.add_argument("--skip", default="", help=f"stages to leave out, with commas: {', '.join(STAGES)}")
    parser.add_argument("--only", default="", help="run these alone")
    parser.add_argument("--wheels", type=Path, help="folder of wheels to install, see gpu_wheels.py")
    parser.add_argument("--sglang", type=Path, help="an unpacked sglang wheel: its kernels are the baseline")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, small: shows that it runs, times nothing")
    options = parser.parse_args()
    chosen, skipped = stages(options.only), stages(options.skip)
    options.out.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + 60 * options.minutes
    environment = prepared(options)
    outcomes: list[Outcome] = []
    for name, limit in STAGES.items():
        left = until - time.monotonic()
        if (chosen and name not in chosen) or name in skipped:
            outcomes.append(Outcome(name, "skipped", "not asked for"))
        elif left < 5:
            outcomes.append(Outcome(name, "skipped", f"the {options.minutes:g} minutes are over"))
        else:
            outcomes.append(run_stage(name, min(limit, left), options, environment))
        show(outcomes[-1])
        write(options.out / "session.json", [asdict(outcome) for outcome in outcomes])
    return 1 if any(outcome.status == "failed" for outcome in outcomes) else 0


def stages(text: str) -> set[str]:
    """Names with commas between them; an unknown one ends the program with a sentence."""
    names = {name.strip() for name in text.split(",") if name.strip()}
    if names - set(STAGES):
        sys.exit(f"unknown stage {', '.join(sorted(names - set(STAGES)))}, expected some of {', '.join(STAGES)}")
    return names


def prepared(options: argparse.Namespace) -> dict[str, str]:
    """The environment of the stages: this checkout first, then what was installed from wheels."""
    site = options.out.resolve() / "site"
    if options.wheels is not None:
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--upgrade"]
        wheels = sorted(str(path) for path in options.wheels.glob("*.whl") if not path.name.startswith("sglang-0"))
        if not wheels:
            sys.exit(f"--wheels {options.wheels} holds no wheel, expected what gpu_wheels.py wrote there")
        subprocess.run([*install, "--target", str(site), *wheels], check=True)
    paths = [ROOT, ROOT / "kernels", ROOT / "benchmarks", site]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([*map(str, paths), os.environ.get("PYTHONPATH", "")]),
        "DSPARK_REHEARSE": "1" if options.rehearse else "",
        "DSPARK_SGLANG": str(options.sglang.resolve()) if options.sglang else "",
    }


def run_stage(name: str, limit: float, options: argparse.Namespace, environment: dict[str, str]) -> Outcome:
    """One stage in a process of its own, its output in a log beside its result."""
    result, log = options.out / f"{name}.json", options.out / f"{name}.log"
    result.unlink(missing_ok=True)
    code = f"from gpu_stages import run; run({name!r}, {str(options.out.resolve())!r})"
    begin = time.monotonic()
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=ROOT,
            start_new_session=True,
        )
        try:
            process.wait(limit)
            ended = f"ended with status {process.returncode}, see {log.name}"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # what the stage had started would disturb the next one
            process.wait()
            ended = f"stopped after its {limit:.0f} s, see {log.name}"
    found = json.loads(result.read_text()) if result.is_file() else {}
    status = found.pop("status", "failed")
    reason = found.pop("reason", "")
    if status == "running":
        status, reason = "failed", ended
    return Outcome(
        name, status, reason or ("" if found or status != "failed" else ended), time.monotonic() - begin, found
    )


def show(outcome: Outcome) -> None:
    """One line a stage and one a figure, flushed."""
    reason = f": {outcome.reason}" if outcome.reason else ""
    print(f"{outcome.stage:12} {outcome.status:8} {outcome.took_s:6.1f} s{reason}", flush=True)
    for name, value in outcome.figures.items():
        print(f"    {name}: {json.dumps(value)[:400]}", flush=True)


def write(path: Path, content: object) -> None:
    """The whole file or the one before it."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(content, indent=1) + "\n")
    part.replace(path)


if __name__ == "__main__":
    raise SystemExit(main())
