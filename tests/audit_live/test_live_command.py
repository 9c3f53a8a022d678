"""The command line of `dspark audit live`: what it refuses, and its exit statuses."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

for name in ("httpx", "scipy", "torch", "transformers"):
    pytest.importorskip(name, reason="the extra `audit`")

from sglang_dspark.audit.live.client import ServerState  # noqa: E402
from sglang_dspark.audit.live.noise import NoiseFloor  # noqa: E402
from sglang_dspark.audit.live.settings import AuditSettings  # noqa: E402
from sglang_dspark.audit.live.verdict import EXIT_STATUS, AuditReport, judge  # noqa: E402
from sglang_dspark.cli import app  # noqa: E402
from sglang_dspark.errors import InputError  # noqa: E402

NOISE = NoiseFloor(10, 1e-7, 1e-6, 1e-5)


def refused(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["audit", "live", *arguments])
    assert isinstance(result.exception, InputError), result.output
    return str(result.exception)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--url", "http://x", "--predict", "hull"), "either --url URL"),
        (("--url", "http://x", "--draft", "d"), "belong to --predict"),
        (("--url", "http://x", "--timeout", "0"), "--timeout 0"),
        (("--url", "http://x", "--samples", "3"), "--samples 3"),
        (("--url", "x"), "--url x is refused"),
        (("--across", "hull", "--across", "hull"), "at least two different policies"),
        (("--across", "hull", "--across", "no-such"), "no-such"),
        (("--every", "2"), "--every 2 does nothing without --across"),
        (("--predict", "hull", "--across", "hull", "--across", "none"), "does not go with --predict"),
        (("--url", "http://x"), "expected a folder with a model's config.json"),
        (("--predict", "hull"), "give --draft DIR"),
        (("--predict", "hull", "--draft", "d", "--simulated", "1"), "--simulated 1"),
        (("--predict", "no-such", "--draft", "d"), "no-such"),
        (("--predict", "hull", "--draft", "d"), "expected a folder with a model's config.json"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    target, prompts = ("--target", str(tmp_path)), ("--prompts", str(tmp_path / "p.jsonl"))
    assert message in refused(*target, *prompts, *arguments)


def report(verdict: Any) -> AuditReport:
    state = ServerState(7, "hull", True, 0, {}, "m", {})
    return AuditReport(verdict, ["because"], AuditSettings(), state, [], [], [None, None], NOISE, 1e-3, 0.5, 10, 1.0)  # type: ignore[list-item]


@pytest.mark.parametrize("verdict", list(EXIT_STATUS))
def test_exit_status_follows_the_verdict(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, verdict: Any) -> None:
    from sglang_dspark.audit.live import audit, target
    from sglang_dspark.audit.live import report as reporting

    (tmp_path / "p.jsonl").write_text('{"input_ids": [1]}\n')
    monkeypatch.setattr(target.ExactTarget, "load", lambda *_: SimpleNamespace(tokenizer=None))
    monkeypatch.setattr(audit, "audit_server", lambda *_: report(verdict))
    monkeypatch.setattr(reporting, "print_report", lambda console, found: print(found.verdict, *found.reasons))
    arguments = ["--target", str(tmp_path), "--prompts", str(tmp_path / "p.jsonl"), "--url", "http://x"]
    result = CliRunner().invoke(app, ["audit", "live", *arguments])
    assert result.exit_code == EXIT_STATUS[verdict] and f"{verdict} because" in result.output


def prompt(smallest: float, adjusted: float = 1.0, real: int = 0) -> Any:
    test = SimpleNamespace(name="tokens", prompt=0, p_value=adjusted, adjusted=adjusted)
    return SimpleNamespace(name="p:1", smallest_bias=smallest, tests=[test], greedy=SimpleNamespace(real=[None] * real))


@pytest.mark.parametrize(
    ("found", "noise_tv", "cut", "verdict", "words"),
    [
        (prompt(0.04), 1e-7, 0.9, "lossless", ""),
        (prompt(0.04, 1e-6), 1e-7, 0.9, "biased", "tokens test on p:1"),
        (prompt(0.04, 1e-6), 1e-7, 0.0, "biased", "tokens test on p:1"),
        (prompt(0.04, 1e-6), 0.03, 0.9, "inconclusive", "differ numerically"),
        (prompt(0.04, real=2), 0.03, 0.9, "biased", "2 greedy tokens"),
        (prompt(0.06), 1e-7, 0.9, "inconclusive", "too few samples"),
        (prompt(0.04), 1e-7, 0.29, "inconclusive", "cut 29%"),
        (prompt(0.04), 1e-7, None, "inconclusive", "does not say"),
    ],
)
def test_the_verdict(found: Any, noise_tv: float, cut: float | None, verdict: str, words: str) -> None:
    noise = NoiseFloor(10, noise_tv, noise_tv, 0.1)
    given, reasons = judge([found], [], noise, cut, AuditSettings())
    assert given == verdict and words in " ".join(reasons)
