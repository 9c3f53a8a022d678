"""Against published data beside the repository: the paper's figures and the Azure trace; skipped without it."""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from simulator import EngineSettings, simulate
from simulator.blocks.drafters import DOMAINS, DRAFTERS
from simulator.inputs import Acceptance, Engine, Load
from simulator.results.report import json_lines
from simulator.traces import load_trace

DATA = Path(__file__).parents[3] / "shared" / "data"
FIGURE_2, TABLE_1 = DATA / "paper" / "fig2_conditional_acceptance.csv", DATA / "paper" / "table1_accepted_length.csv"
AZURE = DATA / "azure2023" / "AzureLLMInferenceTrace_conv.csv"
DATA_SETS = {
    "math": ("GSM8K", "MATH", "AIME25"),
    "code": ("MBPP", "HumanEval", "LCB"),
    "chat": ("MT-Bench", "Alpaca", "Arena-Hard"),
}


def needs(path: Path) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not path.exists(), reason=f"{path.name} is not beside the repository")


@needs(FIGURE_2)
def test_drafters_hold_figure_2() -> None:
    published: dict[tuple[str, str], list[float]] = defaultdict(list)
    with FIGURE_2.open() as file:
        for row in csv.DictReader(file):
            published[row["drafter"].lower(), row["domain"]].append(float(row["cond_acceptance"]))
    for (drafter, domain), values in published.items():
        assert DRAFTERS[drafter].acceptance[domain] == pytest.approx(values, abs=5e-4), (drafter, domain)
    assert {key[0] for key in published} == {"dspark", "dflash", "eagle3"}


@needs(TABLE_1)
@pytest.mark.parametrize("domain", DOMAINS)
def test_simulated_accepted_lengths_are_those_of_table_1(domain: str) -> None:
    """Whole blocks verified, Qwen3-4B, the mean of a domain's three data sets; the last block of a request is cut."""
    with TABLE_1.open() as file:
        rows = {row["drafter"].lower(): row for row in csv.DictReader(file) if row["target"] == "Qwen3-4B"}
    trace = load_trace(AZURE, limit=700) if AZURE.exists() else None
    assert trace is not None, "the Azure trace comes with the paper's data"
    for drafter in ("dspark", "dflash", "eagle3"):
        published = np.mean([float(rows[drafter][name]) for name in DATA_SETS[domain]])
        comparison = simulate(
            Load(trace, concurrency=64, domain_mix={domain: 1.0}),
            "vllm-b300-dsv4-flash",
            ["fixed:k=7"],
            acceptance=Acceptance(drafter=drafter),
            replications=1,
            jobs=1,
        )
        assert comparison.results[0].figures["accept_length"] == pytest.approx(published, rel=0.05), drafter


@needs(AZURE)
def test_a_part_of_the_azure_trace_in_open_and_closed_loop() -> None:
    trace = load_trace(AZURE, limit=250)
    for concurrency in (None, 32):
        runs = [
            simulate(
                Load(trace, concurrency=concurrency),
                "vllm-b300-dsv4-flash",
                ["hull", "argmax:lag=2"],
                replications=1,
                jobs=jobs,
            )
            for jobs in (1, 2)
        ]
        assert json_lines(runs[0]) == json_lines(runs[1])
        for result in runs[0].results:
            assert result.figures["completed"] == 250 and result.figures["failed"] == 0
            assert result.figures["total_output_tokens"] == trace.output_length.sum()


@pytest.mark.slow
@needs(AZURE)
def test_early_stop_loses_to_hull_and_argmax_at_concurrency_128() -> None:
    """As the policies' own arithmetic predicts on this staircase: early stop halts at the first graph tier."""
    trace = load_trace(AZURE, limit=4000)
    result = simulate(
        Load(trace, concurrency=128),
        Engine("vllm-b300-dsv4-flash", settings=EngineSettings(max_running_requests=128)),
        ["early-stop", "hull", "argmax:lag=2"],
        replications=2,
        jobs=2,
    )
    early, hull, argmax = (each.figures["output_throughput"] for each in result.results)
    assert hull > 1.5 * early and argmax > 1.5 * early
