"""From tests to a verdict: lossless, biased or inconclusive, with the reasons in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sglang_dspark.audit.live.client import ServerState
from sglang_dspark.audit.live.greedy import GreedyComparison
from sglang_dspark.audit.live.noise import NoiseFloor
from sglang_dspark.audit.live.settings import AuditSettings
from sglang_dspark.audit.live.statistics import TestResult

Verdict = Literal["lossless", "biased", "inconclusive"]
EXIT_STATUS: dict[Verdict, int] = {"lossless": 0, "biased": 1, "inconclusive": 3}

NUMERICS_SHARE = 0.5
"""Above this share of the smallest visible bias, what is seen could be the numerical difference of the two models."""


@dataclass(frozen=True)
class PromptResult:
    """One prompt. observed_tv, chance_tv: between counts and expectation, and what chance alone gives on average.

    smallest_bias: the mean total variation, in token classes or in rank bins, that is seen with 80 % power.
    """

    name: str
    samples: int
    observed_tv: float
    chance_tv: float
    smallest_bias: float
    tests: list[TestResult]
    greedy: GreedyComparison

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        own = dict(self.__dict__)
        return own | {"tests": [test.as_json() for test in self.tests], "greedy": self.greedy.as_json()}


@dataclass(frozen=True)
class AuditReport:
    """Everything that an audit found.

    across: the policies between which the server was switched meanwhile, empty where one policy was audited.
    cut_share: see `sampling.Collected`; blocks: audited blocks that it is a share of.
    """

    verdict: Verdict
    reasons: list[str]
    settings: AuditSettings
    server: ServerState
    across: list[str]
    prompts: list[PromptResult]
    pooled: list[TestResult]
    noise: NoiseFloor
    tie_tolerance: float
    cut_share: float | None
    blocks: int | None
    seconds: float

    @property
    def exit_status(self) -> int:
        """0 lossless, 1 biased, 3 inconclusive."""
        return EXIT_STATUS[self.verdict]

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        plain = {
            "settings": dict(self.settings.__dict__),
            "server": dict(self.server.__dict__),
            "prompts": [prompt.as_json() for prompt in self.prompts],
            "pooled": [test.as_json() for test in self.pooled],
            "noise": self.noise.as_json(),
        }
        return dict(self.__dict__) | plain


def judge(
    prompts: Sequence[PromptResult],
    pooled: Sequence[TestResult],
    noise: NoiseFloor,
    cut_share: float | None,
    settings: AuditSettings,
) -> tuple[Verdict, list[str]]:
    """The verdict and why. A greedy difference that is no tie condemns by itself."""
    rejected = [test for test in (*[t for p in prompts for t in p.tests], *pooled) if test.adjusted <= settings.alpha]
    real = sum(len(prompt.greedy.real) for prompt in prompts)
    weakest = max(prompt.smallest_bias for prompt in prompts)
    numerics = noise.mean_tv >= NUMERICS_SHARE * min(prompt.smallest_bias for prompt in prompts)
    if real or (rejected and not numerics):
        return "biased", [_rejection(test, prompts) for test in rejected] + ([_greedy(real)] if real else [])
    doubts = []
    if rejected:
        doubts.append(
            f"{len(rejected)} tests reject, but server and target differ numerically by a total variation of "
            f"{noise.mean_tv:.2g}, which so many samples can see: compare with a target in the server's own dtype"
        )
    if weakest > settings.detect:
        doubts.append(
            f"too few samples: they would have seen a mean total variation of {weakest:.3f} and not of "
            f"{settings.detect:g} (--samples {settings.samples}, --detect {settings.detect:g})"
        )
    if cut_share is None:
        doubts.append("the server does not say how much of its blocks it verified: nothing shows that a decision acted")
    elif cut_share < settings.least_cut:
        doubts.append(
            f"a decision cut {cut_share:.0%} of the audited blocks, expected at least {settings.least_cut:.0%}: "
            "with whole blocks verified no policy can leak (raise the load, or give a profile that cuts)"
        )
    return ("inconclusive", doubts) if doubts else ("lossless", [])


def _rejection(test: TestResult, prompts: Sequence[PromptResult]) -> str:
    where = "all prompts together" if test.prompt is None else prompts[test.prompt].name
    return f"{test.name} test on {where}: p = {test.p_value:.1e}, {test.adjusted:.1e} after Holm's correction"


def _greedy(count: int) -> str:
    return f"{count} greedy tokens are not the target's, by more than rounding explains"
