"""How far estimates are off: published step times, a published verify staircase, served loads, gains of policies.

Run: python benchmarks/estimate_errors.py [--write]. Prints docs/estimates.md; --write keeps it, and the figures that
every result made with an estimate prints (sglang_dspark/cost/estimate/accuracy.json). Minutes; needs the extra
`estimate`, no GPU and no network. Nothing here is tuned to what it is compared with, except the layers of
DeepSeek-V4's assumed draft (five, of three and five).
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from pathlib import Path

import msgspec
import numpy as np

from sglang_dspark.cost import StepCost, load_profile
from sglang_dspark.cost.capture import captured_as
from sglang_dspark.cost.estimate.accuracy import Accuracy, Errors, Gains
from sglang_dspark.cost.graphs import Machine, listed_batches
from sglang_dspark.errors import InputError
from simulator import Acceptance, Engine, Load, simulate

ROOT = Path(__file__).parents[1]
PUBLISHED = Path(__file__).with_name("published_steps.csv")
DOCUMENT = ROOT / "docs" / "estimates.md"
FIGURES = ROOT / "sglang_dspark" / "cost" / "estimate" / "accuracy.json"
MEASURED, ESTIMATED = "vllm-b300-dsv4-flash", "estimate:b300_sxm/DeepSeek-V4-Flash,tp=4"
STAIRCASE_CONTEXT, WIDTH = 8192, 8
POLICIES = ("fixed:k=7", "fixed:k=1", "fixed:k=3", "fixed:k=5", "early-stop", "hull", "lookahead", "argmax:lag=2")
IN_FLIGHT = (64, 128)
TIE = 0.02
REASONS = {
    "a node has": "more than one node",
    "do not divide": "more than one node",
    "is refused, expected 1..64": "more than one node",
    "recurrent layers": "no times of its recurrent layers for several tokens a request",
    "data missing": "its attention was not measured at that size",
    "does not fit": "weights and SGLang's reserve leave no room for KV",
}
"""Part of a refusal -> what the page says."""

FIGURE = "steady_output_throughput"


@dataclass(frozen=True)
class Row:
    """One prediction beside what was measured, in milliseconds."""

    group: str
    what: str
    predicted: float
    measured: float

    @property
    def error(self) -> float:
        return self.predicted / self.measured - 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="keep the page and the figures in the repository")
    parser.add_argument("--jobs", type=int, default=1)
    args = parser.parse_args()
    steps = list(published_steps())
    staircase, draft = list(verify_staircase()), list(draft_staircase())
    served, refused = served_loads()
    gains = {count: policy_gains(count, args.jobs) for count in IN_FLIGHT}
    accuracy = Accuracy(
        str(load_profile(ESTIMATED).meta["software"]),
        errors(steps),
        errors(staircase),
        errors(served),
        errors_of_gains(gains.values()),
    )
    page = "\n".join(document(accuracy, steps, staircase, draft, served, refused, gains)) + "\n"
    sys.stdout.write(page)
    if args.write:
        DOCUMENT.write_text(page)
        FIGURES.write_bytes(msgspec.json.format(msgspec.json.encode(accuracy), indent=1) + b"\n")


@lru_cache(maxsize=64)
def decoding(name: str) -> StepCost:
    """An estimate as a server without a draft executes it, on SGLang's graphs."""
    cost = load_profile(name)
    machine = Machine.of(cost.meta)
    return captured_as(cost, listed_batches(machine.graph_limit(), drafting=False), 1)


def decode_ms(name: str, requests: int, context: int) -> float:
    """A decode step, one token a request."""
    return 1e3 * float(decoding(name).verify_s(requests, requests, requests * context))


def prefills_ms(name: str, requests: int, prompt: int, output: int, ttft_ms: float | None = None) -> float:
    """What the prefills of the others add to each token of a request.

    In a steady load there is one of each while it decodes. Sent all at once, half of them come after its own; the mean
    time to the first token tells: it is then that of the other half.
    """
    prefill = 1e3 * decoding(name).prefill_s(prompt)
    at_once = ttft_ms is not None and requests > 1 and ttft_ms >= 0.5 * prefill * requests
    return prefill * (requests - 1) / output * (0.5 if at_once else 1.0)


