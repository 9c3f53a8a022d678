"""Runs of a comparison in parallel processes, with one shared progress count."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext
from typing import Any

from sglang_dspark.cores import available_cores
from sglang_dspark.errors import InputError
from sglang_dspark.policies import Policy
from simulator.engine.run import Setting
from simulator.results.metrics import Figures
from simulator.results.run import run_once

_POLL_S = 0.2
_worker: dict[str, Any] = {}


def run_all(
    setting: Setting,
    policies: Sequence[Policy],
    replications: int,
    jobs: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[list[Figures]]:
    """Figures of every (policy, replication), by policy. jobs=1 runs in this process.

    on_progress(completed requests, requests in all) is called about every 0.2 s.
    """
    tasks = [(policy, replication) for replication in range(replications) for policy in policies]
    jobs = min(jobs or available_cores(), len(tasks))
    total = sum(len(setting.part(replication)) for _, replication in tasks)
    results = (_in_turn if jobs == 1 else _in_processes)(setting, tasks, jobs, total, on_progress)
    return [[results[r * len(policies) + p] for r in range(replications)] for p in range(len(policies))]


def _in_turn(
    setting: Setting, tasks: list[tuple[Policy, int]], jobs: int, total: int, report: Callable[[int, int], None] | None
) -> list[Figures]:
    results: list[Figures] = []
    done = 0
    for policy, replication in tasks:
        watch = None if report is None else lambda count, done=done: report(done + count, total)
        results.append(run_once(setting, policy, replication, on_progress=watch)[0])
        done += len(setting.part(replication))
    return results


def _in_processes(
    setting: Setting, tasks: list[tuple[Policy, int]], jobs: int, total: int, report: Callable[[int, int], None] | None
) -> list[Figures]:
    context = multiprocessing.get_context("spawn")
    counts = context.Array("q", len(tasks), lock=False)
    script_needed = any(type(policy).__module__ == "__main__" for policy, _ in tasks)
    with ProcessPoolExecutor(jobs, context, _start, (setting, counts)) as pool:
        with nullcontext() if script_needed else _apart_from_the_script():
            futures = [pool.submit(_run, index, *task) for index, task in enumerate(tasks)]
        try:
            _watch(futures, counts, total, report)
            return [future.result() for future in futures]
        except BrokenProcessPool as error:
            why = (
                "a policy of the script needs `if __name__ == '__main__':` around the call"
                if script_needed
                else "memory?"
            )
            raise InputError(f"a worker process died ({why}); jobs=1 runs in one process") from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


@contextmanager
def _apart_from_the_script() -> Iterator[None]:
    """A spawned worker imports the caller's script again, and so would run it; ours need nothing of it."""
    script = sys.modules["__main__"].__dict__
    kept: dict[str, Any] = {name: script[name] for name in ("__file__", "__spec__") if name in script}
    script.pop("__file__", None)
    script["__spec__"] = None
    try:
        yield
    finally:
        script.update(kept)


def _watch(futures: list[Future[Figures]], counts: Any, total: int, report: Callable[[int, int], None] | None) -> None:
    pending = set(futures)
    while pending:
        done, pending = wait(pending, timeout=_POLL_S)
        for future in done:
            future.result()  # the first failure ends the comparison
        if report is not None:
            report(sum(counts), total)


def _start(setting: Setting, counts: Any) -> None:
    _worker["setting"], _worker["counts"] = setting, counts


def _run(index: int, policy: Policy, replication: int) -> Figures:
    counts = _worker["counts"]

    def progress(completed: int) -> None:
        counts[index] = completed

    return run_once(_worker["setting"], policy, replication, on_progress=progress)[0]
