"""Runs of a comparison in parallel processes, with one shared progress count."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from sglang_dspark.cores import available_cores
from sglang_dspark.policies import Policy
from sglang_dspark.workers import Hire, Report, Work, Workers
from simulator.engine.compiling import compile_ahead
from simulator.engine.run import Setting
from simulator.results.metrics import Figures
from simulator.results.run import run_once
from simulator.run_store import RunStore

Task = tuple[int, Policy, int]
"""(number of the setting, policy, replication)."""


def run_all(
    setting: Setting,
    policies: Sequence[Policy],
    replications: int,
    jobs: int | Hire | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    store: RunStore | None = None,
) -> list[list[Figures]]:
    """Figures of every (policy, replication), by policy. jobs=1 runs in this process; a `Hire` gives
    workers elsewhere (`on_ray`).

    on_progress(completed requests, requests in all) is called about every 0.2 s. store: runs that are known already are
    taken from it, others are added.
    """
    tasks = [(0, policy, replication) for replication in range(replications) for policy in policies]
    results = run_tasks([setting], tasks, jobs, on_progress, store)
    return [results[number :: len(policies)] for number in range(len(policies))]


def run_tasks(
    settings: Sequence[Setting],
    tasks: Sequence[Task],
    jobs: int | Hire | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    store: RunStore | None = None,
) -> list[Figures]:
    """Figures of every task, in order; tasks of several settings share the processes."""
    known = {} if store is None else store.known(settings, tasks)
    left = [index for index in range(len(tasks)) if index not in known]
    total = sum(len(settings[number].part(replication)) for number, _, replication in tasks)
    done = total - sum(len(settings[tasks[index][0]].part(tasks[index][2])) for index in left)

    def report(before: int) -> Callable[[int], None] | None:
        return None if on_progress is None else lambda count: on_progress(before + count, total)

    if not callable(jobs):
        some = ((settings[number], replication) for number, _, replication in (tasks[index] for index in left))
        loads = ((setting.part(replication), setting.concurrency) for setting, replication in some)
        compile_ahead(loads, jobs or available_cores())
    hire = partial(Workers, max(1, min(jobs or available_cores(), len(left)))) if not callable(jobs) else jobs
    script = any(type(policy).__module__ == "__main__" for _, policy, _ in tasks)
    finished = done
    with hire(_runner, list(settings), script=script) as workers:
        step = len(left) if store is None else 4 * workers.jobs  # what is kept when the run is interrupted
        for begin in range(0, len(left), max(step, 1)):
            batch = left[begin : begin + step]
            found = workers.run([tasks[index] for index in batch], report(finished))
            finished += sum(len(settings[tasks[index][0]].part(tasks[index][2])) for index in batch)
            known.update(zip(batch, found, strict=True))
            if store is not None:
                store.add(settings, [tasks[index] for index in batch], found)
    return [known[index] for index in range(len(tasks))]


def _runner(settings: list[Setting]) -> Work:
    def work(task: Task, report: Report) -> Figures:
        number, policy, replication = task
        return run_once(settings[number], policy, replication, on_progress=report)[0]

    return work