def published_steps() -> Iterator[Row]:
    with PUBLISHED.open() as file:
        for row in csv.DictReader(file):
            name = f"estimate:{row['gpu']}/{row['model']},tp={row['tp']},gemm={row['gemm']}"
            requests, context, output = (int(row[key]) for key in ("requests", "context", "output"))
            predicted = decode_ms(name, requests, context)
            if output:  # a mean over served requests, which sees the prefills of others
                predicted += prefills_ms(name, requests, context - output // 2, output)
            where = f"{row['tp']} x {row['gpu']}, {row['engine']}"
            what = f"{row['model']}, {row['gemm']}, {where}, {requests} in flight"
            yield Row(row["source"], what, predicted, float(row["ms"]))


def verify_staircase() -> Iterator[Row]:
    """vLLM's verify steps of whole blocks at 8,192 context tokens, in graphs."""
    measured, ours = load_profile(MEASURED), load_profile(ESTIMATED)
    for tokens in measured.verify.probes.astype(int).tolist():
        if tokens <= measured.last_captured:
            requests = -(-tokens // WIDTH)
            floor = float(ours.verify.at(tokens))
            held = ours.terms["context_token_s"] * requests * STAIRCASE_CONTEXT
            yield Row("verify", f"{tokens}", 1e3 * (floor + held), 1e3 * float(measured.verify_s(1, tokens)))


def draft_staircase() -> Iterator[Row]:
    """vLLM's draft steps by requests."""
    measured, ours = load_profile(MEASURED), load_profile(ESTIMATED)
    for requests in measured.draft.probes.astype(int).tolist():
        yield Row("draft", f"{requests}", 1e3 * ours.draft_s(requests), 1e3 * measured.draft_s(requests))


def served_loads() -> tuple[list[Row], dict[str, int]]:
    """Mean TPOT of served loads that ship with the library, one node each; and how many have no estimate, by reason."""
    import aiconfigurator_core

    file = Path(aiconfigurator_core.__file__).parent / "systems" / "silicon_sample.csv"
    seen, rows, refused = set(), [], {}
    for row in csv.DictReader(file.open()):
        if (row["backend"], row["mode"]) != ("sglang", "agg") or not row["silicon_tpot_ms"]:
            continue
        model = {"deepseek-ai/DeepSeek-R1": "deepseek-ai/DeepSeek-V3"}.get(row["model_path"], row["model_path"])
        keys = ("system", "isl", "osl", "batch_size", "tp_size", "moe_ep_size", "silicon_tpot_ms")
        point = (model, *(row[key] for key in keys))
        if point in seen:  # the file holds the same measurement under several sources
            continue
        seen.add(point)
        try:
            rows.append(_served(row, model))
        except InputError as error:
            reason = next((words for part, words in REASONS.items() if part in str(error)), str(error))
            label = f"{model.split('/')[-1]} on {row['system']}: {reason}"
            refused[label] = refused.get(label, 0) + 1
    return rows, refused


def _served(row: dict[str, str], model: str) -> Row:
    tp, batch, new, out = (int(float(row[key])) for key in ("tp_size", "batch_size", "isl", "osl"))
    known = {"meta-llama/Llama-3.1-8B-Instruct": "meta-llama/Meta-Llama-3.1-8B", "zhipuai/GLM-5": "zai-org/GLM-5"}
    parts = [f"estimate:{row['system']}/{known.get(model, model)}", f"tp={tp}"]
    ep = int(float(row["moe_ep_size"] or 1))
    if row["moe_quant_mode"] and ("DeepSeek" in model or "GLM" in model or "A22B" in model):
        parts += [f"ep={ep}"] if ep > 1 else []
        parts += [f"moe={row['moe_quant_mode']}"]
    if row["gemm_quant_mode"]:
        parts.append(f"gemm={row['gemm_quant_mode']}")
    name = ",".join(parts)
    cost = decoding(name)
    context = new + out // 2
    running = max(1, min(batch, int(cost.terms["kv_tokens"] / (new + out))))
    predicted = decode_ms(name, running, context) + prefills_ms(
        name, running, new, out, float(row["silicon_ttft_ms"] or 0)
    )
    group = f"{known.get(model, model).split('/')[-1]}, {row['gemm_quant_mode'] or 'bfloat16'}, {row['system']}"
    return Row(group, f"{new} in, {out} out, {batch} in flight, TP {tp}", predicted, float(row["silicon_tpot_ms"]))


def policy_gains(in_flight: int, jobs: int) -> dict[tuple[str, str], tuple[float, float]]:
    """For every pair of policies, gain of the second over the first: (estimated, measured), on the same graphs."""
    found = []
    for profile in (ESTIMATED, MEASURED):
        comparison = simulate(
            Load("example", concurrency=in_flight),
            Engine(profile, graphs=[size for size in listed_batches(512, drafting=True) if size <= in_flight]),
            POLICIES,
            acceptance=Acceptance(drafter="dspark:deepseek-v4-flash"),
            jobs=jobs,
        )
        found.append({result.policy: result.figures[FIGURE] for result in comparison.results})
    ours, theirs = found
    return {(a, b): (ours[b] / ours[a] - 1, theirs[b] / theirs[a] - 1) for a, b in combinations(ours, 2)}


def errors(rows: Sequence[Row]) -> Errors:
    found = np.array([row.error for row in rows])
    return Errors(len(rows), _short(np.abs(found).mean()), _short(np.abs(found).max()), _short(found.mean()))


def errors_of_gains(runs: Iterable[dict[tuple[str, str], tuple[float, float]]]) -> Gains:
    """Over the gains on the first policy, as results state them."""
    found = np.array([abs(a - b) for run in runs for (first, _), (a, b) in run.items() if first == POLICIES[0]])
    return Gains(len(found), _short(found.mean()), _short(found.max()))


def _short(value: float) -> float:
    return round(float(value), 4)


def document(
    accuracy: Accuracy,
    steps: Sequence[Row],
    staircase: Sequence[Row],
    draft: Sequence[Row],
    served: Sequence[Row],
    refused: dict[str, int],
    gains: dict[int, dict[tuple[str, str], tuple[float, float]]],
) -> Iterator[str]:
    yield "# How far estimates are off"
    yield ""
    yield "An estimate (`estimate:GPU/MODEL`, `dspark profile --estimate`) adds up measured kernel times; nobody"
    yield "measured the step. `python benchmarks/estimate_errors.py --write` writes this page, and its means are what"
    yield f"every result made with an estimate prints. Priced with {accuracy.versions}."
    yield ""
    yield "| against | values | mean error | largest | with sign |"
    yield "|---|---:|---:|---:|---:|"
    for name, known in (
        ("published decode steps", accuracy.steps),
        ("vLLM's verify staircase, 4 x B300, DeepSeek-V4-Flash", accuracy.staircase),
        ("vLLM's draft steps there", errors(draft)),
        ("served loads of SGLang, one node", accuracy.serving),
    ):
        yield f"| {name} | {known.count} | {known.mean:.1%} | {known.largest:.1%} | {known.bias:+.1%} |"
    yield ""
    yield "## Published decode steps"
    yield ""
    yield from _table(["step", "source"], steps, lambda row: [row.what, row.group])
    yield ""
    yield "Context lengths are not published with most of them: 1,024 tokens a request are assumed. InferenceX's are"
    yield "means over served requests, taken to have 1,024 tokens in and out: the prefills of the others are added."
    yield "Of EAGLE-3's verify at 4 requests (8, 16, 32 draft tokens) only differences are published: +0.08 and"
    yield f"+0.81 ms, predicted {_eagle()}."
    yield ""
    yield "## Verify and draft steps of DeepSeek-V4-Flash on 4 x B300"
    yield ""
    yield f"vLLM's, at {STAIRCASE_CONTEXT:,} context tokens, on synthetic tokens whose experts are not known; the"
    yield f"estimate is of SGLang's kernels, experts hit by a power law, {WIDTH} tokens a request. The layers of the"
    yield "assumed draft (five, of three and five) are the only choice that these figures made."
    yield ""
    yield from _table(["verified tokens"], staircase, lambda row: [row.what])
    yield ""
    yield from _table(["drafting requests"], draft, lambda row: [row.what])
    yield ""
    yield "## Gains of policies there"
    yield ""
    yield from _gains(gains, accuracy.gains)
    yield ""
    yield "## Served loads"
    yield ""
    yield from _served_table(served)
    yield ""
    yield "Loads without an estimate, counted nowhere above:"
    yield ""
    yield from (f"- {count}: {reason}" for reason, count in sorted(refused.items()))


def _eagle() -> str:
    """Differences of verify steps that were published without the steps."""
    cost = load_profile("estimate:h100_sxm/Qwen3-8B,gemm=bfloat16")

    def said(counts: tuple[int, int, int]) -> str:
        first, second, third = (1e3 * float(cost.verify.at(tokens)) for tokens in counts)
        return f"{second - first:+.2f} and {third - second:+.2f} ms"

    return (
        f"{said((32, 64, 128))} if they are tokens a request, {said((8, 16, 32))} if they are tokens of the batch "
        "(for Qwen3-8B on an H100; the source says neither)"
    )


def _table(heads: Sequence[str], rows: Sequence[Row], cells: object) -> Iterator[str]:
    yield f"| {' | '.join(heads)} | predicted ms | measured ms | error |"
    yield f"|{'---|' * len(heads)}---:|---:|---:|"
    for row in rows:
        yield f"| {' | '.join(cells(row))} | {row.predicted:.2f} | {row.measured:.2f} | {row.error:+.1%} |"  # type: ignore[operator]


def _gains(gains: dict[int, dict[tuple[str, str], tuple[float, float]]], known: Gains) -> Iterator[str]:
    yield f"Gain in steady output throughput over `{POLICIES[0]}`, simulated on the same draws and graphs, once with"
    yield f"the estimate and once with vLLM's measured steps: off by {100 * known.mean:.1f} points (at most"
    yield f"{100 * known.largest:.1f}). Pairs that the measured profile puts less than {TIE:.0%} apart are ties."
    yield ""
    yield "| in flight | policy | estimated | measured | off by |"
    yield "|---:|---|---:|---:|---:|"
    for count, pairs in gains.items():
        for (first, policy), (ours, theirs) in pairs.items():
            if first == POLICIES[0]:
                yield f"| {count} | `{policy}` | {ours:+.1%} | {theirs:+.1%} | {100 * (ours - theirs):+.1f} points |"
    yield ""
    for count, pairs in gains.items():
        apart = {pair: both for pair, both in pairs.items() if abs(both[1]) > TIE}
        wrong = [pair for pair, (ours, theirs) in apart.items() if ours * theirs <= 0]
        said = "the right sign for all" if not wrong else "the wrong sign for " + ", ".join(map(" / ".join, wrong))
        yield f"- {count} in flight: {len(apart)} of {len(pairs)} pairs are more than {TIE:.0%} apart; {said}."


def _served_table(served: Sequence[Row]) -> Iterator[str]:
    yield "Mean TPOT of served loads that ship with the library (each measurement once), by model, precision and GPU:"
    yield "the decode step at half the output, and the prefills of the others; of half of them where the measured time"
    yield "to the first token says that all requests were sent at once."
    yield ""
    yield "| model | loads | mean error | largest | with sign |"
    yield "|---|---:|---:|---:|---:|"
    for group in sorted({row.group for row in served}):
        known = errors([row for row in served if row.group == group])
        yield f"| {group} | {known.count} | {known.mean:.1%} | {known.largest:.1%} | {known.bias:+.1%} |"


if __name__ == "__main__":
    main()
