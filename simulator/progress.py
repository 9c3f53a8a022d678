"""How far a long command is: a bar on a terminal, a line now and then on a pipe."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from sglang_dspark.jit import telling

_EVERY_S = 10.0


class Teller:
    """Called with (done, total); `says` names what is under way."""

    def __init__(self, unit: str) -> None:
        self.unit, self.what = unit, ""

    def says(self, what: str) -> None:
        """What the next counts are of."""
        self.what = what

    def __call__(self, done: int, total: int) -> None:
        """Progress of what is under way."""


class _Bar(Teller):
    def __init__(self, unit: str, bar: Progress) -> None:
        super().__init__(unit)
        self._bar, self._task = bar, bar.add_task("", total=None)

    def says(self, what: str) -> None:
        self.what = what
        self._bar.reset(self._task, description=what, total=None)

    def __call__(self, done: int, total: int) -> None:
        self._bar.update(self._task, completed=done, total=total)


class _Lines(Teller):
    def __init__(self, unit: str) -> None:
        super().__init__(unit)
        self._begun = self._told = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._told < _EVERY_S:
            return
        self._told = now
        line = f"{self.what}: {done:,} of {total:,} {self.unit}, {now - self._begun:.0f} s"
        print(line, file=sys.stderr, flush=True)


@contextmanager
def progress(what: str, unit: str = "requests") -> Iterator[Teller]:
    """Tells on standard error how far `what` is, in `unit`s."""
    if not sys.stderr.isatty():
        lines = _Lines(unit)
        lines.says(what)
        with telling(lambda text: print(text, file=sys.stderr, flush=True)):
            yield lines
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        teller = _Bar(unit, bar)
        teller.says(what)
        with telling(bar.console.print):
            yield teller
