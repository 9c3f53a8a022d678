"""`simulate` on the profile that was just made: the whole path from a measurement to an answer."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from gpu_stages import Skip, Stage


def _within_range(profile: Path) -> None:
    """The interpreter's times are no step costs: what of them no profile may hold is set to 0."""
    content = json.loads(profile.read_text())
    content["tiered"]["terms"] |= {"context_token_s": 0.0, "draft_context_token_s": 0.0}
    profile.write_text(json.dumps(content))


def run(stage: Stage) -> None:
    profile = stage.out / "profile-made.json"
    if not profile.is_file():
        raise Skip("no profile was made")
    if stage.rehearsal:
        _within_range(profile)
    code = "import sys; from simulator.cli import main; main()"
    arguments = [
        "--trace",
        "example",
        "--profile",
        str(profile),
        "--concurrency",
        "32",
        "--replications",
        "2",
        "--policy",
        "fixed:k=7",
        "--policy",
        "fixed:k=3",
        "--policy",
        "hull",
        "--policy",
        "argmax:lag=2",
        "--only",
        "--json",
    ]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    (stage.out / "simulate.json.txt").write_text(done.stdout)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    import msgspec

    report = msgspec.json.decode(done.stdout)
    stage.note(
        throughput={each["policy"]: each["steady_output_throughput"] for each in report["results"]},
        verdict=report["verdict"],
        warnings=report["warnings"],
    )
