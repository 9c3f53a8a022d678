"""`simulate` as a user calls it, in this process or in one of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from simulator import cli

PROFILE = "vllm-b300-dsv4-flash"
QUICK = ("--limit", "40", "--replications", "1", "--jobs", "1")


@dataclass(frozen=True)
class Answer:
    status: int
    out: str
    err: str

    @property
    def report(self) -> dict[str, Any]:
        """Standard output as one JSON object (with --json)."""
        return dict(json.loads(self.out))


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> Answer:
    """Run the command in this process."""
    argv, status = sys.argv, 0
    sys.argv = ["simulate", *arguments]
    capsys.readouterr()
    try:
        cli.main()
    except SystemExit as end:
        status = int(end.code or 0)
    finally:
        sys.argv = argv
    captured = capsys.readouterr()
    return Answer(status, captured.out, captured.err)


def call_alone(*arguments: str, before: Callable[[], None] | None = None, **kwargs: Any) -> Answer:
    """Run the command in a process of its own; `before` runs in it first."""
    code = "from simulator.cli import main; main()"
    root = Path(cli.__file__).parent.parent
    environment = {**os.environ, "PYTHONPATH": str(root), "COLUMNS": "100", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=before,
        env=environment,
        **kwargs,
    )
    return Answer(done.returncode, done.stdout, done.stderr)


def assert_one_line_error(answer: Answer, says: str) -> None:
    """One sentence on standard error, nothing on standard output, a status that is not zero."""
    assert answer.status != 0
    assert answer.out == ""
    lines = [line for line in answer.err.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("error: "), answer.err
    assert says in lines[0], lines[0]
