"""Keeps switching a running server from policy to policy while something else is measured on it."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle

from sglang_dspark.errors import InputError
from sglang_dspark.live.client import Server
from sglang_dspark.live.hold import held


@contextmanager
def rotating(server: Server, policies: Sequence[str], every_s: float) -> Iterator[list[str]]:
    """Inside, the server is switched to the next of `policies` every `every_s` seconds, in a circle.

    Gives the list of the switches made so far. The policy that was there before comes back.
    Errors: InputError if the server refuses one of the policies (before anything is measured), or if a switch fails or
    somebody else switches meanwhile (afterwards).
    """
    if not every_s >= 0.1:
        raise InputError(f"--every {every_s:g} is refused, expected at least 0.1 seconds")
    made: list[str] = []
    failed: list[InputError] = []
    over = threading.Event()
    with held(server) as hold:
        for policy in policies:
            hold.switch(policy)

        def turn() -> None:
            for policy in cycle(policies):
                try:
                    hold.switch(policy)
                except InputError as error:
                    failed.append(error)
                    return
                made.append(policy)
                if over.wait(every_s):
                    return

        thread = threading.Thread(target=turn, name="rotation")
        thread.start()
        try:
            yield made
        finally:
            over.set()
            thread.join()
    if failed:
        raise failed[0]
