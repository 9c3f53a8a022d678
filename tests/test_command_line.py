"""What every command promises: whole flags at 80 columns, -h, --version, one sentence for a full disk, no orphans."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer

from sglang_dspark import cli
from sglang_dspark.jit import stated
from simulator import cli as simulate_cli

ROOT = Path(__file__).parents[1]
PROFILE = "vllm-b300-dsv4-flash"
SIMULATE = ("from simulator.cli import main; main()",)
DSPARK = ("from sglang_dspark.cli import main; main()",)


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "80", "OMP_NUM_THREADS": "1", **more}


def call(code: str, *arguments: str, **more: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment(), **more)  # type: ignore[call-overload]


def commands() -> list[tuple[str, ...]]:
    """Every command of `dspark` by its words."""
    top = typer.main.get_command(cli.app)
    found: list[tuple[str, ...]] = []
    for name, command in top.commands.items():  # type: ignore[attr-defined]
        inner = getattr(command, "commands", None)
        found += [(name, each) for each in inner] if inner else [(name,)]
    return found


def test_every_flag_is_whole_in_help_at_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    command = typer.main.get_command(simulate_cli.app)
    pages = [(command, command.get_help(command.make_context("simulate", [], resilient_parsing=True)))]
    for words in commands():
        each = typer.main.get_command(cli.app)
        for word in words:
            each = each.commands[word]  # type: ignore[attr-defined]
        pages.append((each, each.get_help(each.make_context(words[-1], [], resilient_parsing=True))))
    for each, page in pages:
        assert max(map(len, page.splitlines())) <= 80, page
        for parameter in each.params:
            for flag in parameter.opts:
                assert not flag.startswith("-") or flag in page.replace(",", " ").split(), flag


def test_the_short_help_the_version_and_the_examples() -> None:
    page = call(*SIMULATE, "-h").stdout
    assert page == call(*SIMULATE, "--help").stdout and "simulate --trace requests.csv" in page
    assert call(*DSPARK, "-h").returncode == 0 and "tune" in call(*DSPARK, "-h").stdout
    assert "dspark tune --trace" in call(*DSPARK, "tune", "-h").stdout
    for code in (*SIMULATE, *DSPARK):
        version, _, path = call(code, "--version").stdout.strip().partition(", ")
        assert version.startswith("sglang-dspark 0") and path == stated()


def test_every_command_speaks_json() -> None:
    for words in commands():
        each = typer.main.get_command(cli.app)
        for word in words:
            each = each.commands[word]  # type: ignore[attr-defined]
        assert "--json" in {flag for parameter in each.params for flag in parameter.opts}, words


SMALL = ("--trace", "example", "--limit", "40", "--profile", PROFILE, "--only", "--policy", "hull")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_sentence() -> None:
    answer = call(*SIMULATE, *SMALL, "--replications", "1", "--jobs", "1", "--output", "/dev/full")
    assert answer.returncode == 2 and answer.stderr == "error: cannot write /dev/full: No space left on device\n"
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-c", *SIMULATE, *SMALL, "--replications", "1", "--jobs", "1"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, env=environment())
    assert done.returncode == 2 and done.stderr == "error: cannot write the output: No space left on device\n"


def children(pid: int) -> set[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children")
    return set(map(int, found.read_text().split())) if found.exists() else set()


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc")
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_no_process_is_left_behind(how: signal.Signals) -> None:
    flags = ("--trace", "example", "--profile", PROFILE, "--replications", "50", "--jobs", "2")
    command, quiet = [sys.executable, "-c", *SIMULATE, *flags], subprocess.DEVNULL

    def interruptible() -> None:  # a shell's background job ignores interrupts, and what it starts inherits that
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    run = subprocess.Popen(command, stdout=quiet, stderr=quiet, env=environment(), preexec_fn=interruptible)
    try:
        begun = time.monotonic()
        while len(workers := children(run.pid)) < 2 and time.monotonic() - begun < 30:
            time.sleep(0.05)
        assert len(workers) == 2
        time.sleep(0.5)
        run.send_signal(how)
        assert run.wait(20) != 0
    finally:
        run.kill()
        run.wait()
    begun = time.monotonic()
    while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() - begun < 20:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)


def test_workers_run_the_code_of_who_started_them_wherever_they_are_started(tmp_path: Path) -> None:
    (tmp_path / "scripts").mkdir()
    script = tmp_path / "scripts" / "run.py"
    script.write_text(
        "import functools, operator\nfrom sglang_dspark.workers import Workers\n"
        "with Workers(2, functools.partial, operator.is_) as workers:\n    print(workers.run([1, 2]))\n"
    )
    (tmp_path / "sglang_dspark.py").write_text("raise SystemExit('what lies in the working directory was imported')\n")
    found = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=60, env=environment(), cwd=tmp_path
    )
    assert (found.stdout, found.stderr) == ("[False, False]\n", "")
