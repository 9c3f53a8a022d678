"""What of ours failed in a running server: nothing of it may end the server, so all of it is counted and shown.

One object a process. Whoever catches an exception of ours says so here, and takes the way out that keeps the output
law: a decision falls back by its class's rules, a kernel gives way to SGLang's, an observer misses one event.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sglang_dspark.errors import printable

logger = logging.getLogger(__name__)

_LONGEST = 300


@dataclass(slots=True)
class Fault:
    """what: the part that failed, such as "kernel markov". first: what it said the first time. count: since start."""

    what: str
    first: str
    count: int = 0


class Faults:
    """Counts by part; the first failure of each is logged with its traceback, the others are only counted.

    listeners are called with the part's name at every failure (metrics).
    """

    def __init__(self) -> None:
        self.listeners: list[Callable[[str], None]] = []
        self._found: dict[str, Fault] = {}

    def note(self, what: str, error: BaseException | str, instead: str = "") -> None:
        """`what` failed with `error`; `instead`: what happens instead, for the log. Never raises."""
        known = self._found.get(what)
        if known is None:
            known = self._found[what] = Fault(what, sentence_of(error))
            trace = error if isinstance(error, BaseException) else None
            after = f"; {instead}" if instead else ""
            logger.error(
                "sglang-dspark: %s failed: %s%s; serving goes on, and this is said once",
                *(what, known.first, after),
                exc_info=None if trace is None else (type(trace), trace, trace.__traceback__),
            )
        known.count += 1
        for listener in self.listeners:
            try:
                listener(what)
            except Exception:  # a metric that cannot count must not hide what it should have counted
                logger.debug("a listener of faults failed", exc_info=True)

    @contextmanager
    def caught(self, what: str, instead: str = "") -> Iterator[None]:
        """Whatever raises inside is noted as a failure of `what`, and the caller goes on."""
        try:
            yield
        except Exception as error:
            self.note(what, error, instead)

    def as_list(self) -> list[dict[str, Any]]:
        """Plain values for JSON, in the order of their first failures."""
        return [{"what": fault.what, "count": fault.count, "first": fault.first} for fault in self._found.values()]


def sentence_of(error: BaseException | str) -> str:
    """One printable line: the exception's type and text, cut where it gets long."""
    text = error if isinstance(error, str) else f"{type(error).__name__}: {error}"
    return printable(text)[:_LONGEST]
