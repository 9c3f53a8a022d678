"""An audit or a prediction for people: tables and a few sentences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table

from sglang_dspark.audit.live.verdict import AuditReport, PromptResult

if TYPE_CHECKING:
    from sglang_dspark.audit.live.prediction import Prediction

_COLOURS = {"lossless": "green", "biased": "red", "inconclusive": "yellow"}


def print_report(console: Console, report: AuditReport) -> None:
    """Tests by prompt, greedy comparison, what the audit could see, verdict and reasons."""
    settings, server = report.settings, report.server
    title = f"Tokens {settings.skip}..{settings.length - 1} of sampled continuations against the target's exact law"
    table = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("prompt", overflow="fold", min_width=10)
    for heading in ("samples", "TV", "chance", "visible", "tokens", "ranks", "surprisal", "greedy"):
        table.add_column(heading, justify="right", no_wrap=True)
    for prompt in report.prompts:
        chances = [_chance(test.adjusted) for test in prompt.tests]
        tv = (f"{prompt.observed_tv:.3f}", f"{prompt.chance_tv:.3f}", f"{prompt.smallest_bias:.3f}")
        table.add_row(prompt.name, str(prompt.samples), *tv, *chances, _greedy(prompt))
    ranks, surprisal = report.pooled
    samples = str(sum(prompt.samples for prompt in report.prompts))
    table.add_row("together", samples, "", "", "", "", _chance(ranks.adjusted), _chance(surprisal.adjusted), "")
    console.print(table)
    for line in _notes(report):
        console.print(line, highlight=False, soft_wrap=True)
    policy = " -> ".join(report.across) or server.policy or "no sglang-dspark policy"
    console.print(f"[bold {_COLOURS[report.verdict]}]{report.verdict}[/] ({policy})", highlight=False)
    for reason in report.reasons:
        console.print(f"  {reason}", highlight=False, soft_wrap=True)


def _notes(report: AuditReport) -> list[str]:
    noise = report.noise
    cut = "unknown" if report.cut_share is None else f"{report.cut_share:.0%} of {report.blocks}"
    return [
        "TV: total variation of the token counts, and what chance alone gives; visible: the mean total variation that "
        "80 % of such audits would have seen; tokens, ranks, surprisal: p values after Holm's correction",
        f"server and target differ numerically: total variation {noise.mean_tv:.1e} (at most {noise.max_tv:.1e}, "
        f"log-probabilities by up to {noise.max_logprob:.1e}); greedy ties: within {report.tie_tolerance:.1e} nats",
        f"audited blocks cut below gamma by a decision: {cut}; took {report.seconds:.0f} s",
    ]


def _chance(value: float) -> str:
    return f"{value:.2f}" if value >= 0.01 else f"{value:.0e}"


def _greedy(prompt: PromptResult) -> str:
    real, ties = len(prompt.greedy.real), len(prompt.greedy.differences) - len(prompt.greedy.real)
    if real:
        return f"{real} differ"
    return f"{ties} ties" if ties else "equal"


def print_predictions(console: Console, policy: str, predictions: Sequence[Prediction]) -> None:
    """Predicted bias, the samples that would see it, and the share of blocks cut."""
    table = Table(title=f"Predicted bias of {policy} in the audited tokens", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("prompt", overflow="fold", min_width=10)
    for heading in ("TV", "+-", "by position", "needed", "cut", "simulated"):
        table.add_column(heading, justify="right", no_wrap=True)
    for p in predictions:
        needed = f"{p.samples_needed:.0f}" if p.samples_needed < 1e9 else "-"
        positions = " ".join(f"{value:.3f}" for value in p.by_position)
        tv = (f"{p.tv:.3f}", f"{p.tv_error:.3f}", positions)
        table.add_row(p.prompt, *tv, needed, f"{p.cut_share:.0%}", str(p.simulated))
    console.print(table)
