"""The audit from start to end: ask the server, compute the target's laws, test, judge."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import numpy as np

from sglang_dspark.audit.live import greedy, statistics
from sglang_dspark.audit.live.client import Reply, Server
from sglang_dspark.audit.live.evidence import PILOT, Evidence, choose_classes, gather
from sglang_dspark.audit.live.noise import NoiseFloor, noise_floor
from sglang_dspark.audit.live.prompts import Prompt
from sglang_dspark.audit.live.sampling import Collected, Progress, collect
from sglang_dspark.audit.live.settings import AuditSettings
from sglang_dspark.audit.live.statistics import TestResult
from sglang_dspark.audit.live.target import ExactTarget
from sglang_dspark.audit.live.verdict import AuditReport, PromptResult, judge
from sglang_dspark.errors import InputError

OTHER_MODEL_TV = 0.2
"""Laws further apart than this belong to different models; quantised servers stay far below."""


def audit_server(
    server: Server,
    target: ExactTarget,
    prompts: Sequence[Prompt],
    beside: Sequence[Prompt],
    settings: AuditSettings,
    progress: Progress,
    across: Sequence[str] = (),
) -> AuditReport:
    """Audit a running server against `target`; beside: prompts of the background. Blocks until done.

    across: the policies between which the caller switches the server meanwhile, none where one policy is audited.
    Errors: InputError when a request fails, the target is another model, or the policy is switched by somebody else.
    """
    began = time.monotonic()
    check_vocabulary([*prompts, *beside], target)
    floor: list[NoiseFloor] = []

    def inspect(control: list[list[Reply]]) -> None:
        floor.append(measure_noise(target, prompts, control))

    async def ask() -> Collected:
        async with server:
            return await collect(server, prompts, beside, settings, inspect, progress, switched=bool(across))

    found = asyncio.run(ask())
    noise = floor[0]
    tolerance = greedy.tie_tolerance(noise.max_logprob)
    results, evidence = [], []
    for number, prompt in enumerate(prompts):
        progress("testing", number, len(prompts))
        evidence.append(examine(target, prompt, number, found, settings))
        compared = greedy.compare(found.greedy[number], target.logits(prompt.tokens, found.greedy[number]), tolerance)
        results.append((prompt, number, evidence[-1], compared))
    progress("testing", len(prompts), len(prompts))
    prompt_results, pooled = test_all(results, settings)
    verdict, reasons = judge(prompt_results, pooled, noise, found.cut_share, settings)
    return AuditReport(
        verdict,
        reasons,
        settings,
        found.after,
        list(across),
        prompt_results,
        pooled,
        noise,
        tolerance,
        found.cut_share,
        found.blocks,
        time.monotonic() - began,
    )


def check_vocabulary(prompts: Sequence[Prompt], target: ExactTarget) -> None:
    """InputError when a prompt holds a token that the target does not have."""
    for prompt in prompts:
        worst, last = max(prompt.tokens), target.vocab_size - 1
        if worst > last:
            raise InputError(f"prompts {prompt.name}: token {worst} is not among the target's 0..{last}")


def measure_noise(target: ExactTarget, prompts: Sequence[Prompt], control: list[list[Reply]]) -> NoiseFloor:
    """Server's log-probabilities against the target's; InputError when these are two models."""
    pairs = []
    for prompt, replies in zip(prompts, control, strict=True):
        tokens = np.array([reply.tokens for reply in replies], np.int64)
        for rows, laws in target.laws(prompt.tokens, tokens, 0):
            pairs += list(zip(replies[rows], laws, strict=True))
    floor = noise_floor(pairs)
    if floor.mean_tv > OTHER_MODEL_TV:
        raise InputError(
            f"the server's own log-probabilities differ from --target's by a total variation of {floor.mean_tv:.2f}: "
            "the folder does not hold the model that is served"
        )
    return floor


def examine(target: ExactTarget, prompt: Prompt, number: int, found: Collected, settings: AuditSettings) -> Evidence:
    """One prompt's samples against the target's laws.

    The classes come from a pilot's laws, the evidence from all samples.
    """
    tokens, skip = found.samples[number], settings.skip
    pilot = target.laws(prompt.tokens, tokens[:PILOT], skip)
    frequent = choose_classes(pilot, settings.tokens, len(tokens))
    rng = np.random.Generator(np.random.Philox(key=[settings.seed, 2 + number]))
    return gather(tokens[:, skip:], target.laws(prompt.tokens, tokens, skip), frequent, rng)


def test_all(
    found: Sequence[tuple[Prompt, int, Evidence, greedy.GreedyComparison]], settings: AuditSettings
) -> tuple[list[PromptResult], list[TestResult]]:
    """Every test with Holm's correction over all of them: by prompt, and over all prompts."""
    tests: list[TestResult] = []
    for _, number, e, _ in found:
        tests += [
            statistics.token_test(number, e.observed, e.expected, e.covariance),
            statistics.rank_test(number, e.ranks),
            statistics.surprisal_test(number, e.excess, e.variance, e.third),
        ]
    every = [e for _, _, e, _ in found]
    tests += [
        statistics.rank_test(None, np.concatenate([e.ranks for e in every])),
        statistics.surprisal_test(
            None, *(np.concatenate([getattr(e, name) for e in every]) for name in ("excess", "variance", "third"))
        ),
    ]
    tests = statistics.holm(tests)
    strictest = settings.alpha / len(tests)
    results = []
    for prompt, number, e, compared in found:
        own = [test for test in tests if test.prompt == number]
        smallest = min(
            statistics.smallest_bias(test.degrees, len(e.ranks), settings.tokens, strictest)
            for test in own
            if test.name in ("tokens", "ranks")
        )
        results.append(PromptResult(prompt.name, len(e.ranks), e.observed_tv, e.chance_tv, smallest, own, compared))
    return results, [test for test in tests if test.prompt is None]
