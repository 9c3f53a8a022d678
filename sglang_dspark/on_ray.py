"""The work of `workers`, as tasks of a Ray cluster: Ray places them, and runs one again where its worker died.

What is worked on is put into the cluster once; every process of it begins the work once, however many tasks it gets.
"""

from __future__ import annotations

import logging
import os
import platform
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from functools import cache
from hashlib import blake2b
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sglang_dspark.errors import InputError
from sglang_dspark.workers import POLL_S, Work, pickled, portable

RETRIES = 5
"""Deaths of its worker or machine that a task survives: one that always kills its worker must not go on forever."""

_ANSWERS_S = 10.0
_PACKAGES = ("sglang_dspark", "simulator")


class RayCluster:
    """A Ray cluster to hire workers from, within `with`.

    address: of a running one that this machine is a part of (`host:6379`, `auto`). None is Ray's own rule: RAY_ADDRESS,
    else the cluster that runs on this machine, else Ray is started on this machine, and ended with the search.
    """

    def __init__(self, address: str | None = None) -> None:
        self._address = address
        self._ray = _import_ray()
        self._ours = not self._ray.is_initialized()

    def __enter__(self) -> RayCluster:
        """Connect. Errors: InputError."""
        if self._ours:
            check_answers(self._address)
            handler = signal.getsignal(signal.SIGTERM)
            try:
                self._ray.init(self._address, logging_level=logging.CRITICAL, log_to_driver=False)
            except Exception as error:  # of Ray's and of gRPC's, by how the cluster was named
                raise InputError(_nobody(self._address, error)) from error
            signal.signal(signal.SIGTERM, handler)  # Ray takes it
        return self

    def __exit__(self, *error: object) -> None:
        if self._ours:
            self._ray.shutdown()

    @property
    def cpus(self) -> int:
        """Tasks that run at once, as things are."""
        return max(1, int(self._ray.cluster_resources().get("CPU", 1)))

    @property
    def nodes(self) -> int:
        """Machines (Ray's nodes) that are alive."""
        return sum(node["Alive"] for node in self._ray.nodes())

    def __str__(self) -> str:
        nodes, cpus = self.nodes, self.cpus
        return f"Ray: {nodes} node{'s' * (nodes != 1)}, {cpus} CPU{'s' * (cpus != 1)}"

    def hire(self, start: Callable[..., Work], *arguments: Any, script: bool = False) -> RayWorkers:
        """Workers that do `start(*arguments)`'s work. script: nothing to say, Ray sends classes of a script along."""
        return RayWorkers(self._ray, self.cpus, start, arguments)


