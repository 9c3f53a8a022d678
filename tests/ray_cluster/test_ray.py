"""The search on Ray: what it finds is what one machine finds, and who dies on the way costs time alone."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("optuna", reason="needs the extra `tune`")

from deadly_work import times, traced

from sglang_dspark import on_ray
from sglang_dspark.errors import InputError
from sglang_dspark.on_ray import RETRIES, RayCluster
from simulator import Load
from simulator.engine.run import Setting
from simulator.inputs import prepare
from simulator.traces import random_trace
from simulator.tuning.tune import Tuned, tune

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]
PROFILE = "vllm-b300-dsv4-flash"
ROOT = Path(__file__).parents[2]


def setting() -> Setting:
    return prepare(Load(random_trace(300, 60, 16, 0.5), concurrency=4), PROFILE)


def search(path: Path, **more: Any) -> Tuned:
    return tune([setting()], **{"trials": 45, "requests": 60, "workers": 1, "study": path, **more})


def trials(path: Path) -> list[Any]:
    with sqlite3.connect(path) as database:
        found = database.execute("select trial_id, key, value_json from trial_user_attributes order by 1, 2").fetchall()
    database.close()
    return found


def test_two_nodes_find_what_one_process_finds_and_one_may_die(nodes: Any, tmp_path: Path) -> None:
    second = nodes.add_node(num_cpus=1)
    local = search(tmp_path / "local.db")
    killed_at: list[int] = []

    def told(what: str) -> Callable[[int, int], None]:
        def count(done: int, total: int) -> None:
            if done >= 25 and not killed_at:  # in the midst of the second generation
                killed_at.append(done)
                nodes.remove_node(second, allow_graceful=False)

        return count

    with RayCluster(nodes.address) as cluster:
        assert str(cluster) == "Ray: 2 nodes, 2 CPUs"
        far = search(tmp_path / "far.db", hire=cluster.hire, on_progress=told)
        assert 25 <= killed_at[0] < 45 and not second.any_processes_alive()
        until = time.monotonic() + 90
        while cluster.nodes > 1 and time.monotonic() < until:  # Ray gives a silent node some time
            time.sleep(0.2)
        assert str(cluster) == "Ray: 1 node, 1 CPU"
    assert far.finals.winner == local.finals.winner
    assert (far.trials, far.finals, far.robustness) == (local.trials, local.finals, local.robustness)
    assert trials(tmp_path / "far.db") == trials(tmp_path / "local.db")


def test_what_ran_on_a_dead_node_runs_again(nodes: Any, tmp_path: Path) -> None:
    second = nodes.add_node(num_cpus=1)
    name = second.node_id

    def kill() -> None:
        while not (tmp_path / "tasks").exists() or name not in (tmp_path / "tasks").read_text():
            time.sleep(0.02)
        nodes.remove_node(second, allow_graceful=False)

    with RayCluster(nodes.address) as cluster, cluster.hire(traced, tmp_path, name) as workers:
        killer = threading.Thread(target=kill)
        killer.start()
        counts: list[int] = []
        tasks = [(number, "") for number in range(8)]
        assert workers.run(tasks, counts.append) == [number * number for number in range(8)]
        killer.join()
    assert counts == sorted(counts) and counts[-1] == 80
    begun = times(tmp_path)
    assert sorted(begun) == list(range(8)) and 8 < sum(begun.values()) <= 10  # what was under way there, and no more


def test_a_dead_worker_costs_its_task_only(nodes: Any, tmp_path: Path) -> None:
    with RayCluster(nodes.address) as cluster, cluster.hire(traced, tmp_path) as workers:
        tasks = [(number, "dies once" if number == 3 else "") for number in range(6)]
        assert workers.run(tasks) == [number * number for number in range(6)]
        assert times(tmp_path) == {0: 1, 1: 1, 2: 1, 3: 2, 4: 1, 5: 1}
        assert len(list(tmp_path.glob("begun-*"))) == 2  # the work is begun once a process, not once a task
        with pytest.raises(ValueError, match="task 7"):
            workers.run([(7, "raises")])
        with pytest.raises(InputError, match=f"lost its worker {RETRIES + 1} times"):
            workers.run([(8, "dies always")])
    assert times(tmp_path)[8] == RETRIES + 1


def test_other_code_on_a_machine_is_refused(nodes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = on_ray.fingerprint()
    monkeypatch.setattr(on_ray, "fingerprint", lambda: {**mine, "NumPy": "0.1"})
    with RayCluster(nodes.address) as cluster, cluster.hire(traced, tmp_path) as workers:
        with pytest.raises(InputError, match=r"has NumPy .*, expected 0\.1 as where the search runs"):
            workers.run([(1, "")])


FLAGS = ("--random-input-len", "60", "--random-output-len", "16", "--random-range-ratio", "0.5")
LOAD = (*FLAGS, "--num-prompts", "200", "--profile", PROFILE, "--concurrency", "4")


def command(program: str, *arguments: str) -> list[str]:
    return [sys.executable, "-c", f"from {program} import main; main()", *arguments]


def test_the_commands_and_an_interruption(nodes: Any, tmp_path: Path) -> None:
    """The same policy file and the same table; a search that was interrupted on Ray goes on without it."""
    nodes.add_node(num_cpus=1)
    ray = ("--ray-address", nodes.address)
    asked = ("tune", *LOAD, "--requests", "60", "--trials", "45", "--no-robustness")

    def call(program: str, *arguments: str, within: Path = tmp_path) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(command(program, *arguments), cwd=within, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done

    folders = [tmp_path / name for name in ("local", "far")]
    for folder in folders:
        folder.mkdir()
    call("sglang_dspark.cli", *asked, "--workers", "1", within=folders[0])
    begun = command("sglang_dspark.cli", *asked, *ray)
    run = subprocess.Popen(begun, cwd=folders[1], stderr=subprocess.PIPE, text=True, preexec_fn=interruptible)
    study = folders[1] / "policy.study.db"
    while not study.exists() or len({row[0] for row in trials(study)}) < 20:
        assert run.poll() is None, run.stderr and run.stderr.read()
        time.sleep(0.1)
    run.send_signal(signal.SIGINT)
    _, said = run.communicate(timeout=60)
    assert run.returncode == 130 and "Ray: " in said and "the same command goes on with" in said, said
    assert not (folders[1] / "policy.json").exists()
    call("sglang_dspark.cli", *asked, "--workers", "1", within=folders[1])
    assert trials(study) == trials(folders[0] / "policy.study.db")
    texts = [(folder / "policy.json").read_text() for folder in folders]
    assert texts[0] == texts[1]
    simulated = ("--replications", "2", "--json", *LOAD)
    here = call("simulator.cli", *simulated, "--jobs", "1")
    assert call("simulator.cli", *simulated, *ray).stdout == here.stdout


def interruptible() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_a_cluster_that_is_not_there_is_one_sentence(ray: Any) -> None:
    begun = command("sglang_dspark.cli", "tune", *LOAD, "--requests", "60", "--ray-address", "127.0.0.1:1")
    done = subprocess.run(begun, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "no Ray cluster answers at 127.0.0.1:1" in done.stderr, done.stderr
