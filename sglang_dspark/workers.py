"""Worker processes that end with whoever started them, however it ends, and know nothing of its script.

A worker is a fresh interpreter that reads tasks from a pipe. `multiprocessing` would run the caller's script in it
again, and leaves workers and a resource tracker behind when the caller is terminated.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import IO, Any, Protocol

from sglang_dspark.errors import InputError

POLL_S = 0.2
"""How often progress is told."""

_COUNT, _RESULT, _ERROR = "count", "result", "error"

Report = Callable[[int], None]
"""Told how far a task is, in units of its own."""


Work = Callable[[Any, Report], Any]
"""What a worker does with a task: its result, with reports on the way."""


class Crew(Protocol):
    """Workers wherever they are: results come in the order of the tasks, so that it makes no difference to them."""

    jobs: int

    def __enter__(self) -> Crew: ...

    def __exit__(self, *error: object) -> None: ...

    def run(self, tasks: Sequence[Any], on_counts: Callable[[int], None] | None = None) -> list[Any]:
        """Results in the order of the tasks."""
        ...


class Hire(Protocol):
    """What gives a crew for some work: processes of this machine, or those of a cluster (`on_ray`)."""

    def __call__(self, start: Callable[..., Work], *arguments: Any, script: bool = False) -> Crew: ...


class Workers:
    """`start(*arguments)` is called once in every worker and gives its `Work`. With one job all runs in this process.

    start, arguments, tasks and results are pickled. script: their classes come from the caller's script, which every
    worker then has to load.
    """

    def __init__(self, jobs: int, start: Callable[..., Work], *arguments: Any, script: bool = False) -> None:
        self.jobs = jobs
        if script and _Worker.inside:
            raise InputError(
                "a policy of the script needs `if __name__ == '__main__':` around the call, or jobs=1, which runs in "
                "one process"
            )
        self._work = start(*arguments) if jobs == 1 else None
        path = getattr(sys.modules["__main__"], "__file__", None) if script else None
        self._idle = []
        if jobs > 1:
            first = pickle.dumps((path and os.path.abspath(path), pickled((start, arguments))))
            self._idle = [_Process(first) for _ in range(jobs)]
        self._all = list(self._idle)

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *error: object) -> None:
        for process in self._all:
            process.end()

    def run(self, tasks: Sequence[Any], on_counts: Callable[[int], None] | None = None) -> list[Any]:
        """Results in the order of the tasks, whatever the number of workers.

        on_counts(sum of what the tasks reported) is called about every 0.2 s, and at the end. The first failure ends
        all. Errors: what a task raised; InputError if a worker died.
        """
        counts = [0] * len(tasks)
        if self._work is not None:
            return [self._here(index, task, counts, on_counts) for index, task in enumerate(tasks)]
        threads = ThreadPoolExecutor(max(1, len(self._idle)))
        futures = [threads.submit(self._elsewhere, index, task, counts) for index, task in enumerate(tasks)]
        try:
            _watch(futures, counts, on_counts)
            return [future.result() for future in futures]
        except BaseException:
            for process in self._all:  # threads that read from them come back
                process.end()
            raise
        finally:
            threads.shutdown(wait=True, cancel_futures=True)

    def _here(self, index: int, task: Any, counts: list[int], on_counts: Callable[[int], None] | None) -> Any:
        assert self._work is not None
        clock = [0.0]

        def report(count: int) -> None:
            counts[index] = count
            now = time.monotonic()
            if on_counts is not None and now - clock[0] > POLL_S:
                clock[0] = now
                on_counts(sum(counts))

        result = self._work(task, report)
        if on_counts is not None:
            on_counts(sum(counts))
        return result

    def _elsewhere(self, index: int, task: Any, counts: list[int]) -> Any:
        process = self._idle.pop()

        def report(count: int) -> None:
            counts[index] = count

        result = process.ask(task, report)
        self._idle.append(process)
        return result


def _watch(futures: list[Future[Any]], counts: list[int], on_counts: Callable[[int], None] | None) -> None:
    pending = set(futures)
    while pending:
        done, pending = wait(pending, timeout=POLL_S)
        for future in done:
            future.result()
        if on_counts is not None:
            on_counts(sum(counts))


def pickled(what: Any) -> bytes:
    """What is sent to a worker. Errors: InputError."""
    try:
        return pickle.dumps(what)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise InputError(f"cannot be sent to worker processes ({error}): jobs=1 runs in one process") from error


class _Process:
    """The caller's end of one worker."""

    def __init__(self, first: bytes) -> None:
        paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", "from sglang_dspark.workers import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": paths},
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._to, self._from = self._process.stdin, self._process.stdout
        self._send(first)

    def ask(self, task: Any, report: Report) -> Any:
        self._send(pickled(task))
        while True:
            try:
                kind, value = pickle.load(self._from)
            except (EOFError, pickle.UnpicklingError, OSError, ValueError) as error:
                raise InputError("a worker process died (memory?); jobs=1 runs in one process") from error
            if kind == _COUNT:
                report(value)
            elif kind == _ERROR:
                raise value
            else:
                return value

    def end(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for pipe in (self._to, self._from):
            try:
                pipe.close()
            except OSError:
                pass  # what was still buffered has nobody to read it

    def _send(self, data: bytes) -> None:
        try:
            pickle.dump(data, self._to)
            self._to.flush()
        except OSError:
            pass  # it died: `ask` finds no answer and says so


class _Worker:
    """The other end."""

    inside = False

    def __init__(self, to: IO[bytes]) -> None:
        self._to, self._last_s, self._count = to, 0.0, 0

    def send(self, kind: str, value: Any) -> None:
        pickle.dump((kind, value), self._to)
        self._to.flush()

    def report(self, count: int) -> None:
        self._count, now = count, time.monotonic()
        if now - self._last_s > POLL_S:
            self._last_s = now
            self.send(_COUNT, count)

    def one(self, work: Work, task: bytes) -> None:
        try:
            result = work(pickle.loads(task), self.report)
        except Exception as error:
            self.send(_ERROR, portable(error))
        else:
            self.send(_COUNT, self._count)
            self.send(_RESULT, result)
        self._count = 0


def portable(error: Exception) -> Exception:
    """The error, or its words where it cannot be sent."""
    try:
        pickle.loads(pickle.dumps(error))
        return error
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")


def serve() -> None:
    """The life of a worker: tasks from standard input, results to standard output, until either closes."""
    import queue
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the caller ends it
    _Worker.inside = True
    worker = _Worker(os.fdopen(os.dup(1), "wb"))
    os.dup2(2, 1)  # what work prints must not meet the protocol
    tasks: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def read() -> None:
        source = os.fdopen(os.dup(0), "rb")
        while True:
            try:
                tasks.put(pickle.load(source))
            except (EOFError, OSError, pickle.UnpicklingError):
                os._exit(0)  # nobody waits for an answer any more, not even to a task under way

    threading.Thread(target=read, daemon=True).start()
    script, begun = pickle.loads(tasks.get())
    try:
        if script is not None:
            _load_script(script)
        start, arguments = pickle.loads(begun)
        work = start(*arguments)
    except Exception as error:
        failed = portable(error)

        def work(task: Any, report: Report) -> Any:
            raise failed

    while True:
        worker.one(work, tasks.get())


def _load_script(path: str) -> None:
    """The classes of the caller's script under the name that their pickles have."""
    import runpy
    import types

    module = types.ModuleType("__main__")
    module.__dict__.update(runpy.run_path(path, run_name="__mp_main__"))
    sys.modules["__main__"] = sys.modules["__mp_main__"] = module
