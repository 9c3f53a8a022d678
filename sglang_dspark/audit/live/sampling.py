"""Asks the server for everything that an audit needs, beside background requests that run from before to after."""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sglang_dspark.audit.live.client import GREEDY, SAMPLED, Reply, Server, ServerState
from sglang_dspark.audit.live.prompts import Prompt
from sglang_dspark.audit.live.settings import AuditSettings
from sglang_dspark.errors import InputError

Ints = NDArray[np.int64]
Progress = Callable[[str, int, int], None]
"""Called with stage, done, total."""


@dataclass
class Collected:
    """Everything that the server returned. One entry a prompt; `samples` [samples, length] int64."""

    before: ServerState
    after: ServerState
    samples: list[Ints]
    control: list[list[Reply]]
    greedy: list[list[int]]
    verified: Counter[int] = field(default_factory=Counter)
    blocks: int | None = 0

    @property
    def cut_share(self) -> float | None:
        """Share of the audited requests' blocks cut below gamma by a decision, None where the server does not tell."""
        gamma = self.before.gamma
        if gamma is None or not self.blocks:
            return None
        return sum(count for length, count in self.verified.items() if length < gamma) / self.blocks


async def collect(
    server: Server,
    prompts: Sequence[Prompt],
    beside: Sequence[Prompt],
    settings: AuditSettings,
    inspect: Callable[[list[list[Reply]]], None],
    progress: Progress,
    *,
    switched: bool = False,
) -> Collected:
    """Greedy continuations, control samples with log-probabilities, then the samples, all beside the background.

    beside: prompts of the background. inspect: sees the control samples of every prompt before the long part begins,
    and may raise. switched: the policy is switched on purpose meanwhile.
    Errors: InputError when a request fails, or when the policy was switched meanwhile without `switched`.
    """
    before = await server.state()
    async with _Background(server, beside, settings):
        greedy = await _ask(
            server,
            [(prompt, settings.greedy_tokens, GREEDY, False) for prompt in prompts],
            settings.concurrency,
            lambda done, total: progress("greedy", done, total),
        )
        control = await _ask(
            server,
            [(prompt, settings.length, SAMPLED, True) for prompt in prompts for _ in range(settings.control)],
            settings.concurrency,
            lambda done, total: progress("control", done, total),
        )
        by_prompt = [control[p * settings.control : (p + 1) * settings.control] for p in range(len(prompts))]
        await asyncio.to_thread(inspect, by_prompt)
        # Prompts take turns, so that a batch holds different ones.
        replies = await _ask(
            server,
            [(prompt, settings.length, SAMPLED, False) for _ in range(settings.samples) for prompt in prompts],
            settings.concurrency,
            lambda done, total: progress("sampling", done, total),
        )
    after = await server.state()
    if not switched and (before.policy, before.since_step) != (after.policy, after.since_step):
        raise InputError(
            f"the policy was switched from {before.policy} to {after.policy} during the audit: audit again"
        )
    return _collected(before, after, greedy, by_prompt, replies)


def _collected(
    before: ServerState, after: ServerState, greedy: list[Reply], control: list[list[Reply]], replies: list[Reply]
) -> Collected:
    num_prompts = len(control)
    result = Collected(
        before,
        after,
        [np.array([reply.tokens for reply in replies[p::num_prompts]], np.int64) for p in range(num_prompts)],
        control,
        [reply.tokens for reply in greedy],
    )
    told = all(reply.blocks is not None for reply in replies)
    result.blocks = sum(reply.blocks or 0 for reply in replies) if told else None
    for reply in replies:
        result.verified.update(reply.verified)
    return result


_Job = tuple[Prompt, int, dict[str, float], bool]


async def _ask(
    server: Server, jobs: Sequence[_Job], concurrency: int, progress: Callable[[int, int], None]
) -> list[Reply]:
    """Replies in the order of the jobs, `concurrency` at a time; the first failure ends it."""
    replies: list[Reply | None] = [None] * len(jobs)
    queue, done = iter(enumerate(jobs)), 0

    async def work(queue: Iterator[tuple[int, _Job]]) -> None:
        nonlocal done
        for index, (prompt, length, sampling, top) in queue:
            replies[index] = await server.generate(prompt.tokens, length, sampling, top=top)
            done += 1
            progress(done, len(jobs))

    await _together(work(queue) for _ in range(min(concurrency, len(jobs))))
    return [reply for reply in replies if reply is not None]


async def _together(tasks: Iterable[object]) -> None:
    """Run coroutines to the end; the first InputError cancels the rest and is raised as itself."""
    try:
        async with asyncio.TaskGroup() as group:
            for task in tasks:
                group.create_task(task)  # type: ignore[arg-type]
    except* InputError as failed:
        raise failed.exceptions[0] from None


class _Background:
    """Keeps `settings.background` sampled requests in decode until the block ends; one that ends is followed at once.

    A failed one is raised when the block ends, so that an audit without contention is not taken for one with it.
    """

    def __init__(self, server: Server, prompts: Sequence[Prompt], settings: AuditSettings) -> None:
        self._server, self._prompts, self._settings = server, prompts, settings
        self._rng = np.random.Generator(np.random.Philox(key=[settings.seed, 1]))
        self._running: dict[int, str] = {}
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> None:
        self._tasks = [asyncio.create_task(self._keep(lane)) for lane in range(self._settings.background)]

    async def _keep(self, lane: int) -> None:
        most = self._settings.background_tokens
        while True:
            prompt = self._prompts[int(self._rng.integers(len(self._prompts)))]
            # Lengths differ so that the lanes do not end together.
            length = int(self._rng.integers(max(1, most // 2), most + 1))
            rid = self._running[lane] = f"dspark-audit-{uuid.uuid4().hex}"
            await self._server.generate(prompt.tokens, length, SAMPLED, rid=rid)

    async def __aexit__(self, kind: object, error: object, trace: object) -> None:
        failed = [task.exception() for task in self._tasks if task.done() and not task.cancelled()]
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        # One that cannot be aborted ends by itself at its length.
        await asyncio.gather(*(self._server.abort(rid) for rid in self._running.values()), return_exceptions=True)
        if error is None and failed:
            raise InputError(f"a background request failed: {failed[0]}")