def check_answers(address: str | None) -> None:
    """Whether somebody listens there: Ray itself would try for minutes. Errors: InputError."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if address in (None, "auto", "local"):
        return
    try:
        if not host or not port.isdecimal():
            raise ValueError("no HOST:PORT")
        socket.create_connection((host.strip("[]"), int(port)), _ANSWERS_S).close()
    except (OSError, ValueError, OverflowError) as error:
        raise InputError(_nobody(address, error)) from error


def _nobody(address: str | None, error: Exception) -> str:
    reason = " ".join(str(error).split())[:160]
    return (
        f"no Ray cluster answers at {address or 'this machine'} ({reason}): expected HOST:PORT of one that "
        "`ray start --head` began, with this Python and this Ray"
    )


class RayWorkers:
    """What `Workers` is, on a cluster. jobs: tasks that ran at once when they were hired."""

    def __init__(self, ray: Any, jobs: int, start: Callable[..., Work], arguments: Sequence[Any]) -> None:
        self.jobs = jobs
        self._ray, self._left = ray, []  # type: Any, list[Any]
        self._begun = ray.put((start, tuple(arguments)))
        self._one = ray.remote(_one).options(num_cpus=1, max_retries=RETRIES)

    def __enter__(self) -> RayWorkers:
        return self

    def __exit__(self, *error: object) -> None:
        for ref in self._left:
            self._ray.cancel(ref, force=True)
        self._left = []

    def run(self, tasks: Sequence[Any], on_counts: Callable[[int], None] | None = None) -> list[Any]:
        """Results in the order of the tasks, whatever the cluster.

        on_counts(sum of what the finished tasks reported) is called about every 0.2 s, and at the end. The first
        failure ends all. Errors: what a task raised; InputError where a task's workers died more than `RETRIES` times.
        """
        for task in tasks:
            pickled(task)
        key, ours = self._begun.hex(), fingerprint()
        # The reference in a list: Ray hands it on as it is, and a process that has begun needs no more.
        refs = [self._one.remote(key, [self._begun], ours, task) for task in tasks]
        self._left = list(refs)
        found: dict[Any, Any] = {}
        count = 0
        while self._left:
            done, self._left = self._ray.wait(self._left, num_returns=len(self._left), timeout=POLL_S)
            for ref in done:
                result, own, failed = self._get(ref)
                if failed is not None:
                    raise failed
                found[ref], count = result, count + own
            if on_counts is not None:
                on_counts(count)
        return [found[ref] for ref in refs]

    def _get(self, ref: Any) -> tuple[Any, int, Exception | None]:
        errors = self._ray.exceptions
        try:
            return self._ray.get(ref)
        except errors.RayTaskError as error:
            reason = str(error).strip().splitlines()[-1][:160]
            raise InputError(
                f"a machine of the Ray cluster cannot do the work ({reason}): expected this sglang-dspark, with what "
                "it needs, installed on every one"
            ) from error
        except errors.RayError as error:
            raise InputError(
                f"a task lost its worker {RETRIES + 1} times ({type(error).__name__}; memory?): see `ray logs`, or run "
                "without Ray"
            ) from error


_begun: tuple[str, Work] | None = None
"""What this process has begun last: most get many tasks of the same work."""


def _one(key: str, begun: Sequence[Any], theirs: dict[str, str], task: Any) -> tuple[Any, int, Exception | None]:
    """One task in a process of the cluster: (result, what it reported last, what it raised)."""
    global _begun
    count = 0

    def report(told: int) -> None:
        nonlocal count
        count = told

    try:
        if _begun is None or _begun[0] != key:
            check_same(theirs)
            start, arguments = _import_ray().get(begun[0])
            _begun = key, start(*arguments)
        return _begun[1](task, report), count, None
    except Exception as error:
        return None, count, portable(error)


def check_same(theirs: dict[str, str]) -> None:
    """Whether this process computes what theirs does: other code gives other results, which nobody would notice.

    Errors: InputError.
    """
    for what, ours in fingerprint().items():
        if ours != theirs[what]:
            raise InputError(
                f"{platform.node()} of the Ray cluster has {what} {ours}, expected {theirs[what]} as where the search "
                "runs: results would differ"
            )


@cache
def fingerprint() -> dict[str, str]:
    """What results hang on beside the tasks: versions of Python and NumPy, and our own code, by content."""
    import numpy

    code = blake2b(digest_size=8)
    for package in _PACKAGES:
        spec = find_spec(package)
        assert spec is not None and spec.origin is not None
        root = Path(spec.origin).parent
        for file in sorted(root.rglob("*.py")):
            code.update(str(file.relative_to(root)).encode() + file.read_bytes())
    return {
        "Python": ".".join(map(str, sys.version_info[:2])),
        "NumPy": numpy.__version__,
        "sglang-dspark of code": code.hexdigest(),
    }


def _import_ray() -> Any:
    """Ray, or one sentence that it is missing.

    What Ray sends of its own accord is off unless asked for; a worker that Ray kills for memory counts as dead, where
    Ray alone would try without end.
    """
    os.environ.setdefault("RAY_task_oom_retries", str(RETRIES))
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
        import ray.exceptions
    except ImportError:
        raise InputError('--ray needs Ray, which is not installed: pip install "sglang-dspark[ray]"') from None
    return ray
