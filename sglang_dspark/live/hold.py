"""The policy of a running server while we measure: ours for a while, put back whatever ends us, and never taken from
somebody else."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from sglang_dspark.errors import InputError
from sglang_dspark.live.client import Server

_ENDINGS = (signal.SIGTERM, signal.SIGHUP)


class SwitchedElsewhere(InputError):
    """Somebody else switched the policy while we held it."""


class Hold:
    """Switches a server's policy and knows whether it is still the one that was switched on."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.before = server.policy()
        self._mine: tuple[str, tuple[int, ...]] | None = None

    def switch(self, policy: str) -> None:
        """Make `policy` decide; SwitchedElsewhere if it is not ours any more that does."""
        self.check()
        self.server.switch(policy)
        self._mine = self.server.decides()

    def check(self) -> None:
        """SwitchedElsewhere unless what we switched on still decides, since the step at which we did."""
        if self._mine is None:
            return
        found = self.server.decides()
        if found != self._mine:
            raise SwitchedElsewhere(
                f"somebody else switched the server to {found[0]} meanwhile: nothing can be compared, and that stays"
            )

    def put_back(self) -> None:
        """Switch to what decided before, unless somebody else has switched since."""
        if self._mine is not None and self.server.decides() == self._mine:
            self.server.switch(self.before)


@contextmanager
def held(server: Server) -> Iterator[Hold]:
    """A hold on the server's policy that ends with this block, also when the process is told to end (SIGTERM)."""
    hold = Hold(server)
    with ended_by_exception():
        try:
            yield hold
        finally:
            with ended_by_exception(ignore=True):  # a second signal must not keep the policy from going back
                hold.put_back()


@contextmanager
def ended_by_exception(*, ignore: bool = False) -> Iterator[None]:
    """Inside, a signal that would end this process raises SystemExit, so that what is held is put back; or is ignored.

    Signals reach the main thread alone; elsewhere this does nothing. A signal that is ignored (nohup) stays ignored.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)

    heeded = [number for number in _ENDINGS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, signal.SIG_IGN if ignore else end) for number in heeded}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
